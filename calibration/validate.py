"""Compare predictions with measurements: errors, decisions, break-evens, intervals, and simpler rules.

A pair is one distributed cell and the local cell of its workload; the decision is which of the two to run. A pair is a
near tie where either measured median lies within the other's spread: noise decides it, and it is counted apart.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec
import numpy as np

from calibration.decision_scores import (
    BreakEven,
    DecisionPair,
    Guess,
    MeasuredPairs,
    Rule,
    break_evens_of,
    distances,
    measured_of,
    pairs_of,
    rule_from,
    rule_of,
)
from calibration.noise_floor import Perfect, perfect
from calibration.trace_checks import visits_apart
from prism.cost import CalibratedProfile, Tag
from prism.perfmap import Cell, PerformanceMap
from prism.plan import LOCAL
from prism.spec import ModelSpec
from prism.trace import KINDS
from prism.trace.quantiles import quantiles
from prism.workload import build

INTERVAL = (5.0, 95.0)


class CellComparison(msgspec.Struct, frozen=True, kw_only=True):
    """A cell, measured and predicted.

    split_pct: predicted less measured of each span kind of the leader, in per cent of the measured latency.
    """

    cell: str
    model: str
    mode: str
    batch: int
    bandwidth_mbps: float | None
    measured_ms: float
    spread_ms: tuple[float, float]
    predicted_ms: float
    interval_ms: tuple[float, float]
    error_pct: float
    split_pct: dict[str, float]
    tag: Tag
    outside: tuple[str, ...]

    @property
    def covered(self) -> bool:
        """Whether the measured latency lies in the interval."""
        return self.interval_ms[0] <= self.measured_ms <= self.interval_ms[1]

    @property
    def reason(self) -> str:
        """List the span kinds that the error consists of, the largest first."""
        parts = sorted(self.split_pct.items(), key=lambda part: -abs(part[1]))
        return ", ".join(f"{kind} {value:+.0f} %" for kind, value in parts if abs(value) >= 1) or "within 1 %"


class Scores(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of a comparison.

    measurement_noise_pct: mean distance of a visit's median from its cell's, below which no prediction can go by much.
    visits_apart: see trace_checks. best_plan: regret where one of all measured plans of a workload and link is chosen.
    crossover_log2_median: over break-evens in bandwidth that both maps have. crossover_classes_right: how many of all
    agree in kind. perfect: what a prediction without error would score (noise_floor).
    """

    cells: int
    latency_mape_pct: float
    mape_by_mode_pct: dict[str, float]
    mape_by_model_pct: dict[str, float]
    bias_by_mode_pct: dict[str, float]
    difference_bias_pct: float
    difference_mae_pct: float
    measurement_noise_pct: float
    visits_apart: float | None
    pairs: int
    near_tie_cells: int
    prism: Rule
    best_plan: Rule
    crossover_log2_median: float | None
    crossovers_at_both: int
    crossover_classes_right: tuple[int, int]
    coverage90_pct: float
    brier: float
    extrapolated_cells: int
    baselines: dict[str, Rule]
    perfect: Perfect | None = None


class ComparisonReport(msgspec.Struct, frozen=True, kw_only=True):
    """A comparison, cell by cell and in figures.

    paced: scores of the same predictions at the pace that the machine had at each cell, instead of the pace of its
    calibration. slowness: ratio of the two, of the median cell. Both None where either pace wasn't timed.
    """

    scores: Scores
    rows: tuple[CellComparison, ...]
    pairs: tuple[DecisionPair, ...]
    break_evens: tuple[BreakEven, ...]
    paced: Scores | None = None
    slowness: float | None = None


def compared(
    profile: CalibratedProfile,
    measured: PerformanceMap,
    guesses: Sequence[Guess],
    models: dict[str, ModelSpec],
    reference: PerformanceMap | None = None,
) -> ComparisonReport:
    """Compare a profile's guesses with a map.

    guesses: one for each of the map's cells, in order. reference: a map of the profiled models, for the rules that
    learn from them. Raises ConfigError without a pair.
    """
    paired = measured_of(measured)
    rules = _rules(paired, pairs_of(paired, guesses), models, reference)
    visits = [np.log(cell.visit_p50_ms) for cell in measured.cells]
    report = _judged(paired, guesses, rules, perfect(paired, visits))
    paced = profile.pace_ms and all(cell.pace_ms for cell in measured.cells)
    if not paced or any(guess.host_share is None for guess in guesses):
        return report
    slowness = [profile.slowness(cell.pace_ms) for cell in measured.cells]
    slowed = [guess.slowed(times) for guess, times in zip(guesses, slowness, strict=True)]
    level = [
        logs - (guess.host_share or 0.0) * np.log(np.array(cell.visit_pace_ms) / cell.pace_ms)
        for logs, guess, cell in zip(visits, guesses, measured.cells, strict=True)
    ]
    scores = _judged(paired, slowed, rules, perfect(paired, level)).scores
    return msgspec.structs.replace(report, paced=scores, slowness=float(np.median(slowness)))


def _judged(
    measured: MeasuredPairs, guesses: Sequence[Guess], baselines: dict[str, Rule], flawless: Perfect | None
) -> ComparisonReport:
    rows = [_row(cell, guess) for cell, guess in zip(measured.map.cells, guesses, strict=True)]
    pairs, evens = pairs_of(measured, guesses), break_evens_of(measured, guesses)
    scores = _scores(measured.map, rows, pairs, evens, baselines, guesses, flawless)
    return ComparisonReport(scores=scores, rows=tuple(rows), pairs=tuple(pairs), break_evens=tuple(evens))


def _row(cell: Cell, guess: Guess) -> CellComparison:
    ms = cell.latency_ms.p50
    low, high = quantiles(guess.draws, *INTERVAL) if guess.draws else (guess.ms, guess.ms)
    return CellComparison(
        cell=cell.label,
        model=cell.model,
        mode=cell.plan.mode.value,
        batch=cell.batch,
        bandwidth_mbps=cell.bandwidth_mbps,
        measured_ms=ms,
        spread_ms=cell.spread_ms,
        predicted_ms=guess.ms,
        interval_ms=(min(float(low), guess.ms), max(float(high), guess.ms)),
        error_pct=100 * (guess.ms / ms - 1),
        split_pct={kind: 100 * (guess.split_ms[kind] - cell.split_ms[kind]) / ms for kind in KINDS},
        tag=guess.tag,
        outside=guess.outside,
    )


def _rules(
    measured: MeasuredPairs,
    pairs: Sequence[DecisionPair],
    models: dict[str, ModelSpec],
    reference: PerformanceMap | None,
) -> dict[str, Rule]:
    rules = {
        "always local": rule_of(pairs, [False] * len(pairs)),
        "always distributed": rule_of(pairs, [True] * len(pairs)),
    }
    if reference is not None:
        profiled = [
            (cell, cell.latency_ms.p50 / local.latency_ms.p50 - 1, _gflops(cell, models))
            for cell in reference.cells
            if cell.plan.ranks > 1 and (local := reference.local(cell.workload)) is not None
        ]
        cells = [measured.map.cells[index] for index, _ in measured.twins]
        least = _threshold([(flops, excess) for _, excess, flops in profiled])
        rules["FLOP threshold"] = rule_of(pairs, [_gflops(cell, models) >= least for cell in cells])
        rules["nearest profiled model"] = rule_of(pairs, [_nearest(cell, profiled, models) < 0 for cell in cells])
    return rules


def _gflops(cell: Cell, models: dict[str, ModelSpec]) -> float:
    return _local_gflops(models[cell.model], cell.batch, cell.tokens)


@functools.cache
def _local_gflops(model: ModelSpec, batch: int, tokens: int) -> float:
    """GFLOPs of a batch on one device; every plan of a workload asks for them."""
    return build(model, LOCAL, batch, tokens).flops(0) / 1e9


def _threshold(profiled: Sequence[tuple[float, float]]) -> float:
    """Find the GFLOPs above which distributing is right most often on the profiled models."""
    steps = [*sorted({flops for flops, _ in profiled}), math.inf]
    return max(steps, key=lambda least: sum((flops >= least) == (excess < 0) for flops, excess in profiled))


def _nearest(cell: Cell, profiled: Sequence[tuple[Cell, float, float]], models: dict[str, ModelSpec]) -> float:
    """Look up the excess of the profiled cell nearest in logarithms of FLOPs, bandwidth and bytes.

    One of the same mode and codec goes first.
    """
    flops = _gflops(cell, models)

    def distance(other: tuple[Cell, float, float]) -> float:
        theirs = other[0]
        kind = (theirs.plan.mode, theirs.plan.wire) != (cell.plan.mode, cell.plan.wire)
        rate = math.log((theirs.bandwidth_mbps or 1) / (cell.bandwidth_mbps or 1))
        size = math.log(theirs.bytes_per_exchange / cell.bytes_per_exchange)
        return 100.0 * kind + abs(math.log(other[2] / flops)) + abs(rate) + abs(size)

    return min(profiled, key=distance)[1]


def _best_plan(measured: PerformanceMap, guesses: Sequence[Guess]) -> Rule:
    """Score the choice among all plans of a workload at one link, local included."""
    right, lost = [], []
    lines = {(cell.workload, cell.link) for cell in measured.cells if cell.plan.ranks > 1}
    for workload, link in lines:
        options = [
            (guess.ms, cell.latency_ms.p50)
            for cell, guess in zip(measured.cells, guesses, strict=True)
            if cell.workload == workload and (cell.plan.ranks == 1 or cell.link == link)
        ]
        best, chosen = min(ms for _, ms in options), min(options)[1]
        right.append(chosen == best)
        lost.append(chosen / best - 1)
    return rule_from(right, lost)


def _by(
    rows: Sequence[CellComparison], key: Literal["mode", "model"], value: Callable[[float], float]
) -> dict[str, float]:
    names = sorted({getattr(row, key) for row in rows})
    return {n: float(np.mean([value(r.error_pct) for r in rows if getattr(r, key) == n])) for n in names}


def _scores(
    measured: PerformanceMap,
    rows: Sequence[CellComparison],
    pairs: Sequence[DecisionPair],
    evens: Sequence[BreakEven],
    baselines: dict[str, Rule],
    guesses: Sequence[Guess],
    flawless: Perfect | None,
) -> Scores:
    off = [100 * (pair.predicted_excess - pair.measured_excess) for pair in pairs]
    logs = distances(evens)
    noise = [
        abs(ms / cell.latency_ms.p50 - 1) for cell in measured.cells for ms in cell.visit_p50_ms if cell.visits > 1
    ]
    won = [(pair.p_wins - (pair.measured_excess < 0)) ** 2 for pair in pairs]
    return Scores(
        cells=len(rows),
        latency_mape_pct=float(np.mean([abs(row.error_pct) for row in rows])),
        mape_by_mode_pct=_by(rows, "mode", abs),
        mape_by_model_pct=_by(rows, "model", abs),
        bias_by_mode_pct=_by(rows, "mode", float),
        difference_bias_pct=float(np.mean(off)),
        difference_mae_pct=float(np.mean(np.abs(off))),
        measurement_noise_pct=100 * float(np.mean(noise)) if noise else math.nan,
        visits_apart=visits_apart(measured.cells),
        pairs=len(pairs),
        near_tie_cells=sum(pair.near_tie for pair in pairs),
        prism=rule_of(pairs, [pair.predicted_excess < 0 for pair in pairs]),
        best_plan=_best_plan(measured, guesses),
        crossover_log2_median=float(np.median(logs)) if logs else None,
        crossovers_at_both=len(logs),
        crossover_classes_right=(sum(e.measured == e.predicted for e in evens), len(evens)),
        coverage90_pct=100 * float(np.mean([row.covered for row in rows])),
        brier=float(np.mean(won)),
        extrapolated_cells=sum(row.tag == "extrapolated" for row in rows),
        baselines=baselines,
        perfect=flawless,
    )
