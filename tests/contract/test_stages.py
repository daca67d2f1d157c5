"""A pipeline is the local model, in every family, wherever it is cut; over any Exchange."""

import pytest
import torch
from support import cases
from support.cases import FAMILIES, HEADS, VITS, Case, in_process, relative_error

from prism.errors import UnsupportedModelError
from prism.nn.distribute import distribute
from prism.nn.exchange import run_in_process
from prism.plan import ExecutionPlan, Mode

TEXT = [family for family in FAMILIES if family not in VITS]
EXACT, COMBINED = 1e-6, 1e-4


@pytest.fixture(params=["in_process", "gloo"])
def run(request):
    return in_process if request.param == "in_process" else request.getfixturevalue("gloo")


def stages(count: int, **fields) -> ExecutionPlan:
    return ExecutionPlan(mode=Mode.LOCAL, devices=count, stages=count, **fields)


@pytest.mark.parametrize("count", [2, 3])  # the models have three blocks
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(run, family, count):
    case = Case(family=family, plan=stages(count), batch=3)
    assert relative_error(case, run(case)) < EXACT


@pytest.mark.parametrize("fields", [dict(), dict(padding="left"), dict(padding="right")], ids=["", "left", "right"])
@pytest.mark.parametrize("family", HEADS)
def test_every_other_head(run, family, fields):
    if fields and family == "GPT2DoubleHeadsModel":
        pytest.skip("its padding is refused")
    case = Case(family=family, plan=stages(3, microbatch=2), batch=3, **fields)
    assert relative_error(case, run(case)) < EXACT


@pytest.mark.parametrize("family", ["vit", "bert_classifier", "gpt2_lm"])
def test_four_stages_of_which_the_first_has_no_blocks(run, family):
    case = Case(family=family, plan=stages(4, boundaries=(0, 1, 2)), batch=3)
    assert relative_error(case, run(case)) < EXACT


@pytest.mark.parametrize("microbatch", [1, 2, 3])
@pytest.mark.parametrize("batch", range(1, 10))
@pytest.mark.parametrize("family", ["vit", "bert_lm"])
def test_every_batch_and_microbatch(family, batch, microbatch):
    case = Case(family=family, plan=stages(2, microbatch=microbatch), batch=batch)
    assert relative_error(case, in_process(case)) < EXACT


@pytest.mark.parametrize(("count", "weights"), [(2, (2.0, 1.0)), (2, (0.0, 1.0)), (3, (1.0, 2.0, 3.0))])
@pytest.mark.parametrize("family", ["vit", "llama_lm"])
def test_blocks_go_by_weight(run, family, count, weights):
    case = Case(family=family, plan=stages(count, weights=weights), batch=2)
    assert relative_error(case, run(case)) < EXACT


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("family", TEXT)
def test_padded_texts(run, family, padding):
    case = Case(family=family, plan=stages(2, microbatch=2), batch=5, padding=padding)
    assert relative_error(case, run(case)) < EXACT


@pytest.mark.parametrize("plan", [dict(mode=Mode.FULL), dict(mode=Mode.LOCAL, replicas=2)], ids=["parts", "replicas"])
@pytest.mark.parametrize("padding", ["", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_two_by_two(run, family, padding, plan):
    if padding and family in VITS:
        pytest.skip("images have no padding")
    case = Case(family=family, plan=ExecutionPlan(devices=4, stages=2, **plan), batch=3, padding=padding)
    assert relative_error(case, run(case)) < COMBINED


@pytest.mark.parametrize("family", ["vit", "bert_lm"])
def test_several_batches_may_be_under_way(run, family):
    case = Case(family=family, plan=stages(2), batch=3, under_way=5)
    assert relative_error(case, run(case)) < EXACT


@pytest.mark.parametrize(("wire", "least", "most"), [("fp16", 1e-6, 2e-3), ("int8", 1e-5, 3e-2), ("int4", 1e-3, 0.5)])
def test_rows_between_stages_cross_in_the_codec(run, wire, least, most):
    case = Case(family="vit", plan=stages(2, wire=wire))
    assert least < relative_error(case, run(case)) < most


@torch.no_grad()
@pytest.mark.parametrize("family", ["bert_lm", "gpt2", "llama_lm"])
def test_the_output_is_the_models_own_also_the_second_time(family):
    model, call = cases.build(family), cases.inputs(Case(family=family, plan=stages(2), batch=3))

    def body(exchange):
        wrapped = distribute(model, stages(2), exchange)
        if exchange.rank:
            return [wrapped.follow() for _ in range(2)]
        return [wrapped(**call), wrapped(**call)]

    expected = model(**call)
    for ours in run_in_process(2, body)[0]:
        assert type(ours) is type(expected) and list(ours) == list(expected)
        for name in expected:
            torch.testing.assert_close(ours[name], expected[name])


SPLIT = [stages(2), ExecutionPlan(mode=Mode.LOCAL, devices=2, replicas=2)]


@torch.no_grad()
@pytest.mark.parametrize("plan", SPLIT, ids=["stages", "replicas"])
@pytest.mark.parametrize("family", ["gpt2_lm", "llama_lm"])
def test_tokens_that_a_tensor_names_are_those_of_every_sample(family, plan):
    model, call = cases.build(family), cases.inputs(Case(family=family, plan=plan, batch=3))
    kept = [torch.tensor(tokens) for tokens in ([3, 1, 0], [5], [4, 22])]  # as many as samples, and other layouts

    def body(exchange):
        wrapped = distribute(model, plan, exchange)
        if exchange.rank:
            return [wrapped.follow() for _ in kept]
        return [wrapped(**call, logits_to_keep=tokens) for tokens in kept]

    for tokens, ours in zip(kept, run_in_process(2, body)[0], strict=True):
        torch.testing.assert_close(ours.logits, model(**call).logits[:, tokens])


@pytest.mark.parametrize("plan", SPLIT, ids=["stages", "replicas"])
def test_a_loss_is_refused_before_anything_is_sent(plan):
    model, call = cases.build("gpt2_lm"), cases.inputs(Case(family="gpt2_lm", plan=plan, batch=3))

    def body(exchange):
        if exchange.rank == 0:
            wrapped = distribute(model, plan, exchange)
            with pytest.raises(UnsupportedModelError, match=r"argument labels asks for a loss over all 3 samples"):
                wrapped(**call, labels=call["input_ids"])
            wrapped.stop()
            return True
        return distribute(model, plan, exchange).follow()

    assert run_in_process(2, body) == [True, False]  # the first message that comes is the stop
