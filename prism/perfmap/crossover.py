"""Find where the better plan changes in a performance map, and whether two maps agree."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import msgspec

from prism.link import LinkSpec
from prism.perfmap.map import Cell, PerformanceMap
from prism.plan import ExecutionPlan
from prism.trace import TraceSource

CrossoverKind = Literal["at", "never", "always"]
MapAxis = Literal["bandwidth_mbps", "batch"]
Rivals = tuple[Cell, Cell]  # a distributed cell and the local one of its case
WHOLE = 5  # visits up to which a spread is their whole range


class Crossover(msgspec.Struct, frozen=True, kw_only=True):
    """Where a distributed plan becomes as fast as local along one axis, the other one held.

    axis: "bandwidth_mbps" holds `batch`, "batch" holds the link's rate.
    kind: whether distributed is "never" or "always" faster at the measured values, or from `at` on.
    at: the last crossing towards distributed, else the last one; null unless kind is "at".
    crossings: all of them, more than one only where noise or a real effect reverses the order.
    ties: measured values where the two are within their noise.
    """

    source: TraceSource
    model: str
    tokens: int
    plan: ExecutionPlan
    axis: MapAxis
    batch: int | None
    link: LinkSpec
    kind: CrossoverKind
    at: float | None
    crossings: tuple[float, ...]
    measured: tuple[float, ...]
    ties: tuple[float, ...]

    @property
    def near_tie(self) -> bool:
        """Whether noise may move the answer: a measured value next to it is a tie; of never and always, any value."""
        if self.at is None:
            return bool(self.ties)
        below = max(value for value in self.measured if value <= self.at)
        above = min(value for value in self.measured if value >= self.at)
        return bool({below, above} & set(self.ties))


def ratio(cell: Cell, local: Cell) -> float:
    """Latency over that of the local cell: below 1 the cell is faster."""
    return cell.latency_ms.p50 / local.latency_ms.p50


def any_rate(link: LinkSpec) -> LinkSpec:
    """The link without its rate: cells that differ in rate alone lie on one line."""
    return msgspec.structs.replace(link, rate_bps=None)


def crossovers(map_: PerformanceMap) -> tuple[Crossover, ...]:
    """The crossover of every line of a map."""
    return tuple(crossover(axis, line) for axis, line in lines(map_))


def lines(map_: PerformanceMap) -> list[tuple[MapAxis, list[Rivals]]]:
    """Lines of every distributed plan: over the bandwidth at each batch, over the batch at each rate, ascending.

    Cells whose case has no local cell, or whose link has no set rate, lie on no line.
    """
    pairs = [
        (cell, local)
        for cell in map_.cells
        if cell.bandwidth_mbps is not None and (local := map_.local(cell.workload)) is not None
    ]
    return [
        *_along("bandwidth_mbps", pairs, lambda c: (c.workload, c.plan, any_rate(c.link))),
        *_along("batch", pairs, lambda c: (c.source, c.model, c.tokens, c.plan, c.link)),
    ]


def _along(
    axis: MapAxis, pairs: Sequence[Rivals], key: Callable[[Cell], Any]
) -> Iterator[tuple[MapAxis, list[Rivals]]]:
    groups: dict[Any, list[Rivals]] = defaultdict(list)
    for pair in pairs:
        groups[key(pair[0])].append(pair)
    for line in groups.values():
        yield axis, sorted(line, key=lambda pair: getattr(pair[0], axis))


def crossover(axis: MapAxis, line: Sequence[Rivals]) -> Crossover:
    """The crossover of one ascending line."""
    values = tuple(float(getattr(cell, axis)) for cell, _ in line)
    kind, at, crossings = crossing(values, [ratio(cell, local) - 1 for cell, local in line])
    first = line[0][0]
    return Crossover(
        source=first.source,
        model=first.model,
        tokens=first.tokens,
        plan=first.plan,
        axis=axis,
        batch=first.batch if axis == "bandwidth_mbps" else None,
        link=any_rate(first.link) if axis == "bandwidth_mbps" else first.link,
        kind=kind,
        at=at,
        crossings=crossings,
        measured=values,
        ties=tuple(v for v, (cell, local) in zip(values, line, strict=True) if cell.within_noise(local)),
    )


def crossing(values: Sequence[float], excess: Sequence[float]) -> tuple[CrossoverKind, float | None, tuple[float, ...]]:
    """Find where `excess` (distributed over local, less 1) changes its sign.

    Interpolates linearly in the logarithm of the ascending values. Returns the kind, the value to name, and all
    crossings. Where the simulator can be asked between two values, sim/ask/bisection.py searches instead.
    """
    signs: list[tuple[float, bool]] = []
    for k in range(len(values) - 1):
        before, after = excess[k], excess[k + 1]
        if (before < 0) != (after < 0):
            share = before / (before - after)
            value = values[k] * math.exp(share * math.log(values[k + 1] / values[k]))
            signs.append((min(value, values[k + 1]), after < 0))
    if not signs:
        return ("always" if excess[0] < 0 else "never"), None, ()
    named = [value for value, wins in signs if wins] or [value for value, _ in signs]
    return "at", named[-1], tuple(value for value, _ in signs)


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One cell of two maps.

    relative: the second median over the first, less 1.
    agrees: either median lies within the other's spread.
    """

    cell: str
    first_ms: float
    second_ms: float
    relative: float
    first_spread_ms: tuple[float, float]
    second_spread_ms: tuple[float, float]
    agrees: bool


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Two maps cell by cell, the largest relative difference first.

    share: of the common cells that agree; null without any.
    share_by_chance: expected share for two runs between which nothing changed.
    same: at least as many cells agree as in 97.5 % of such runs. Both null where a cell has more than five visits,
    because its spread is then cut.
    only_first, only_second: cells that the other map lacks.
    machines: facts in which the machines differ.
    """

    differences: tuple[Difference, ...]
    share: float | None
    share_by_chance: float | None
    same: bool | None
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    machines: tuple[str, ...]


def compare_maps(first: PerformanceMap, second: PerformanceMap) -> Comparison:
    """Compare the medians of two maps, each within the other's spread."""
    from scipy.stats import binom  # here: scipy takes half of the time that prism-sim needs to start

    ours, theirs = ({_key(cell): cell for cell in map_.cells} for map_ in (first, second))
    both = [(cell, theirs[key]) for key, cell in ours.items() if key in theirs]
    rows = sorted((_difference(a, b) for a, b in both), key=lambda row: -abs(row.relative))
    agree = sum(row.agrees for row in rows)
    chances = [chance_of_agreement(a.visits, b.visits) for a, b in both if max(a.visits, b.visits) <= WHOLE]
    chance = sum(chances) / len(chances) if rows and len(chances) == len(rows) else None
    return Comparison(
        differences=tuple(rows),
        share=agree / len(rows) if rows else None,
        share_by_chance=chance,
        same=None if chance is None else bool(agree >= binom.ppf(0.025, len(rows), chance)),
        only_first=tuple(cell.label for key, cell in ours.items() if key not in theirs),
        only_second=tuple(cell.label for key, cell in theirs.items() if key not in ours),
        machines=tuple(sorted({text for a, b in both for text in _machines(a, b)})),
    )


def chance_of_agreement(first: int, second: int) -> float:
    """Probability that either median of two runs lies in the other run's range, when all visits are alike.

    It fails when one run has the lower half of all visits up to its median and the other run the upper half. Exact
    for odd numbers of visits. The widening of a spread to the quartiles of its batches is left out.
    """
    low, high = first // 2 + 1, second // 2 + 1
    rest = first + second - low - high
    apart = 2 * math.comb(rest, first - low) / math.comb(first + second, first)
    return 1 - apart


def _key(cell: Cell) -> tuple[Any, ...]:
    return cell.workload, cell.plan, cell.link


def _difference(first: Cell, second: Cell) -> Difference:
    a, b = first.latency_ms.p50, second.latency_ms.p50
    return Difference(
        cell=first.label,
        first_ms=a,
        second_ms=b,
        relative=b / a - 1,
        first_spread_ms=first.spread_ms,
        second_spread_ms=second.spread_ms,
        agrees=first.within_noise(second),
    )


def _machines(first: Cell, second: Cell) -> list[str]:
    a, b = first.provenance.host, second.provenance.host
    return [
        f"{key}: {a.get(key)!r} and {b.get(key)!r}" for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)
    ]
