"""Likelihoods under a plan against plain transformers, and through lm-eval where it is installed."""

import json
import sys

import pytest
import torch
from support.cases import build

from hw.evaluate.likelihood import Likelihood, windows
from prism.errors import ConfigError, InputError, PlanError
from prism.nn.zoo import Loaded
from prism.plan import LOCAL, ExecutionPlan, Mode

FULL = ExecutionPlan(mode=Mode.FULL, devices=3)
MEANS = ExecutionPlan(mode=Mode.SEGMENT_MEANS, devices=2, segments=3)


@pytest.fixture(scope="module")
def gpt2():
    return Loaded(model=build("gpt2_lm"), kind="text", weights="random (a test)")


def ids(count, seed):
    return torch.randint(99, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def plain(loaded, context, continuation):
    """A token after another, each from a pass of its own."""
    total, greedy = 0.0, True
    for k, token in enumerate(continuation):
        seen = torch.tensor([[*context, *continuation[:k]]])
        with torch.no_grad():
            logs = loaded.model(input_ids=seen).logits[0, -1].log_softmax(-1)
        total, greedy = total + float(logs[token]), greedy and int(logs.argmax()) == token
    return total, greedy


@pytest.mark.parametrize("plan", [LOCAL, FULL])
def test_exact_plans_have_the_models_own_likelihoods(gpt2, plan):
    pairs = [(ids(n, n), ids(m, 50 + m)) for n, m in ((1, 1), (20, 4), (3, 9), (2, 1))]
    with torch.no_grad():
        best = int(gpt2.model(input_ids=torch.tensor([pairs[1][0]])).logits[0, -1].argmax())
    pairs.append((pairs[1][0], [best]))
    found = Likelihood(gpt2, plan, batch=2).of(pairs)
    expected = [plain(gpt2, *pair) for pair in pairs]
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], rel=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected] and found[-1][1]


def test_means_are_near_and_not_the_same(gpt2):
    pair = (ids(40, 1), ids(10, 2))
    (exact, _), (means, _) = (Likelihood(gpt2, plan).of([pair])[0] for plan in (LOCAL, MEANS))
    assert exact != means and means == pytest.approx(exact, rel=0.2)


def test_a_long_text_rolls_and_a_long_context_loses_its_beginning(gpt2):
    text = ids(23, 3)
    parts = list(windows(text, 7, 10))
    assert [continuation for _, continuation in parts] == [text[:10], text[10:20], text[20:]]
    assert [context for context, _ in parts] == [[7], [text[9]], text[12:20]]
    likelihood = Likelihood(gpt2, FULL, tokens=10)
    assert likelihood.rolling(text, 7) == pytest.approx(sum(plain(gpt2, *part)[0] for part in parts), rel=1e-4)
    (found,) = likelihood.of([(text, [1, 2])])
    assert found[0] == pytest.approx(plain(gpt2, text[-9:], [1, 2])[0], rel=1e-4)


def test_what_cannot_be_asked(gpt2):
    with pytest.raises(InputError, match="0 tokens and 1 after"):
        Likelihood(gpt2, LOCAL).of([([], [1])])
    with pytest.raises(InputError, match="at most 4 after"):
        Likelihood(gpt2, LOCAL, tokens=4).of([([1], [1] * 5)])
    with pytest.raises(PlanError, match="segments 3 exceed the 2"):
        Likelihood(gpt2, MEANS, tokens=4)
    with pytest.raises(InputError, match="predicts no next token"):
        Likelihood(Loaded(model=build("bert_lm"), kind="text", weights=""), LOCAL)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "hw.evaluate.lm_eval_model", raising=False)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match="pip install lm-eval"):
        import hw.evaluate.lm_eval_model  # noqa: F401


def test_a_task_of_lm_eval(tmp_path, gpt2, monkeypatch):
    lm_eval = pytest.importorskip("lm_eval")
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    from hw.evaluate.lm_eval_model import PrismLM

    names = {"<end>": 0, **{f"w{k}": k for k in range(1, 99)}}
    words = Tokenizer(models.WordLevel(names, unk_token="<end>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>").save_pretrained(tmp_path / "m")
    gpt2.model.save_pretrained(tmp_path / "m")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    rows = [{"q": "w1 w2 w3", "a": ["w4", "w5 w6"], "gold": 0}, {"q": "w7 w8", "a": ["w9", "w10"], "gold": 1}]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {
        "task": "tiny",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "d.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "q",
        "doc_to_choice": "a",
        "doc_to_target": "gold",
    }
    model = PrismLM(str(tmp_path / "m"), FULL)
    found = lm_eval.simple_evaluate(model=model, tasks=[task], log_samples=True, bootstrap_iters=0)
    by_doc = {sample["doc_id"]: [value for ((value, _),) in sample["resps"]] for sample in found["samples"]["tiny"]}
    assert by_doc[0] == pytest.approx([plain(gpt2, [1, 2, 3], [4])[0], plain(gpt2, [1, 2, 3], [5, 6])[0]], rel=1e-4)
    assert found["results"]["tiny"]["acc,none"] in (0, 0.5, 1)
    with pytest.raises(ConfigError, match="generates no text"):
        model.generate_until([])
