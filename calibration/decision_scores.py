"""Pair distributed cells with the local cell of their workload; find their break-evens, and score choices."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from prism.cost import Tag
from prism.errors import ConfigError
from prism.labels import plan_label, short
from prism.perfmap import Cell, PerformanceMap
from prism.perfmap.crossover import Crossover, CrossoverKind, crossing, crossover, lines
from prism.trace.quantiles import quantile


class Guess(msgspec.Struct, frozen=True, kw_only=True):
    """A cell as predicted by a profile.

    draws: milliseconds of each draw of terms and scatter, the same draws in all cells. host_share: per cent by which
    the latency grows where the machine is one per cent slower; None in older files.
    """

    ms: float
    draws: tuple[float, ...]
    split_ms: dict[str, float]
    tag: Tag
    outside: tuple[str, ...]
    host_share: float | None = None

    def slowed(self, slowness: float) -> "Guess":
        """Adapt the guess to a machine that takes `slowness` times as long for what it computes."""
        factor = slowness ** (self.host_share or 0.0)
        draws = tuple(factor * ms for ms in self.draws)
        return msgspec.structs.replace(self, ms=factor * self.ms, draws=draws)


class DecisionPair(msgspec.Struct, frozen=True, kw_only=True):
    """A distributed cell and the local one. excess: distributed over local, less 1. p_wins: share of draws below 0."""

    cell: str
    model: str
    batch: int
    plan: str
    bandwidth_mbps: float | None
    measured_excess: float
    predicted_excess: float
    p_wins: float
    near_tie: bool

    @property
    def right(self) -> bool:
        """Whether prediction and measurement prefer the same plan."""
        return (self.measured_excess < 0) == (self.predicted_excess < 0)


class BreakEven(msgspec.Struct, frozen=True, kw_only=True):
    """One break-even, measured and predicted."""

    model: str
    plan: str
    axis: str
    held: str
    measured: CrossoverKind
    measured_at: float | None
    predicted: CrossoverKind
    predicted_at: float | None
    near_tie: bool

    @property
    def log2(self) -> float | None:
        """Of predicted over measured; None unless both are at a value."""
        if self.measured_at is None or self.predicted_at is None:
            return None
        return math.log2(self.predicted_at / self.measured_at)


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """Scores of a rule that decides: accuracy outside of near ties, and regret over all pairs (latency lost)."""

    decision_accuracy_pct: float | None
    regret_mean_pct: float
    regret_p95_pct: float


def distances(evens: Sequence[BreakEven]) -> list[float]:
    """List |log2| of the break-evens in bandwidth that are at a value in both maps."""
    return [abs(e.log2) for e in evens if e.log2 is not None and e.axis == "bandwidth_mbps"]


class MeasuredPairs(NamedTuple):
    """A map, arranged for comparisons.

    twins: indices of each distributed cell and of the local cell of its workload. lines: where the better plan changes,
    with the indices of each line's pairs of cells.
    """

    map: PerformanceMap
    twins: list[tuple[int, int]]
    lines: list[tuple[Crossover, list[tuple[int, int]]]]


def measured_of(measured: PerformanceMap) -> MeasuredPairs:
    """Pair the cells of a map. Raises ConfigError without a pair."""
    place = {id(cell): index for index, cell in enumerate(measured.cells)}
    twins = [
        (index, place[id(local)])
        for index, cell in enumerate(measured.cells)
        if cell.plan.ranks > 1 and (local := measured.local(cell.workload)) is not None
    ]
    if not twins:
        raise ConfigError(
            "no workload has both a local and a distributed cell, so that nothing can be compared; measure modes = "
            '["local", "full"] of one model and batch'
        )
    changes = [
        (crossover(axis, line), [(place[id(cell)], place[id(local)]) for cell, local in line])
        for axis, line in lines(measured)
        if len(line) > 1
    ]
    return MeasuredPairs(measured, twins, changes)


def pairs_of(measured: MeasuredPairs, guesses: Sequence[Guess]) -> list[DecisionPair]:
    """Compare measured and predicted pairs. guesses: one for each of the map's cells, in order."""
    cells = measured.map.cells
    return [_pair(cells[a], cells[b], guesses[a], guesses[b]) for a, b in measured.twins]


def _pair(cell: Cell, local: Cell, guess: Guess, alone: Guess) -> DecisionPair:
    wins = np.array(guess.draws) < np.array(alone.draws)
    return DecisionPair(
        cell=cell.label,
        model=cell.model,
        batch=cell.batch,
        plan=plan_label(cell.plan),
        bandwidth_mbps=cell.bandwidth_mbps,
        near_tie=cell.within_noise(local),
        measured_excess=cell.latency_ms.p50 / local.latency_ms.p50 - 1,
        predicted_excess=guess.ms / alone.ms - 1,
        p_wins=float(wins.mean()) if len(wins) else float(guess.ms < alone.ms),
    )


def break_evens_of(measured: MeasuredPairs, guesses: Sequence[Guess]) -> list[BreakEven]:
    """Find the break-evens of the map's lines, and of the same lines with predicted latencies."""
    evens = []
    for ours, places in measured.lines:
        kind, at, _ = crossing(ours.measured, [guesses[a].ms / guesses[b].ms - 1 for a, b in places])
        evens.append(
            BreakEven(
                model=short(ours.model),
                plan=plan_label(ours.plan),
                axis=ours.axis,
                held=_held(ours),
                measured=ours.kind,
                measured_at=ours.at,
                predicted=kind,
                predicted_at=at,
                near_tie=ours.near_tie,
            )
        )
    return evens


def _held(line: Crossover) -> str:
    if line.axis == "bandwidth_mbps":
        return f"B={line.batch}"
    return f"{(line.link.rate_bps or 0) / 1e6:g} Mbps"


def rule_of(pairs: Sequence[DecisionPair], distribute: Sequence[bool]) -> Rule:
    """Score a choice for each pair."""
    clear = [
        choice == (pair.measured_excess < 0)
        for pair, choice in zip(pairs, distribute, strict=True)
        if not pair.near_tie
    ]
    lost = [regret(pair.measured_excess, choice) for pair, choice in zip(pairs, distribute, strict=True)]
    return rule_from(clear, lost)


def rule_from(clear: Sequence[bool], lost: Sequence[float]) -> Rule:
    """Score a rule. clear: whether each decision outside of near ties was right. lost: regret of all decisions."""
    return Rule(
        decision_accuracy_pct=100 * float(np.mean(clear)) if clear else None,
        regret_mean_pct=100 * float(np.mean(lost)),
        regret_p95_pct=100 * quantile(lost, 95),
    )


def regret(excess: float, distribute: bool) -> float:
    """Compute latency over the better one's, less 1. excess: of distributed over local."""
    ratio = 1 + excess
    return (ratio if distribute else 1.0) / min(ratio, 1.0) - 1
