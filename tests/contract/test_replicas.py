"""Data parallel is the local model, in every family, whatever the shares; over any Exchange."""

import pytest
import torch
from support import cases
from support.cases import FAMILIES, VITS, Case, in_process, relative_error

from prism.errors import UnsupportedModelError
from prism.nn.distribute import distribute
from prism.nn.exchange import run_in_process
from prism.plan import ExecutionPlan, Mode

TEXT = [family for family in FAMILIES if family not in VITS]
EXACT, COMBINED = 1e-6, 1e-4


@pytest.fixture(params=["in_process", "gloo"])
def run(request):
    return in_process if request.param == "in_process" else request.getfixturevalue("gloo")


def replicas(count: int, **fields) -> ExecutionPlan:
    return ExecutionPlan(mode=Mode.LOCAL, devices=count, replicas=count, **fields)


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(run, family, count):
    case = Case(family=family, plan=replicas(count), batch=5)
    assert relative_error(case, run(case)) < EXACT


@pytest.mark.parametrize("batch", range(1, 10))
@pytest.mark.parametrize("family", ["vit", "bert_classifier", "llama_lm"])
def test_every_batch_also_one_smaller_than_the_replicas(family, batch):
    case = Case(family=family, plan=replicas(4), batch=batch)
    assert relative_error(case, in_process(case)) < EXACT


@pytest.mark.parametrize("weights", [(3.0, 1.0), (0.0, 1.0), (0.0, 2.0, 1.0)])
@pytest.mark.parametrize("embed", ["terminal", "each"])
@pytest.mark.parametrize("family", ["vit", "bert", "gpt2_lm"])
def test_uneven_shares_down_to_none_for_the_leader(run, family, embed, weights):
    case = Case(family=family, plan=replicas(len(weights), weights=weights, embed=embed), batch=4)
    assert relative_error(case, run(case)) < EXACT


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("family", TEXT)
def test_padded_texts(run, family, padding):
    case = Case(family=family, plan=replicas(3), batch=4, padding=padding)
    assert relative_error(case, run(case)) < EXACT


@pytest.mark.parametrize("embed", ["terminal", "each"])
@pytest.mark.parametrize("family", FAMILIES)
def test_replicas_of_two_parts(run, family, embed):
    case = Case(family=family, plan=ExecutionPlan(mode=Mode.FULL, devices=4, replicas=2, embed=embed), batch=3)
    assert relative_error(case, run(case)) < COMBINED


@pytest.mark.parametrize(("weights", "microbatch"), [((1.0, 1.0), 1), ((0.0, 1.0), 2), ((1.0, 1.0, 2.0), 3)])
@pytest.mark.parametrize("family", ["vit", "bert_lm"])
def test_answers_may_leave_one_after_another(run, family, weights, microbatch):
    case = Case(family=family, plan=replicas(len(weights), weights=weights, microbatch=microbatch), batch=7)
    assert relative_error(case, run(case)) < EXACT


@torch.no_grad()
@pytest.mark.parametrize("weights", [None, (0.0, 1.0)])
@pytest.mark.parametrize("family", ["bert_lm", "gpt2", "llama_lm"])
def test_the_output_is_the_models_own_also_the_second_time(family, weights):
    model, call = cases.build(family), cases.inputs(Case(family=family, plan=replicas(2), batch=3))

    def body(exchange):
        wrapped = distribute(model, replicas(2, weights=weights), exchange)
        if exchange.rank:
            return [wrapped.follow() for _ in range(3)]
        return [wrapped(**call), wrapped(**call), wrapped(**call, return_dict=False)]

    first, second, plain = run_in_process(2, body)[0]
    expected = model(**call)
    assert type(first) is type(expected) and list(first) == list(expected)
    assert isinstance(plain, tuple) and len(plain) == len(expected)
    for name in expected:
        torch.testing.assert_close(first[name], expected[name])
        torch.testing.assert_close(second[name], expected[name])


@torch.no_grad()
def test_an_argument_that_cannot_be_split_is_refused_before_anything_is_sent():
    model = cases.build("bert")
    ids = torch.ones(4, 8, dtype=torch.long)

    def body(exchange):
        wrapped = distribute(model, replicas(2), exchange)
        if exchange.rank:
            return not wrapped.follow()
        with pytest.raises(UnsupportedModelError, match="attention_mask has 2 rows for 4 samples"):
            wrapped(input_ids=ids, attention_mask=torch.ones(2, 8))
        wrapped.stop()
        return True

    assert run_in_process(2, body) == [True, True]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("plan", [dict(weights=(0.0, 1.0)), dict(), dict(embed="each")], ids=str)
@pytest.mark.parametrize("family", ["vit", "bert_lm"])
def test_several_batches_may_be_under_way(run, family, plan, batch):
    case = Case(family=family, plan=replicas(2, **plan), batch=batch, under_way=5)
    assert relative_error(case, run(case)) < EXACT
