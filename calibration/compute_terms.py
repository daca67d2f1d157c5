"""Fit the seconds of compute steps, from traces and probes: a non-negative linear model with relative weights.

    step = gemm FLOPs * a + attention FLOPs * b + s memory bytes * c + kernels * d + block * e
           + exchanged * f + moved bytes * g

s is 1 for one rank alone and 1 + together.slowdown for several, which share a memory. That is the step of prism.cost
for a device that launches and works one after the other (overlap.power 1), as a CPU does. A kernel counts with its
FLOPs and its bytes (roofline.power 1) or with the larger side alone (0), whichever fits better. Medians come first,
then relative weights, as in alpha_beta: each step weighs by its share of the batch, and each probe as a cell. How far
ranks beside each other lie apart (together.spread) comes from the same spans, beyond what the model explains.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar, nnls

from prism.cost import normal_scores
from prism.errors import ConfigError
from prism.plan import LOCAL
from prism.spec import ModelSpec
from prism.trace import Probe, Trace, TraceHeader
from prism.trace.metrics import pace_ms
from prism.workload import Kernel, Operation, WorkloadGraph, build

GEMM, ATTENTION, MEMORY = "gemm.s_per_flop", "attention.s_per_flop", "memory.s_per_byte"
SLOWDOWN = "together.slowdown"
LINEAR = (GEMM, ATTENTION, MEMORY, "kernel.fixed_s", "block.fixed_s", "exchange.fixed_s", "exchange.s_per_byte")
TERMS = (*LINEAR, SLOWDOWN)
SUMMED = {"gemm": GEMM, "attention": ATTENTION}  # the term of a kernel's FLOPs, by its class
ROOFLINE = "roofline.power"  # 1: a kernel's FLOPs and bytes add up, 0: the larger side counts; the better one is kept
# Blocks that are timed over and over run from warm caches: the factor is fitted, between
HOT = (0.7, 1.1)
TIED = -0.97  # correlation of two terms' estimates below which the data hardly tell them apart
ROOFLINE_ROUNDS = 4  # which kernels are bound by memory settles in two or three
# A rank's block is fitted as a whole: the link decides on which of its steps the core's work for an exchange falls
MERGED = {"compress": "block", "project": "block", "attend": "block"}
Array = NDArray[np.float64]


class ComputeStep(NamedTuple):
    """One kind of step of one cell.

    block, exchanged: whether it carries the fixed cost of a block, and of an exchange. seconds: median of each visit.
    times: how often a batch has it. together: whether other ranks worked beside it. moved: bytes of the block's
    exchange that passed through this host. model: as the traces name it; a probe has a shape instead.
    """

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
    """List every compute step of some traces; the visits of a cell count as repeats.

    usual_ms: the pace that every visit is scaled to, by its own pace (prism.trace.metrics.pace_ms).
    Raises ConfigError where a trace's model has no specification.
    """
    visits: dict[tuple[str, int, str], list[float]] = defaultdict(list)
    headers: dict[str, TraceHeader] = {}
    for trace in traces:
        header = trace.header
        if header.model not in models:
            raise ConfigError(f"traces of {header.model}: no specification of it was given; add one")
        cell = f"{header.model} B={header.batch} {header.plan} {header.link if header.plan.ranks > 1 else ''}"
        headers[cell] = header
        paces = pace_ms(trace) if usual_ms else {}
        for (rank, op), seconds in _medians(trace, models[header.model].blocks).items():
            visits[cell, rank, op].append(seconds * (usual_ms / paces[rank] if usual_ms else 1.0))
    return [
        _step(models[headers[cell].model], headers[cell], cell, rank, op, tuple(seconds))
        for (cell, rank, op), seconds in visits.items()
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
        kernels=tuple(kernel for operation in _operations(graph, rank, op) for kernel in operation.kernels),
        times=model.blocks if op == "block" else 1,
        together=together,
        moved=graph.moved_bytes(rank) if op == "block" else 0,
        model=header.model,
    )


def _receives(graph: WorkloadGraph, rank: int) -> bool:
    """Say whether a rank needs rows of others in a block: the first part of a causal model doesn't."""
    return any(op.kind == "stage_h2d" and op.block == 0 for op in graph.operations(rank))


def steps_of_probes(probes: Iterable[Probe]) -> list[ComputeStep]:
    """List whole blocks of many shapes, each timed alone (prism-hw probe); a timed repeat counts as a visit.

    The other micro-benchmarks run from warm caches, so their times do not sum to a block's.
    """
    repeats: dict[tuple[int, ...], list[float]] = defaultdict(list)
    for probe in probes:
        if probe.op == "block" and not probe.warmup:
            repeats[probe.shape].append((probe.end_ns - probe.start_ns) / 1e9 / probe.calls)
    return [_probed(shape, tuple(seconds)) for shape, seconds in repeats.items()]


def _probed(shape: tuple[int, ...], seconds: tuple[float, ...]) -> ComputeStep:
    batch, tokens, width, heads, mlp_width = shape
    model = ModelSpec(
        name="block", family="vit", blocks=1, width=width, heads=heads, mlp_width=mlp_width, tokens=tokens
    )
    graph = build(model, LOCAL, batch)
    return ComputeStep(
        cell=f"block {shape}",
        op="block",
        shape=shape,
        block=True,
        exchanged=False,
        seconds=seconds,
        times=1,
        together=False,
        kernels=tuple(kernel for operation in _operations(graph, 0, "block") for kernel in operation.kernels),
    )


def features(step: ComputeStep, values: Mapping[str, float]) -> dict[str, float]:
    """Compute what the cost model multiplies each of LINEAR by.

    values: of terms, to say on which side of the roofline a kernel stands; without them matrix products and attention
    are bound by FLOPs.
    """
    sums = dict.fromkeys((GEMM, ATTENTION, MEMORY), 0.0)
    for kernel in step.kernels:
        of_flops = SUMMED.get(kernel.op_class)
        if values.get(ROOFLINE):
            sums[MEMORY] += kernel.memory_bytes
            if of_flops:
                sums[of_flops] += kernel.flops
        elif of_flops and kernel.memory_bytes * values.get(MEMORY, 0.0) <= kernel.flops * values.get(of_flops, 1.0):
            sums[of_flops] += kernel.flops
        else:
            sums[MEMORY] += kernel.memory_bytes
    return {
        **sums,
        "kernel.fixed_s": len(step.kernels),
        "block.fixed_s": float(step.block),
        "exchange.fixed_s": float(step.exchanged),
        "exchange.s_per_byte": step.moved,
    }


def _operations(graph: WorkloadGraph, rank: int, op: str) -> list[Operation]:
    computing = [operation for operation in graph.operations(rank) if operation.kind == "compute"]
    return [operation for operation in computing if MERGED.get(operation.name, operation.name) == op]


def _medians(trace: Trace, blocks: int) -> dict[tuple[int, str], float]:
    """Sum up what a rank computed for a step in one block, in seconds; take the median over batches and blocks."""
    measured = {batch.batch for batch in trace.measured}
    sums: dict[tuple[int, str], dict[tuple[int, int], float]] = defaultdict(lambda: defaultdict(float))
    for span in trace.spans:
        if span.kind == "compute" and span.batch in measured and span.op != "prepare":
            op = MERGED.get(span.op, span.op)
            sums[span.rank, op][span.batch, span.block] += (span.end_ns - span.start_ns) / 1e9
    return {key: float(np.median(list(values.values()))) for key, values in sums.items()}


def seconds_of(step: ComputeStep, values: Mapping[str, float]) -> float:
    """Compute a step's seconds by the cost model."""
    factors = features(step, values)
    slowdown = 1.0 + values[SLOWDOWN] * step.together
    return sum(values[name] * (slowdown if name == MEMORY else 1.0) * factors[name] for name in LINEAR)


def ranks_apart(
    traces: Iterable[Trace], models: Mapping[str, ModelSpec], values: Mapping[str, float]
) -> tuple[float, float]:
    """Estimate how far ranks beside each other lie apart in a block, beyond what their shares of the work explain.

    Returns the standard deviation of a rank's logarithm, from the distance of the slowest to their mean, and the
    variance of that estimate's own logarithm. The distance is a mean over the blocks and batches of a trace, whose
    times add up; the estimate is the median of the traces.
    """
    deviations: list[float] = []
    for trace in traces:
        header, model = trace.header, models[trace.header.model]
        ranks = header.plan.ranks
        if ranks == 1:
            continue
        expected = [math.log(seconds_of(_step(model, header, "", rank, "block", ()), values)) for rank in range(ranks)]
        logs = _blocks(trace, model.blocks, ranks) - expected
        if len(logs):
            apart = float(np.mean(np.max(logs, axis=1) - np.mean(logs, axis=1)))
            deviations.append(apart / normal_scores(ranks)[-1])
    middle = float(np.median(deviations)) if deviations else 0.0
    if not middle:
        return 0.0, 0.0
    relative = 1.4826 * float(np.median(np.abs(np.array(deviations) - middle))) / middle
    return middle, math.pi / 2 * relative**2 / len(deviations)


def _blocks(trace: Trace, blocks: int, ranks: int) -> Array:
    """Logarithms of the seconds that each rank computed, [blocks of measured batches, ranks]."""
    measured = {batch.batch for batch in trace.measured}
    sums: dict[tuple[int, int], Array] = defaultdict(lambda: np.zeros(ranks))
    for span in trace.spans:
        if span.kind == "compute" and span.batch in measured and 0 <= span.block < blocks:
            sums[span.batch, span.block][span.rank] += (span.end_ns - span.start_ns) / 1e9
    whole = [seconds for seconds in sums.values() if seconds.all()]
    return np.log(np.array(whole).reshape(-1, ranks))


def fit_compute_terms(steps: Sequence[ComputeStep]) -> dict[str, float]:
    """Fit TERMS and roofline.power to the median of each step's visits.

    Raises ConfigError with fewer steps than terms.
    """
    if len(steps) < len(TERMS):
        raise ConfigError(f"{len(steps)} steps for {len(TERMS)} terms; measure more batches or models")
    seconds = np.array([float(np.median(step.seconds)) for step in steps])
    summed, summed_misfit = _solved(_design(steps, {ROOFLINE: 1.0}), seconds)
    larger: dict[str, float] = {}
    larger_misfit = 0.0
    for _ in range(ROOFLINE_ROUNDS):
        larger, larger_misfit = _solved(_design(steps, larger), seconds)
    summed_is_better = summed_misfit < larger_misfit
    return {**(summed if summed_is_better else larger), ROOFLINE: float(summed_is_better)}


class _Design(NamedTuple):
    """Steps as arrays of [steps], the same for every resampling of their seconds.

    features: [steps, LINEAR]. times: how often a batch has each. cells: the number of its cell.
    together: whether others worked beside it. probed: whether it is a probe.
    """

    features: Array
    times: Array
    cells: NDArray[np.int64]
    together: NDArray[np.bool_]
    probed: NDArray[np.bool_]


def _design(steps: Sequence[ComputeStep], values: Mapping[str, float]) -> _Design:
    numbers = {cell: number for number, cell in enumerate(dict.fromkeys(step.cell for step in steps))}
    rows = [features(step, values) for step in steps]
    return _Design(
        features=np.array([[row[name] for name in LINEAR] for row in rows]),
        times=np.array([float(step.times) for step in steps]),
        cells=np.array([numbers[step.cell] for step in steps]),
        together=np.array([step.together for step in steps]),
        probed=np.array([bool(step.shape) for step in steps]),
    )


def _weighted(design: _Design, seconds: Array) -> tuple[Array, Array]:
    """Weight the design: relative seconds for one unit of a term, [steps, TERMS], and the weights, [steps]."""
    share = design.times * seconds
    weight = np.sqrt(share / np.bincount(design.cells, share)[design.cells])
    linear = design.features * (weight / seconds)[:, None]
    separable = not design.together.all()  # else nothing tells the slowdown from the slope
    slowdown = linear[:, LINEAR.index(MEMORY)] * (design.together & separable)
    return np.column_stack([linear, slowdown]), weight


def tied(steps: Sequence[ComputeStep]) -> list[tuple[str, str]]:
    """List pairs of terms that these steps hardly tell apart: only the sum of their effects is known.

    The error of each alone is larger than its bootstrap says.
    """
    design, _ = _weighted(
        _design(steps, fit_compute_terms(steps)), np.array([float(np.median(step.seconds)) for step in steps])
    )
    scale = np.linalg.norm(design, axis=0)
    present = np.flatnonzero(scale)
    scaled = design[:, present] / scale[present]
    spread = np.linalg.pinv(scaled.T @ scaled)
    deviation = np.sqrt(np.diag(spread))
    pairs = np.argwhere(np.triu(spread / np.outer(deviation, deviation) < TIED))
    return [(TERMS[present[a]], TERMS[present[b]]) for a, b in pairs]


def _solved(design: _Design, seconds: Array) -> tuple[dict[str, float], float]:
    """Solve for the values of TERMS. Returns them with the misfit."""
    weighted, weight = _weighted(design, seconds)

    def solved(hot: float) -> tuple[Array, float]:
        stretched = np.where(design.probed[:, None], hot * weighted, weighted)
        scale = np.linalg.norm(stretched, axis=0)
        scale[scale == 0] = 1.0
        coefficients, misfit = nnls(stretched / scale, weight)
        return coefficients / scale, float(misfit)

    mixed = design.probed.any() and not design.probed.all()
    hot = minimize_scalar(lambda h: solved(h)[1], bounds=HOT, method="bounded").x if mixed else 1.0
    coefficients, misfit = solved(hot)
    values = dict(zip(TERMS, map(float, coefficients), strict=True))
    values[SLOWDOWN] = values[SLOWDOWN] / values[MEMORY] if values[MEMORY] else 0.0
    return values, misfit


def relative_covariance(steps: Sequence[ComputeStep], draws: int = 200, seed: int = 0) -> Array:
    """Covariance of the relative deviations of TERMS, [TERMS, TERMS], by a bootstrap of whole visits.

    Noise comes in bursts, and a sweep visits every cell before any again, so a draw takes the same visits of all cells.
    A term that is 0 in the fit has none. Deviations are clipped to 1: a term that may as well be 0 or twice as large is
    unknown.
    """
    rng = np.random.default_rng(seed)
    visits = max(len(step.seconds) for step in steps)
    seconds = np.array([[step.seconds[v % len(step.seconds)] for v in range(visits)] for step in steps])
    estimate = fit_compute_terms(steps)
    middle, design = np.array([estimate[name] for name in TERMS]), _design(steps, estimate)

    def drawn() -> list[float]:
        values, _ = _solved(design, np.median(seconds[:, rng.integers(0, visits, visits)], axis=1))
        return [values[name] for name in TERMS]

    drawn_values = np.array([drawn() for _ in range(draws)])
    present = middle > 0
    deviations = np.zeros_like(drawn_values)
    deviations[:, present] = np.clip(drawn_values[:, present] / middle[present] - 1, -1, 1)
    return np.asarray(np.cov(deviations.T))
