"""FLOPs and bytes against the published table, a counted run, and what the codec really makes."""

import csv
from pathlib import Path

import msgspec
import pytest
import torch
from support.cases import build as build_model
from support.cases import inputs
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from prism.nn.codecs import encode, stream_of
from prism.nn.families import adapter_for
from prism.plan import LOCAL, ExecutionPlan, Mode
from prism.spec import ModelSpec
from prism.workload import build, codec

REFERENCE = Path(__file__).parents[2] / "experiments" / "lib" / "published" / "prism_compute_accuracy.csv"
VIT = ModelSpec(
    name="vit_base",
    family="vit",
    blocks=12,
    width=768,
    heads=12,
    mlp_width=3072,
    tokens=197,
    prefix_tokens=1,
    patch_values=768,
    output_width=1000,
)
BERT = ModelSpec(name="bert", family="bert", blocks=12, width=768, heads=12, mlp_width=3072, tokens=256)


def mean_gflops(spec: ModelSpec, plan: ExecutionPlan) -> float:
    graph = build(spec, plan, batch=1)
    return sum(graph.flops(rank) for rank in range(plan.ranks)) / plan.ranks / 1e9


def plan_of(row: dict[str, str]) -> ExecutionPlan:
    rate = float(row["compression_rate"] or 1)
    segments = round(197 / 2 / rate) if row["mode"] == "segment_means" else None
    return ExecutionPlan(mode=Mode(row["mode"]), devices=int(row["devices"]), segments=segments)


def test_published_gflops_and_savings():
    rows = [row for row in csv.DictReader(REFERENCE.open()) if row["fine_tuned"] == "false"]
    local = mean_gflops(VIT, plan_of(rows[0]))
    for row in rows:
        plan = plan_of(row)
        gflops = mean_gflops(VIT, plan)
        assert gflops == pytest.approx(float(row["gflops_per_device"]), abs=0.01)  # the table's own rounding
        if row["compute_saved_pct"]:
            assert 100 * (1 - gflops / local) == pytest.approx(float(row["compute_saved_pct"]), abs=0.03)
        if row["communication_saved_pct"]:
            # the table's CR is 99 / L: the leader's part has 99 of the 197 tokens
            saved = 1 - plan.sent_rows(197)[0] / ExecutionPlan(mode=Mode.FULL, devices=2).sent_rows(197)[0]
            assert 100 * saved == pytest.approx(float(row["communication_saved_pct"]), abs=0.005)
    # 20.37 in the table's own column, 20.36 in its text
    assert mean_gflops(VIT, ExecutionPlan(mode=Mode.FULL, devices=2)) == pytest.approx(20.36, abs=0.01)


def test_bert_headline():
    plan = ExecutionPlan(mode=Mode.SEGMENT_MEANS, devices=2, segments=1)
    full = ExecutionPlan(mode=Mode.FULL, devices=2)
    saved = 1 - mean_gflops(BERT, plan) / mean_gflops(BERT, LOCAL)
    assert 100 * saved == pytest.approx(51.24, abs=0.005)
    rows = build(BERT, plan, 1).block_bytes() / build(BERT, full, 1).block_bytes()
    assert 100 * (1 - rows) == pytest.approx(99.22, abs=0.005)


@pytest.mark.parametrize(
    "family", ["vit", "vit_mean", "vit_post", "vit_registers", "bert_classifier", "gpt2_lm", "llama_lm"]
)
def test_local_gemm_and_attention_flops_are_those_of_a_counted_run(family):
    from support.cases import Case

    model, case = build_model(family), Case(family=family, plan=LOCAL, batch=2)
    spec = adapter_for(model).spec
    call = inputs(case)
    tokens = call["input_ids"].shape[1] if "input_ids" in call else spec.tokens
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**call)
    ours = sum(
        kernel.flops
        for op in build(spec, case.plan, 2, tokens).operations()
        for kernel in op.kernels
        if kernel.op_class in ("gemm", "attention")
    )
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.01)  # a BERT's pooler is not in the graph


@pytest.mark.parametrize("family", ["vit", "llama_lm"])
@pytest.mark.parametrize("segments", [None, 4])
def test_distributed_flops_are_those_of_a_counted_run(family, segments):
    from support.cases import Case, run_rank

    from prism.nn.exchange import run_in_process

    mode = Mode.SEGMENT_MEANS if segments else Mode.FULL
    case = Case(family=family, plan=ExecutionPlan(mode=mode, devices=3, segments=segments), batch=2)
    model, call = build_model(family), inputs(case)
    counted: dict[int, int] = {}

    def body(exchange):
        with FlopCounterMode(display=False) as counter:
            run_rank(case, exchange, model, call)
        counted[exchange.rank] = counter.get_total_flops()

    with sdpa_kernel(SDPBackend.MATH):  # the counter knows no attention kernel of the CPU
        run_in_process(3, body)
    spec = adapter_for(model).spec
    graph = build(spec, case.plan, 2, call["input_ids"].shape[1] if "input_ids" in call else spec.tokens)
    for rank in range(3):
        kernels = [k for op in graph.operations(rank) for k in op.kernels if k.op_class in ("gemm", "attention")]
        assert sum(k.flops for k in kernels) == counted[rank]


def test_a_causal_part_sends_to_later_parts_only():
    spec = ModelSpec(
        name="g", family="gpt2", blocks=2, width=64, heads=4, mlp_width=256, tokens=24, causal=True, head="all"
    )
    graph = build(spec, ExecutionPlan(mode=Mode.FULL, devices=3), 1)
    sends = {op.rank: op.peers for op in graph.operations() if op.kind == "send" and op.block == 0}
    assert sends == {0: (1, 2), 1: (2,)}
    assert graph.block_bytes() == 3 * 8 * 64 * 4


@pytest.mark.parametrize("overlap", [True, False])
def test_overlap_is_an_edge_of_the_graph(overlap):
    nodes = build(VIT, ExecutionPlan(mode=Mode.FULL, devices=2, overlap=overlap), 1).nodes
    assert all(before < place for place, op in enumerate(nodes) for before in op.after)  # so there is no circle
    before: list[set[int]] = []  # places of all that must have finished
    for op in nodes:
        before.append(set(op.after).union(*(before[place] for place in op.after)))

    def place(name: str, kind: str, rank: int) -> int:
        return next(k for k, op in enumerate(nodes) if (op.name, op.kind, op.rank, op.block) == (name, kind, rank, 3))

    sent = place("exchange", "send", 1)
    assert (sent in before[place("project", "compute", 0)]) is not overlap
    assert sent in before[place("attend", "compute", 0)]
    assert nodes[place("exchange", "stage_h2d", 0)].source == 1


@pytest.mark.parametrize("wire", ["delta4", "delta3", "delta2", "delta1"])
@pytest.mark.parametrize("segments", [None, 10])
def test_a_delta_plan_sends_what_the_codec_makes_and_pays_for_its_kernels(wire, segments):
    mode = Mode.SEGMENT_MEANS if segments else Mode.FULL
    plan = ExecutionPlan(mode=mode, devices=2, segments=segments, wire=wire)
    plain = msgspec.structs.replace(plan, wire="fp32")
    rows = plan.sent_rows(VIT.tokens)
    made = sum(encode(wire, torch.randn(2, count, VIT.width)).nbytes for count in rows)
    assert build(VIT, plan, 2).block_bytes() == made
    turns = [2 * count * VIT.width // 128 for count in rows]  # groups of the own rows turned, and of the others back
    extra = 2 * 128 * 128 * sum(turns) * VIT.blocks
    assert build(VIT, plan, 2).flops(0) - build(VIT, plain, 2).flops(0) == extra


@pytest.mark.parametrize("wire", ["delta4", "delta3", "delta2", "delta1"])
def test_the_kernels_of_the_delta_codecs_are_those_that_run(wire):
    """Counted in a second block."""
    shape = (2, 32, 384)
    sender, receiver = stream_of(wire, shape), stream_of(wire, shape)
    for _ in range(2):
        with Counted() as sent:
            payload = sender.encode(torch.randn(shape))
        with Counted() as taken:
            receiver.decode(payload, torch.float32)
    values = torch.Size(shape).numel()
    assert sent.kernels - 1 == len(codec(wire, values))  # randn is the test's own
    assert taken.kernels == len(codec(wire, values, decode=True))


class Counted(TorchDispatchMode):
    """Counts operations that compute, without views and the constant that unpacking shifts by."""

    FREE = ("view", "slice", "unsqueeze", "detach", "expand", "permute", "select", "aten.t.", "arange")

    def __init__(self):
        super().__init__()
        self.kernels = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.kernels += not any(word in str(function) for word in self.FREE)
        return function(*args, **(kwargs or {}))


# -- replicas and stages ------------------------------------------------------------------------------


def flops(model, plan, batch):
    graph = build(model, plan, batch)
    return [graph.flops(rank) for rank in range(plan.ranks)]


@pytest.mark.parametrize("batch", [2, 5])
def test_replicas_and_stages_do_the_local_work_and_no_more(batch):
    local = sum(flops(VIT, LOCAL, batch))
    for plan in (
        ExecutionPlan(mode=Mode.LOCAL, devices=2, replicas=2),
        ExecutionPlan(mode=Mode.LOCAL, devices=3, stages=3),
        ExecutionPlan(mode=Mode.LOCAL, devices=4, stages=2, replicas=2),
        ExecutionPlan(mode=Mode.LOCAL, devices=2, replicas=2, weights=(0.0, 1.0)),
    ):
        assert sum(flops(VIT, plan, batch)) == local, plan
    assert flops(VIT, ExecutionPlan(mode=Mode.LOCAL, devices=2, replicas=2, weights=(0.0, 1.0)), batch)[0] == 0


def test_what_crosses_for_replicas_is_pixels_and_logits():
    graph = build(VIT, ExecutionPlan(mode=Mode.LOCAL, devices=2, replicas=2), 5)
    assert graph.sent_bytes("inputs") == 2 * 3 * 224 * 224
    assert graph.sent_bytes("answer") == 2 * 4 * (VIT.output_width or VIT.width)
    assert graph.sent_bytes("exchange") == graph.sent_bytes("rows") == 0


@pytest.mark.parametrize(("wire", "size"), [("fp32", 4), ("fp16", 2)])
def test_what_crosses_for_stages_is_rows_and_logits(wire, size):
    graph = build(VIT, ExecutionPlan(mode=Mode.LOCAL, devices=3, stages=3, wire=wire), 5)
    assert graph.sent_bytes("rows") == 2 * 5 * VIT.tokens * VIT.width * size
    assert graph.sent_bytes("answer") == 5 * 4 * (VIT.output_width or VIT.width)
