"""The probe suite: every cell is measured, in the same order for a seed, and counted by the workload's rules."""

import itertools
from collections import Counter

import pytest
import torch

from hw.probe.calls import Bench
from hw.probe.cells import ProbeCell, cells
from hw.probe.suite import ProbeConfig, run_probes
from prism.codecs import WIRES, payload_bytes
from prism.plan import LOCAL
from prism.spec import ModelSpec
from prism.workload import attention, build, elementwise, gemm, norm

CPU = torch.device("cpu")
OPS = {"gemm", "attention", "norm", "elementwise", "block", "pack", "unpack", "segment_means"}


@pytest.fixture(scope="module")
def few():
    """A third of the cells, all kinds, none that takes long; the whole suite takes a quarter of a minute."""
    light = [cell for cell in cells(cuda=False) if cell.flops < 5e8]
    return tuple(light[::3])


def test_every_operation_has_cells_and_none_twice():
    every = cells(cuda=False)
    assert {cell.op for cell in every} == OPS
    assert max(Counter(every).values()) == 1
    assert {cell.op for cell in cells(cuda=True)} == OPS | {"d2h", "h2d"}
    codecs = {(cell.op, cell.codec) for cell in every if cell.op in ("pack", "unpack")}
    assert codecs == set(itertools.product(("pack", "unpack"), WIRES))
    asked = {(bool(cell.shape[5]), bool(cell.shape[6])) for cell in every if cell.op == "attention"}
    assert asked == {(False, False), (True, False), (False, True)}


def test_shapes_cover_the_blocks_of_real_models():
    """ViT-Ti to ViT-L, BERT and GPT-2 at batch 1 to 8 lie inside of the grid, so none is extrapolated."""
    shapes = [cell.shape for cell in cells(cuda=False) if cell.op == "gemm"]
    rows, inner, columns = (sorted({shape[axis] for shape in shapes}) for axis in range(3))
    assert rows[0] <= 16 and rows[-1] >= 8 * 600
    assert inner[0] <= 192 and inner[-1] >= 4 * 1024 and columns[-1] >= 4 * 1024
    ratios = {(shape[1] / shape[2]) for shape in shapes}
    assert {1.0, 1 / 3, 1 / 4, 4.0} <= ratios
    blocks = [cell.shape for cell in cells(cuda=False) if cell.op == "block"]
    assert {shape[2] for shape in blocks} >= {192, 1024} and {shape[0] for shape in blocks} >= {1, 8}


def test_work_is_counted_by_the_rules_of_the_workload():
    for cell in cells(cuda=False):
        shape = cell.shape
        if cell.op == "gemm":
            rule = gemm(*shape)
        elif cell.op == "attention":
            rule = attention(shape[2], shape[3], shape[1] * shape[4], shape[0])
        elif cell.op == "norm":
            rule = norm(*shape)
        elif cell.op == "elementwise":
            rule = elementwise(shape[0] * shape[1], shape[2])
        elif cell.op == "segment_means":
            rule = elementwise(shape[0] * shape[1] * shape[2])
        elif cell.op in ("pack", "unpack"):
            values = shape[0] * shape[1]
            assert (cell.flops, cell.bytes) == (0, 4 * values + payload_bytes(cell.codec, values))
            continue
        else:
            continue
        assert (cell.flops, cell.bytes) == (rule.flops, rule.memory_bytes)


def test_a_block_counts_as_in_a_whole_model():
    for cell in [cell for cell in cells(cuda=False) if cell.op == "block"][::5]:
        batch, tokens, width, heads, mlp_width = cell.shape
        spec = dict(name="m", family="vit", width=width, heads=heads, mlp_width=mlp_width, tokens=tokens)
        local = LOCAL
        two, one = (build(ModelSpec(blocks=count, **spec), local, batch).flops(0) for count in (2, 1))
        assert cell.flops == two - one


def test_a_block_is_the_sum_of_its_parts_in_flops():
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    bench = Bench(CPU, 0)
    shape = (2, 40, 192, 3, 768)
    cell = ProbeCell(op="block", shape=shape, flops=0, bytes=0)
    # torch counts no FLOPs of the CPU's fused attention, but those of its parts
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        bench.call(cell)()
    rows = 2 * 40
    parts = [gemm(rows, 192, 576), gemm(rows, 192, 192), gemm(rows, 192, 768), gemm(rows, 768, 192)]
    counted = sum(part.flops for part in parts) + attention(40, 40, 192, 2).flops
    assert counter.get_total_flops() == counted


def test_all_cells_are_measured_in_a_tiny_budget(monkeypatch, few):
    monkeypatch.setattr("hw.probe.suite.cells", lambda cuda: few)
    steps = []
    threads = torch.get_num_threads()
    probes = run_probes(ProbeConfig(budget_s=1e-3), CPU, 1, steps.append)
    measured = [probe for probe in probes if not probe.warmup]
    asked = Counter((cell.op, cell.shape, cell.codec) for cell in few)
    assert Counter((probe.op, probe.shape, probe.codec) for probe in measured) == asked
    assert {(probe.op, probe.shape, probe.codec) for probe in probes if probe.warmup} == set(asked)
    assert all(probe.rank == 1 and probe.end_ns > probe.start_ns for probe in probes)
    assert all(before.end_ns <= after.start_ns for before, after in itertools.pairwise(probes))
    assert len(steps) == len(few) and all(step.done <= step.total for step in steps)
    assert torch.get_num_threads() == threads


def test_a_larger_budget_gives_more_repeats_in_an_order_of_the_seed(monkeypatch, few):
    monkeypatch.setattr("hw.probe.suite.cells", lambda cuda: few[:12])
    monkeypatch.setattr("hw.probe.suite.MOST_ROUNDS", 3)

    def order(seed):
        probes = run_probes(ProbeConfig(budget_s=600, seed=seed), CPU, 0, lambda step: None)
        return [(probe.op, probe.shape, probe.codec) for probe in probes if not probe.warmup]

    first = order(1)
    assert len(first) == 36 and first == order(1) and first != order(2)
    rounds = [first[:12], first[12:24], first[24:]]
    assert all(set(visited) == set(first) for visited in rounds) and rounds[0] != rounds[1]
