"""One body over every Exchange: full exchange is the local model, whatever the split."""

import msgspec
import pytest
import torch
from support import cases
from support.cases import FAMILIES, VITS, Case, in_process, relative_error

from prism.nn.distribute import distribute
from prism.nn.exchange import run_in_process
from prism.plan import ExecutionPlan, Mode

TEXT = [family for family in FAMILIES if family not in VITS]
EXACT = 1e-4


@pytest.fixture(params=["in_process", "gloo"])
def run(request):
    return in_process if request.param == "in_process" else request.getfixturevalue("gloo")


def full(**fields) -> ExecutionPlan:
    return ExecutionPlan(mode=Mode.FULL, **fields)


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("devices", [1, 2, 3, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_full_exchange_is_the_local_model(run, family, devices, batch):
    case = Case(family=family, plan=full(devices=devices), batch=batch)
    assert relative_error(case, run(case)) < EXACT


@pytest.mark.parametrize(
    ("weights", "batch", "embed"), [((2.0, 1.0), 1, "terminal"), ((1.0, 3.0, 2.0), 8, "each"), ((1.0, 5.0), 8, "each")]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_uneven_splits_and_batches(run, family, weights, batch, embed):
    plan = full(devices=len(weights), weights=weights, embed=embed)
    case = Case(family=family, plan=plan, batch=batch)
    assert relative_error(case, run(case)) < EXACT


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("embed", ["terminal", "each"])
@pytest.mark.parametrize("family", TEXT)
def test_padded_texts(run, family, embed, padding):
    case = Case(family=family, plan=full(devices=3, embed=embed), batch=4, padding=padding)
    assert relative_error(case, run(case)) < EXACT


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("family", ["vit", "bert_classifier"])
def test_ring_with_uneven_parts(run, family, overlap):
    plan = full(devices=3, weights=(1.0, 2.0, 3.0), collective="ring", overlap=overlap)
    case = Case(family=family, plan=plan)
    assert relative_error(case, run(case)) < EXACT


EVEN = [(family, "") for family in ("vit_mean_no_class", "vit_map")]  # images have no padding
EVEN += [(family, padding) for family in ("bert", "gpt2_lm", "llama_lm") for padding in ("", "right", "left")]


@pytest.mark.parametrize(("family", "padding"), EVEN)
@pytest.mark.parametrize("devices", [2, 4])
def test_segment_means_with_l_of_the_part_are_exact(run, family, devices, padding):
    tokens = 16 if family in VITS else 24  # split evenly: L = n_p for every part at once
    plan = ExecutionPlan(mode=Mode.SEGMENT_MEANS, devices=devices, segments=tokens // devices)
    case = Case(family=family, plan=plan, padding=padding, tokens=tokens)
    assert relative_error(case, run(case)) < EXACT


@pytest.mark.parametrize("segments", [1, 2, 5])
@pytest.mark.parametrize("family", ["gpt2_lm", "llama_lm"])
def test_part_0_of_a_causal_model_is_exact_for_any_l(run, family, segments):
    plan = ExecutionPlan(mode=Mode.SEGMENT_MEANS, devices=3, segments=segments)
    case = Case(family=family, plan=plan)
    first = slice(0, plan.partition(cases.TOKENS).sizes[0])
    ours, theirs = run(case), cases.local(case)
    assert (ours[:, first] - theirs[:, first]).abs().max() / theirs.abs().max() < EXACT
    assert (ours - theirs).abs().max() > 1e-3  # and the later parts are an approximation


@torch.no_grad()
@pytest.mark.parametrize("devices", [2, 3])
def test_the_first_token_alone_is_in_no_mean(devices):
    """Where all tokens but the first are alike, means of them are exact, and one that takes in the first is not."""
    whole = cases.build("bert")
    whole.embeddings.position_embeddings.weight.copy_(torch.ones(64))
    ids = torch.tensor([[5] + [7] * 22, [9] + [3] * 22])

    def error(mode):
        plan = ExecutionPlan(mode=mode, devices=devices, segments=2)

        def body(exchange):
            model = distribute(whole, plan, exchange)
            return cases.main_tensor(model(input_ids=ids)) if exchange.rank == 0 else model.follow()

        out = run_in_process(devices, torch.no_grad()(body))[0]
        theirs = cases.main_tensor(whole(input_ids=ids))
        return float((out - theirs).abs().max() / theirs.abs().max())

    assert error(Mode.FIRST_AND_MEANS) < EXACT
    assert error(Mode.SEGMENT_MEANS) > 1e-3


@pytest.mark.parametrize("wire", ["fp16", "int8", "int4", "int2", "delta4", "delta2"])
def test_a_codec_changes_the_answer_by_as_much_as_it_should(run, wire):
    case = Case(family="vit", plan=full(devices=2, wire=wire))
    error = relative_error(case, run(case))
    limits = {
        "fp16": (1e-6, 2e-3),
        "int8": (1e-5, 2e-2),
        "int4": (1e-3, 0.3),
        "int2": (1e-2, 2.0),
        "delta4": (1e-3, 0.5),
        "delta2": (1e-2, 2.0),
    }
    assert limits[wire][0] < error < limits[wire][1]


SAME = {
    "padded means": Case(
        family="bert", padding="right", batch=3, plan=ExecutionPlan(mode=Mode.SEGMENT_MEANS, devices=3, segments=2)
    ),
    "first alone, padded": Case(
        family="llama_lm", padding="left", batch=3, plan=ExecutionPlan(mode=Mode.FIRST_AND_MEANS, devices=3, segments=3)
    ),
    "causal, padded": Case(family="gpt2_lm", padding="left", batch=3, plan=full(devices=4)),
    "ring, uneven": Case(family="vit", plan=full(devices=3, weights=(1.0, 2.0, 3.0), collective="ring", overlap=False)),
}


@pytest.mark.parametrize("wire", ["fp32", "int4", "delta3", "delta1"])
@pytest.mark.parametrize("name", SAME)
def test_both_exchanges_give_the_same_bits(gloo, name, wire):
    case = SAME[name]
    case = msgspec.structs.replace(case, plan=msgspec.structs.replace(case.plan, wire=wire))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert torch.equal(gloo(case), in_process(case))
    finally:
        torch.set_num_threads(threads)


def test_prediction_starts_anew_with_each_batch():
    """What was sent for one batch is nothing to the next: the same case twice in one group gives the same bits."""
    case = Case(family="bert", plan=full(devices=2, wire="delta2"))
    whole, call = cases.build(case.family), cases.inputs(case)

    def twice(exchange):
        model = distribute(whole, case.plan, exchange)
        with torch.no_grad():
            if exchange.rank == 0:
                return [cases.main_tensor(model(**call)) for _ in range(2)]
            return [model.follow() for _ in range(2)]

    first, second = run_in_process(2, twice)[0]
    assert torch.equal(first, second)
