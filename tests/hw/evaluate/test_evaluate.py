"""What an evaluation reads, figures by hand, a run that is killed, and the same answers from real ranks."""

import json
import math
import re

import msgspec
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from scipy import stats
from support.cases import build
from timm.data import resolve_data_config
from torch.nn import functional as F
from transformers import BertForQuestionAnswering
from transformers.modeling_outputs import CausalLMOutput

from hw.evaluate import in_process
from hw.evaluate import run as evaluation
from hw.evaluate import scores as evalscore
from hw.evaluate.datasets import Columns, RatedPair, load_dataset
from hw.evaluate.page import accuracy_page
from hw.evaluate.run import EvalConfig, evaluate
from hw.evaluate.scores import SampleScore, figures, scored
from hw.evaluate.tables import write_parquet
from hw.inputs.collate import collate_texts
from hw.inputs.samples import Sample
from hw.run.config import RunConfig
from hw.run.launch import run_local
from prism.decide.accuracy import AccuracyTable, load_accuracy
from prism.errors import ConfigError, InputError
from prism.nn.zoo import Loaded, load_model
from prism.plan import LOCAL, ExecutionPlan, Mode

MEANS4 = ExecutionPlan(mode=Mode.SEGMENT_MEANS, devices=3, segments=4, wire="int4")
CONFIG = EvalConfig(limit=40, batch=16, devices=(2, 3), segments=(4,), wires=("fp32", "int4"), threads=1)


def run(config, folder):
    return evaluate(config, folder, "a test", lambda _: None).table


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    return run(CONFIG, folder), folder


# -- a run ------------------------------------------------------------------------------------------------------------


def test_every_plan_is_evaluated_and_an_exact_one_agrees(done):
    table, folder = done
    rows = {row.plan: row for row in table.rows}
    assert len(rows) == 1 + 2 * 2 * 2 and table.n == 40
    exact = [row for row in table.rows if row.plan.mode is not Mode.SEGMENT_MEANS and row.plan.wire == "fp32"]
    assert len(exact) == 3 and all(row.agreement == 1 and row.loss == 0 and row.kl_mean < 1e-6 for row in exact)
    means = rows[MEANS4]
    assert means.agreement < 1 and means.kl_mean > 0 and means.ci90[0] <= means.loss <= means.ci90[1]
    assert means.worse - means.better == round(means.loss * table.n)
    assert means.bytes_per_exchange == 4 * 64 * 20 // 32 and means.cr == pytest.approx(17 * 64 * 4 / (4 * 40))
    table.save(folder / "accuracy.json")
    assert load_accuracy(folder / "accuracy.json").rows == table.rows


def test_a_killed_run_goes_on_and_nothing_is_lost_or_made_twice(done, tmp_path, monkeypatch):
    table, folder = done
    raw = (folder / "samples.jsonl").read_bytes()
    whole = raw.splitlines()
    for kept in (
        0,
        len(whole[0]) // 2,
        len(raw) // 2,
        len(raw) - 3,
        len(raw),
    ):  # also in the header, also in a last line
        (tmp_path / "samples.jsonl").write_bytes(raw[:kept])
        again = run(CONFIG, tmp_path)
        lines = (tmp_path / "samples.jsonl").read_bytes().splitlines()
        keys = [(row["plan"], row["sample"]) for row in map(json.loads, lines[1:])]
        assert len(keys) == len(set(keys)) == len(whole) - 1
        assert [(row.plan, row.value, row.agreement) for row in again.rows] == [
            (row.plan, row.value, row.agreement) for row in table.rows
        ]
    monkeypatch.setattr(evaluation, "together", None)
    run(CONFIG, tmp_path)  # whole: no plan runs again


@pytest.mark.parametrize("change", [{"segments": (5,)}, {"limit": 41}, {"weights": "random"}, {"batch": 1}])
def test_another_evaluation_is_refused_with_a_remedy(done, change):
    with pytest.raises(ConfigError, match=r"another evaluation.*choose another --output"):
        run(msgspec.structs.replace(CONFIG, **change), done[1])


def test_parts_share_the_weights(monkeypatch):
    loaded = load_model("fashion-vit")
    seen, distribute = [], in_process.distribute
    monkeypatch.setattr(in_process, "distribute", lambda *args: seen.append(args[0]) or distribute(*args))
    with torch.no_grad():
        in_process.together(loaded.model, MEANS4, {"x": torch.zeros(2, 1, 28, 28)})
    assert len(seen) == 3 and all(model is loaded.model for model in seen)


def test_real_ranks_give_the_same_answers(done):
    table, folder = done
    plan = ExecutionPlan(mode=Mode.SEGMENT_MEANS, devices=2, segments=4, wire="int4")
    number = [row.plan for row in table.rows].index(plan)
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_bytes().splitlines()[1:]]
    ours = [row["answer"] for row in sorted(rows, key=lambda row: row["sample"]) if row["plan"] == number]
    config = RunConfig(plan=plan, batch=20, batches=2, warmups=0)
    theirs = run_local(config, "a test", lambda _: None).predictions
    labels = load_model("fashion-vit").labels
    assert [labels[answer] for answer in ours] == [each.predicted for each in theirs]


def test_page_and_parquet(done, tmp_path):
    import pandas as pd

    table, _ = done
    twin = msgspec.structs.replace(table.rows[-1], value=0.5)  # another plan may have just as many bytes
    html = accuracy_page(msgspec.structs.replace(table, rows=(*table.rows, twin)), ["a plan that did not fit"])
    assert "<svg" in html and "a plan that did not fit" in html and "http-equiv" not in html and "<script" not in html
    write_parquet(table, tmp_path / "a.parquet")
    assert len(pd.read_parquet(tmp_path / "a.parquet")) == len(table.rows)


def test_texts_of_a_causal_model_have_its_perplexity(tmp_path, monkeypatch):
    loaded = Loaded(model=build("gpt2_lm"), kind="text", weights="random (a test)")
    monkeypatch.setattr(evaluation, "load_model", lambda *_: loaded)
    texts = ["the first of the texts", "a second one, longer than the first one", "third text of all, short"]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({"body": text}) for text in texts))
    config = EvalConfig(
        model="tiny", data=str(tmp_path / "t.jsonl"), columns=Columns(text="body"), segments=(3,), batch=3, threads=1
    )
    table = run(config, tmp_path / "out")
    total = count = 0.0
    with torch.no_grad():
        for text in texts:
            ids = torch.tensor([[byte % 99 for byte in text.encode()]])
            logits = loaded.model(input_ids=ids).logits[0, :-1]
            total += float(F.cross_entropy(logits, ids[0, 1:], reduction="sum"))
            count += ids.shape[1] - 1
    local = next(row for row in table.rows if row.plan == LOCAL)
    assert table.metric == "perplexity" and local.value == pytest.approx(math.exp(total / count), rel=1e-4)
    means = next(row for row in table.rows if row.plan.segments)
    assert means.kl_mean > 1e-6
    longest = max(map(len, texts))  # all three are one batch, padded to it
    assert table.tokens == longest and means.cr == pytest.approx(-(-longest // 2) / 3)


# -- figures ----------------------------------------------------------------------------------------------------------


def row(sample: int, **fields) -> SampleScore:
    return SampleScore(**{"plan": 1, "sample": sample, "agreement": 1.0, "cosine": 1.0, "relative_l2": 0.0, **fields})


def test_flips_and_their_test():
    pairs = [(1, 1)] * 20 + [(1, 0)] * 9 + [(0, 1)] * 2 + [(0, 0)] * 5 + [(None, None)]
    rows = [
        row(k, reference=before, value=after, kl=float(k), agreement=float(before == after))
        for k, (before, after) in enumerate(pairs)
    ]
    found = figures(rows, "top1", (), rows, seed=0)
    assert (found.worse, found.better, found.mcnemar_p) == (9, 2, pytest.approx(2 * (1 + 11 + 55) / 2**11))
    assert found.value == pytest.approx(22 / 36), "the sample without a label is left out"
    assert found.loss == pytest.approx(7 / 36) and found.agreement == pytest.approx(26 / 37)
    assert found.kl_median == 18 and found.kl_p99 == pytest.approx(np.percentile(range(37), 99))
    exact = stats.bootstrap(
        (np.array([b - a for b, a in pairs[:-1]]),),
        np.mean,
        confidence_level=0.9,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert found.ci90 == pytest.approx(tuple(exact), abs=0.03)


def test_pairs_have_pearsons_correlation():
    rng = np.random.default_rng(0)
    texts = rng.normal(size=(8, 5))
    unit = texts / np.linalg.norm(texts, axis=1, keepdims=True)
    pairs = [RatedPair(a, b, float(unit[a] @ unit[b] + 0.1 * rng.normal())) for a in range(8) for b in range(a)]
    rows = [row(k, embedding=tuple(text)) for k, text in enumerate(texts)]
    cosines = [float(unit[pair.a] @ unit[pair.b]) for pair in pairs]
    found = figures(rows, "pearson", pairs, rows, seed=0)
    assert found.value == pytest.approx(stats.pearsonr(cosines, [pair.score for pair in pairs]).statistic)
    assert found.spearman == pytest.approx(stats.spearmanr(cosines, [pair.score for pair in pairs]).statistic)
    assert found.loss == 0 and found.ci90 == (0, 0) and found.value_ci90[0] < found.value < found.value_ci90[1]


def test_a_correlation_with_weights_is_one_of_repeated_pairs():
    rng = np.random.default_rng(0)
    x, y, times = rng.normal(size=12), rng.normal(size=12), rng.integers(0, 4, (3, 12))
    expected = [stats.pearsonr(np.repeat(x, each), np.repeat(y, each)).statistic for each in times]
    assert evalscore._pearson(x, y, times.astype(float)) == pytest.approx(expected)


def test_a_batch_is_scored_at_real_tokens_alone():
    torch.manual_seed(0)
    samples = [Sample(name=str(k), label=None, content=list(range(3, 3 + n))) for k, n in enumerate((6, 3))]
    call = collate_texts(samples, None)
    ours, theirs = torch.randn(2, 6, 20), torch.randn(2, 6, 20)
    spoilt = ours.clone()
    spoilt[1, 3:] = 1e6
    first, again = (
        scored(1, (0, 1), *(CausalLMOutput(logits=each) for each in (x, theirs)), call, samples, (), "language")
        for x in (ours, spoilt)
    )
    assert first == again and [each.tokens for each in first] == [5, 2]
    p, q = theirs[1, :2].softmax(-1), ours[1, :2].softmax(-1)
    assert first[1].kl == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-4)
    assert first[1].value == pytest.approx(-float(q.log()[[0, 1], [4, 5]].sum()), rel=1e-4)


# -- data -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fashion():
    return load_model("fashion-vit")


def image(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (20, 28), value).save(path)


def test_images_that_cannot_be_read_are_listed(tmp_path, fashion):
    image(tmp_path / "Bag" / "1.png")
    image(tmp_path / "Coat" / "2.png")
    (tmp_path / "Coat" / "3.png").write_bytes(b"no image")
    found = load_dataset(tmp_path, fashion, None, Columns(), None)
    assert [(s.name, s.label) for s in found.inputs.samples] == [("Bag/1.png", "Bag"), ("Coat/2.png", "Coat")]
    assert len(found.unreadable) == 1 and "3.png" in found.unreadable[0]
    (tmp_path / "list.csv").write_text("file,class\nBag/1.png,Bag\nnowhere.png,Coat\n")
    listed = load_dataset(tmp_path / "list.csv", fashion, None, Columns(path="file", label="class"), None)
    assert [s.label for s in listed.inputs.samples] == ["Bag"] and "nowhere.png" in listed.unreadable[0]
    assert found.inputs.collate(found.inputs.samples)["x"].shape == (2, 1, 28, 28), "brought to the model's size"


def test_labels_that_the_model_lacks_are_counted(tmp_path, fashion):
    image(tmp_path / "Bag" / "1.png")
    assert load_dataset(tmp_path, fashion, None, Columns(), None).unreadable == ()
    for number in (2, 3):
        image(tmp_path / "bag" / f"{number}.png")
    found = load_dataset(tmp_path, fashion, None, Columns(), None)
    assert len(found.inputs.samples) == 3 and found.unreadable == (
        "2 items have label 'bag', which the model doesn't have: not in top-1",
    )


def test_an_image_encoder_without_a_head_gives_embeddings(tmp_path):
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, patch_size=16)
    loaded = Loaded(model=vit, kind="image", weights="random (a test)", image=resolve_data_config({}, model=vit))
    image(tmp_path / "1.png")
    found = load_dataset(tmp_path, loaded, None, Columns(), None)
    ours, theirs = torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]])
    (one,) = evalscore.scored(
        0, [0], ours, theirs, found.inputs.collate(found.inputs.samples), found.inputs.samples, (), found.task
    )
    assert found.task == "embed" and one.agreement == pytest.approx(0.96) and one.answer is None


def test_what_can_not_be_judged_is_refused(tmp_path, fashion):
    (tmp_path / "t.jsonl").write_text('{"text": "a text", "other": "b", "score": 1}\n')
    path = tmp_path / "t.jsonl"
    bert = Loaded(model=build("bert"), kind="text", weights="random (a test)")
    with pytest.raises(InputError, match="positions; use at most"):
        load_dataset(path, bert, 100_000, Columns(), None)
    classifier = Loaded(model=build("bert_classifier"), kind="text", weights="random (a test)")
    with pytest.raises(InputError, match="encoder without a head"):
        load_dataset(path, classifier, None, Columns(pair="other"), None)
    answering = BertForQuestionAnswering(bert.model.config)
    with pytest.raises(InputError, match="can't be judged"):
        load_dataset(path, Loaded(model=answering, kind="text", weights="random (a test)"), None, Columns(), None)


def test_pickles_are_never_opened(tmp_path, fashion):
    (tmp_path / "data_batch_1").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(InputError, match=r"LABEL/NAME\.png"):
        load_dataset(tmp_path, fashion, None, Columns(), None)


def test_texts_and_pairs_by_named_columns(tmp_path):
    loaded = Loaded(model=build("bert_classifier"), kind="text", weights="random (a test)")
    path = tmp_path / "t.jsonl"
    path.write_text('{"t": "one text", "l": "x"}\nnot json\n{"t": ""}\n{"t": "another", "l": 1}\n')
    found = load_dataset(path, loaded, None, Columns(text="t", label="l"), None)
    assert [s.label for s in found.inputs.samples] == ["x", "1"]
    assert len(found.unreadable) == 4, "two that are no text, two labels that the model lacks"
    with pytest.raises(InputError, match=r"has no column 'text'.*--text-column"):
        load_dataset(path, loaded, None, Columns(), None)
    (tmp_path / "p.csv").write_text('a,b,score\n"one, two",three,0.5\nthree,four,much\nfour,"one, two",1\n')
    bert = Loaded(model=build("bert"), kind="text", weights="random (a test)")
    pairs = load_dataset(tmp_path / "p.csv", bert, None, Columns(text="a", pair="b"), None)
    assert [(p.a, p.b, p.score) for p in pairs.pairs] == [(0, 1, 0.5), (2, 0, 1.0)] and len(pairs.unreadable) == 1


def test_a_text_that_cannot_be_read_leaves_nothing_behind(tmp_path):
    """A pair without a number, or half a pair, takes no part at all; a text may hold a line separator of Unicode."""
    bert = Loaded(model=build("bert"), kind="text", weights="random (a test)")
    rows = [
        {"a": "x\u2028y", "b": "z", "score": 1},
        {"a": "only here", "b": "z", "score": "nan"},
        {"a": "alone", "score": 1},
    ]
    (tmp_path / "p.jsonl").write_text(
        "\n".join(json.dumps(each, ensure_ascii=False) for each in rows), encoding="utf-8"
    )
    columns = Columns(text="a", pair="b")
    found = load_dataset(tmp_path / "p.jsonl", bert, None, columns, None)
    assert len(found.inputs.samples) == 2 and [(p.a, p.b) for p in found.pairs] == [(0, 1)]
    assert [line.split(": ")[1] for line in found.unreadable] == [
        "no number in column 'score'",
        "no text in column 'b'",
    ]
    with pytest.raises(InputError, match=r"no column 'rated', but a, b, score; name it with --score-column"):
        load_dataset(tmp_path / "p.jsonl", bert, None, Columns(text="a", pair="b", score="rated"), None)
    with pytest.raises(InputError, match=r"no column 'kind'.*--label-column"):
        load_dataset(tmp_path / "p.jsonl", bert, None, Columns(text="a", label="kind"), None)
    gpt2 = Loaded(model=build("gpt2_lm"), kind="text", weights="random (a test)")
    (tmp_path / "t.txt").write_text("\ufeffab\n\nc\ndef\n", encoding="utf-8")
    texts = load_dataset(tmp_path / "t.txt", gpt2, None, Columns(), None)
    assert [len(s.content) for s in texts.inputs.samples] == [2, 3] and "1 tokens, of at least 2" in texts.unreadable[0]


def test_pairs_too_alike_for_a_correlation():
    rows = [row(k, embedding=(1.0, float(k))) for k in range(2)]
    with pytest.raises(InputError, match="1 rated pairs are too few"):
        figures(rows, "pearson", [RatedPair(0, 1, 1.0)], rows, seed=0)


# -- the command ------------------------------------------------------------------------------------------------------


def test_a_folder_with_a_tokenizer_by_the_command(tmp_path, prism_hw):
    """Also: a plan with more segments than a part has tokens is left out, not an error."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "good": 1, "bad": 2, "film": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(tmp_path / "m")
    model = build("bert_classifier")
    model.config.id2label = {0: "up", 1: "down"}
    model.save_pretrained(tmp_path / "m")
    (tmp_path / "d.csv").write_text("text,label\n" + "good film good film,up\nbad film bad bad film,down\n" * 4)
    flags = (
        str(tmp_path / "m"),
        "--data",
        str(tmp_path / "d.csv"),
        "--segments",
        "1,9",
        "--output",
        str(tmp_path / "o"),
    )
    code, shown, errors = prism_hw("evaluate", *flags, "--json")
    assert code == 0, errors
    table = msgspec.json.decode(shown, type=AccuracyTable)
    assert [row.plan.segments for row in table.rows] == [None, None, 1] and table.metric == "top1" and table.n == 8
    assert table.rows[1].agreement == 1 and load_accuracy(tmp_path / "o" / "accuracy.json") == table
    html = (tmp_path / "o" / "index.html").read_text()
    assert "segments 9 exceed the 2 tokens" in html
    assert not re.findall(r'(?:src|href)="(?!#)', re.sub(r"<!DOCTYPE svg[^>]*>", "", html))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--devices", "two"], "2,3,4"),
        (["--devices", "1"], ">= 2"),
        (["--segments", "0"], ">= 1"),
        (["--wires", "fp33"], "fp33"),
        (["--modes", "segment_means"], "--segments"),
        (["--config", "nowhere.toml"], "nowhere.toml"),
        (["--map", "nowhere.json", "--bandwidth", "100Mbps"], "nowhere.json"),
        (["--map", "nowhere.json"], "--bandwidth"),
        (["--tokens", "20"], "--tokens"),
        (["--data", "nowhere.csv"], "nowhere.csv"),
    ],
)
def test_bad_flags_take_one_line(tmp_path, prism_hw, flags, words):
    code, _, errors = prism_hw("evaluate", "fashion-vit", *flags, "--output", str(tmp_path))
    assert code == 2 and words in errors and len(errors.strip().splitlines()) == 1
