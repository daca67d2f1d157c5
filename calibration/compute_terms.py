"""Seconds of compute steps from traces and probes: one relative-weighted, non-negative line over the cost model's terms.

    step = gemm FLOPs * a + attention FLOPs * b + s memory bytes * c + kernels * d + block * e
           + exchanged * f + moved bytes * g

with s = 1 for one rank alone and 1 + together.slowdown for several, which share a memory. That is prism.cost's step for a device that
launches and works one after the other (overlap.power 1), as a CPU does. A kernel counts with its FLOPs and its bytes
(roofline.power 1) or with the larger side alone (0), whichever fits better. Medians come first, then relative weights
(see docs of alphabeta.py), each step weighing by its share of the batch, each probe as a cell. How far ranks beside
each other lie apart (together.spread) is read off the same spans, beyond what the line explains.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar, nnls

from prism.cost import normal_scores
from prism.errors import ConfigError
from prism.plan import ExecutionPlan, Mode
from prism.spec import ModelSpec
from prism.trace import Probe, Trace, TraceHeader
from prism.trace.metrics import pace_ms
from prism.workload import Kernel, Operation, WorkloadGraph, build

TERMS = (
    "gemm.s_per_flop",
    "attention.s_per_flop",
    "memory.s_per_byte",
    "kernel.fixed_s",
    "block.fixed_s",
    "exchange.fixed_s",
    "exchange.s_per_byte",
    "together.slowdown",
)
MEMORY = TERMS.index("memory.s_per_byte")
ROOFLINE = "roofline.power"  # 1: FLOPs and bytes by turns, 0: the larger side; fit() decides
# A block timed over and over finds its weights and rows in caches, a model's doesn't: by how much is fitted along
HOT = (0.7, 1.1)
TIED = -0.97  # correlation of two terms' estimates from which on the data hardly tell them apart
ROOFLINE_ROUNDS = 4  # which kernels are bound by memory settles in two or three
# A rank's block is fitted as a whole: what an exchange costs the core falls on its steps as the link has it
MERGED = {"compress": "block", "project": "block", "attend": "block"}
Array = NDArray[np.float64]


class ComputeStep(NamedTuple):
    """One kind of step of one cell: its kernels, whether it carries a block's and an exchange's fixed cost, the
    seconds of each visit's median, how often a batch has it, whether other ranks worked beside it, and the bytes that
    the block's exchange moved through this host. model: as the traces name it; of a probe there is a shape instead."""

    cell: str
    op: str
    kernels: tuple[Kernel, ...]
    block: bool
    exchanged: bool
    seconds: tuple[float, ...]
    times: int
    together: bool
    moved: int = 0
    model: str = ""
    shape: tuple[int, ...] = ()


def steps_of(
    traces: Iterable[Trace], models: Mapping[str, ModelSpec], usual_ms: float | None = None
) -> list[ComputeStep]:
    """Every compute step of some traces; the visits of a cell count as repeats. usual_ms: a pace (prism.trace.metrics.pace_ms) that
    every visit's seconds are brought to by its own. Raises ConfigError where a trace's model has no specification."""
    found: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    headers: dict[str, TraceHeader] = {}
    for trace in traces:
        header = trace.header
        if header.model not in models:
            raise ConfigError(f"traces of {header.model}: no specification of it was given; add one")
        cell = f"{header.model} B={header.batch} {header.plan} {header.link if header.plan.ranks > 1 else ''}"
        headers[cell] = header
        paces = pace_ms(trace) if usual_ms else {}
        for (rank, op), seconds in _medians(trace, models[header.model].blocks).items():
            found[cell, rank, op].append(seconds * (usual_ms / paces[rank] if usual_ms else 1.0))
    return [
        _step(models[headers[cell].model], headers[cell], cell, rank, op, tuple(seconds))
        for (cell, rank, op), seconds in found.items()
    ]


def _step(
    model: ModelSpec, header: TraceHeader, cell: str, rank: int, op: str, seconds: tuple[float, ...]
) -> ComputeStep:
    together = header.plan.ranks > 1
    graph = build(msgspec.structs.replace(model, blocks=1), header.plan, header.batch, header.tokens)
    return ComputeStep(
        cell=cell,
        op=op,
        block=op == "block",
        exchanged=op == "block" and _receives(graph, rank),
        seconds=seconds,
        kernels=tuple(kernel for each in _operations(graph, rank, op) for kernel in each.kernels),
        times=model.blocks if op == "block" else 1,
        together=together,
        moved=graph.moved_bytes(rank) if op == "block" else 0,
        model=header.model,
    )


def _receives(graph: WorkloadGraph, rank: int) -> bool:
    """Whether a rank goes on from rows of others in a block: the first part of a causal model doesn't."""
    return any(op.kind == "stage_h2d" and op.block == 0 for op in graph.operations(rank))


def steps_of_probes(probes: Iterable[Probe]) -> list[ComputeStep]:
    """Whole blocks of many shapes, timed alone (prism-hw probe); the other operations are timed too hot to add up to
    a block. A timed repeat counts as a visit."""
    found: dict[tuple[int, ...], list[float]] = defaultdict(list)
    for probe in probes:
        if probe.op == "block" and not probe.warmup:
            found[probe.shape].append((probe.end_ns - probe.start_ns) / 1e9 / probe.calls)
    return [_probed(shape, tuple(seconds)) for shape, seconds in found.items()]


def _probed(shape: tuple[int, ...], seconds: tuple[float, ...]) -> ComputeStep:
    batch, tokens, width, heads, mlp_width = shape
    model = ModelSpec(
        name="block", family="vit", blocks=1, width=width, heads=heads, mlp_width=mlp_width, tokens=tokens
    )
    graph = build(model, ExecutionPlan(mode=Mode.LOCAL), batch)
    return ComputeStep(
        cell=f"block {shape}",
        op="block",
        shape=shape,
        block=True,
        exchanged=False,
        seconds=seconds,
        times=1,
        together=False,
        kernels=tuple(kernel for each in _operations(graph, 0, "block") for kernel in each.kernels),
    )


def features(step: ComputeStep, known: Mapping[str, float]) -> tuple[float, ...]:
    """What the cost model multiplies its terms by, in the order of TERMS without the last. known: values that say
    on which side of the roofline a kernel stands; without them matrix products and attention are bound by FLOPs."""
    sums = {"gemm": 0.0, "attention": 0.0, "memory": 0.0}
    for kernel in step.kernels:
        if known.get(ROOFLINE):
            sums["memory"] += kernel.memory_bytes
            if kernel.op_class in sums:
                sums[kernel.op_class] += kernel.flops
            continue
        slope = known.get(f"{kernel.op_class}.s_per_flop", 1.0)
        bound = kernel.op_class not in sums or kernel.memory_bytes * known.get(TERMS[2], 0.0) > kernel.flops * slope
        sums["memory" if bound else kernel.op_class] += kernel.memory_bytes if bound else kernel.flops
    return (*sums.values(), len(step.kernels), float(step.block), float(step.exchanged), step.moved)


def _operations(graph: WorkloadGraph, rank: int, op: str) -> list[Operation]:
    mine = [each for each in graph.operations(rank) if each.kind == "compute"]
    return [each for each in mine if MERGED.get(each.name, each.name) == op]


def _medians(trace: Trace, blocks: int) -> dict[tuple[int, str], float]:
    """Seconds of a step: the median over batches and blocks of what a rank computed for it in one of them."""
    measured = {batch.batch for batch in trace.measured}
    sums: dict[tuple[int, str], dict[tuple[int, int], float]] = defaultdict(lambda: defaultdict(float))
    for span in trace.spans:
        if span.kind == "compute" and span.batch in measured and span.op != "prepare":
            op = MERGED.get(span.op, span.op)
            sums[span.rank, op][span.batch, span.block] += (span.end_ns - span.start_ns) / 1e9
    return {key: float(np.median(list(values.values()))) for key, values in sums.items()}


def seconds_of(step: ComputeStep, values: Mapping[str, float]) -> float:
    """What the cost model has for a step."""
    slowdown = 1.0 + values[TERMS[-1]] * step.together
    factors = (values[name] * (slowdown if name == TERMS[MEMORY] else 1.0) for name in TERMS[:-1])
    return sum(factor * value for factor, value in zip(factors, features(step, values), strict=True))


def ranks_apart(
    traces: Iterable[Trace], models: Mapping[str, ModelSpec], values: Mapping[str, float]
) -> tuple[float, float]:
    """How far ranks beside each other lie apart in a block beyond what their shares of the work explain: the deviation of
    a rank's logarithm, from the slowest's distance to their mean, and the variance of its own logarithm. On average
    over the blocks and batches of a trace, which add up; the median of the traces."""
    found: list[float] = []
    for trace in traces:
        header, model = trace.header, models[trace.header.model]
        ranks = header.plan.ranks
        if ranks == 1:
            continue
        expected = [math.log(seconds_of(_step(model, header, "", rank, "block", ()), values)) for rank in range(ranks)]
        logs = _blocks(trace, model.blocks, ranks) - expected
        if len(logs):
            apart = float(np.mean(np.max(logs, axis=1) - np.mean(logs, axis=1)))
            found.append(apart / normal_scores(ranks)[-1])
    middle = float(np.median(found)) if found else 0.0
    if not middle:
        return 0.0, 0.0
    return middle, math.pi / 2 * (1.4826 * float(np.median(np.abs(np.array(found) - middle))) / middle) ** 2 / len(
        found
    )


def _blocks(trace: Trace, blocks: int, ranks: int) -> Array:
    """[blocks of measured batches, ranks]: logarithms of the seconds that each rank computed."""
    measured = {batch.batch for batch in trace.measured}
    sums: dict[tuple[int, int], Array] = defaultdict(lambda: np.zeros(ranks))
    for span in trace.spans:
        if span.kind == "compute" and span.batch in measured and 0 <= span.block < blocks:
            sums[span.batch, span.block][span.rank] += (span.end_ns - span.start_ns) / 1e9
    whole = [each for each in sums.values() if each.all()]
    return np.log(np.array(whole).reshape(-1, ranks))


def fit(steps: Sequence[ComputeStep]) -> dict[str, float]:
    """Values of TERMS and of roofline.power, from the median of each step's visits. Raises ConfigError with fewer
    steps than terms."""
    if len(steps) < len(TERMS):
        raise ConfigError(f"{len(steps)} steps for {len(TERMS)} terms; measure more batches or models")
    seconds = np.array([float(np.median(step.seconds)) for step in steps])
    summed = _solved(_design(steps, {ROOFLINE: 1.0}), seconds)
    larger: tuple[dict[str, float], float] = ({}, 0.0)
    for _ in range(ROOFLINE_ROUNDS):
        larger = _solved(_design(steps, larger[0]), seconds)
    power = float(summed[1] < larger[1])
    return {**(summed if power else larger)[0], ROOFLINE: power}


class _Design(NamedTuple):
    """Steps as arrays of [steps]: their features, how often a batch has each, its cell, who worked beside it, and
    which are probes. The same for every resampling of their seconds."""

    features: Array
    times: Array
    cells: NDArray[np.int64]
    together: NDArray[np.bool_]
    probed: NDArray[np.bool_]


def _design(steps: Sequence[ComputeStep], known: Mapping[str, float]) -> _Design:
    numbers = {cell: number for number, cell in enumerate(dict.fromkeys(step.cell for step in steps))}
    return _Design(
        features=np.array([features(step, known) for step in steps]),
        times=np.array([float(step.times) for step in steps]),
        cells=np.array([numbers[step.cell] for step in steps]),
        together=np.array([step.together for step in steps]),
        probed=np.array([bool(step.shape) for step in steps]),
    )


def _weighted(known: _Design, seconds: Array) -> tuple[Array, Array]:
    """[steps, TERMS] of relative seconds for one unit of a term, and the weights of the steps."""
    share = known.times * seconds
    weight = np.sqrt(share / np.bincount(known.cells, share)[known.cells])
    design = known.features * (weight / seconds)[:, None]
    told = not known.together.all()  # else nothing tells the slowdown from the slope
    return np.column_stack([design, design[:, MEMORY] * (known.together & told)]), weight


def tied(steps: Sequence[ComputeStep]) -> list[tuple[str, str]]:
    """Pairs of terms that these steps hardly tell apart: what one gets, the other lacks, so that only what they come to
    together is known, and the error of each alone is larger than its bootstrap says."""
    design, _ = _weighted(_design(steps, fit(steps)), np.array([float(np.median(s.seconds)) for s in steps]))
    scale = np.linalg.norm(design, axis=0)
    told = np.flatnonzero(scale)
    spread = np.linalg.pinv((design[:, told] / scale[told]).T @ (design[:, told] / scale[told]))
    deviation = np.sqrt(np.diag(spread))
    pairs = np.argwhere(np.triu(spread / np.outer(deviation, deviation) < TIED))
    return [(TERMS[told[a]], TERMS[told[b]]) for a, b in pairs]


def _solved(known: _Design, seconds: Array) -> tuple[dict[str, float], float]:
    """Values of TERMS, and the misfit."""
    design, weight = _weighted(known, seconds)
    probed = known.probed

    def solved(hot: float) -> tuple[Array, float]:
        stretched = np.where(probed[:, None], hot * design, design)
        scale = np.linalg.norm(stretched, axis=0)
        scale[scale == 0] = 1.0
        found, misfit = nnls(stretched / scale, weight)
        return found / scale, float(misfit)

    mixed = probed.any() and not probed.all()
    hot = minimize_scalar(lambda h: solved(h)[1], bounds=HOT, method="bounded").x if mixed else 1.0
    found, misfit = solved(hot)
    found[-1] = found[-1] / found[MEMORY] if found[MEMORY] else 0.0
    return dict(zip(TERMS, map(float, found), strict=True)), misfit


def covariance(steps: Sequence[ComputeStep], draws: int = 200, seed: int = 0) -> Array:
    """Of the relative deviations of TERMS, by a bootstrap of whole visits: noise comes in bursts. The visits of a draw
    are the same in all cells, since a sweep visits every cell before any again. A term that is 0 in
    the fit has none. Deviations end at one: a term that may as well be 0 or twice as large is not known at all."""
    rng = np.random.default_rng(seed)
    visits = max(len(step.seconds) for step in steps)
    seconds = np.array([[step.seconds[v % len(step.seconds)] for v in range(visits)] for step in steps])
    sides = fit(steps)
    middle, design = np.array([sides[name] for name in TERMS]), _design(steps, sides)

    def drawn() -> list[float]:
        return list(_solved(design, np.median(seconds[:, rng.integers(0, visits, visits)], axis=1))[0].values())

    values = np.array([drawn() for _ in range(draws)])
    known = middle > 0
    off = np.zeros_like(values)
    off[:, known] = np.clip(values[:, known] / middle[known] - 1, -1, 1)
    return np.asarray(np.cov(off.T))
