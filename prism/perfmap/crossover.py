"""Where the better plan changes, read off a performance map; and whether two maps say the same."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import msgspec

from prism.link import LinkSpec
from prism.perfmap import Cell, PerformanceMap
from prism.plan import ExecutionPlan
from prism.trace import TraceSource

Kind = Literal["at", "never", "always"]
Axis = Literal["bandwidth_mbps", "batch"]
Pair = tuple[Cell, Cell]  # a distributed cell, and the local one of its workload
WHOLE = 5  # visits up to which a spread is their whole range


class Crossover(msgspec.Struct, frozen=True, kw_only=True):
    """Where a distributed plan becomes as fast as local along one axis, the other one held.

    axis "bandwidth_mbps": `batch` is held; axis "batch": the link's rate is held. kind: "never" and "always" (is
    distributed faster) speak of the measured values alone. at: the last crossing towards distributed, else the
    last one; null unless kind is "at". crossings: all of them, more than one only where noise or a real effect
    turns the order back. ties: measured values where the two are within their noise.
    """

    source: TraceSource
    model: str
    tokens: int
    plan: ExecutionPlan
    axis: Axis
    batch: int | None
    link: LinkSpec
    kind: Kind
    at: float | None
    crossings: tuple[float, ...]
    measured: tuple[float, ...]
    ties: tuple[float, ...]

    @property
    def near_tie(self) -> bool:
        """Whether noise may move the answer: a measured value on either side of it is a tie; of never and always,
        any is."""
        if self.at is None:
            return bool(self.ties)
        below = max(value for value in self.measured if value <= self.at)
        above = min(value for value in self.measured if value >= self.at)
        return bool({below, above} & set(self.ties))


def ratio(cell: Cell, local: Cell) -> float:
    """Latency over that of local: below 1 the cell is faster."""
    return cell.latency_ms.p50 / local.latency_ms.p50


def any_rate(link: LinkSpec) -> LinkSpec:
    """The link with its rate left open: cells that differ in rate alone lie on one line."""
    return msgspec.structs.replace(link, rate_bps=None)


def crossovers(map_: PerformanceMap) -> tuple[Crossover, ...]:
    """Of every line of a map."""
    return tuple(crossover(axis, line) for axis, line in lines(map_))


def lines(map_: PerformanceMap) -> list[tuple[Axis, list[Pair]]]:
    """Of every distributed plan, over the bandwidth at each batch and over the batch at each rate, ascending. Cells whose
    workload has no local cell, or whose link has no set rate, lie on no line."""
    pairs = [
        (cell, local)
        for cell in map_.cells
        if cell.bandwidth_mbps is not None and (local := map_.local(cell.workload)) is not None
    ]
    return [
        *_along("bandwidth_mbps", pairs, lambda c: (c.workload, c.plan, any_rate(c.link))),
        *_along("batch", pairs, lambda c: (c.source, c.model, c.tokens, c.plan, c.link)),
    ]


def _along(axis: Axis, pairs: Sequence[Pair], key: Callable[[Cell], Any]) -> Iterator[tuple[Axis, list[Pair]]]:
    groups: dict[Any, list[Pair]] = defaultdict(list)
    for pair in pairs:
        groups[key(pair[0])].append(pair)
    for line in groups.values():
        yield axis, sorted(line, key=lambda pair: getattr(pair[0], axis))


def crossover(axis: Axis, line: Sequence[Pair]) -> Crossover:
    """Of one line, ascending."""
    values = tuple(float(getattr(cell, axis)) for cell, _ in line)
    kind, at, found = crossing(values, [ratio(cell, local) - 1 for cell, local in line])
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
        crossings=found,
        measured=values,
        ties=tuple(v for v, (cell, local) in zip(values, line, strict=True) if cell.within_noise(local)),
    )


def crossing(values: Sequence[float], excess: Sequence[float]) -> tuple[Kind, float | None, tuple[float, ...]]:
    """Where `excess` (distributed over local, less 1) changes its sign, linear in the logarithm of the ascending
    values between neighbours: the class, the value to name, and all of them."""
    found: list[tuple[float, bool]] = []
    for k in range(len(values) - 1):
        before, after = excess[k], excess[k + 1]
        if (before < 0) != (after < 0):
            share = before / (before - after)
            value = values[k] * math.exp(share * math.log(values[k + 1] / values[k]))
            found.append((min(value, values[k + 1]), after < 0))
    if not found:
        return ("always" if excess[0] < 0 else "never"), None, ()
    named = [value for value, wins in found if wins] or [value for value, _ in found]
    return "at", named[-1], tuple(value for value, _ in found)


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One cell of two maps. relative: the second median over the first, less 1.
    agrees: either median lies within the other's spread."""

    cell: str
    first_ms: float
    second_ms: float
    relative: float
    first_spread_ms: tuple[float, float]
    second_spread_ms: tuple[float, float]
    agrees: bool


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Cell by cell, the largest relative difference first. only_*: cells that the other map lacks.
    share: of the common cells, how many agree; null without any. machines: facts in which they differ.
    share_by_chance: how many would of two runs between which nothing changed. same: whether as many agree as such
    runs give in 97.5 % of cases. Both null where a cell has more than five visits: its spread is then cut.
    """

    differences: tuple[Difference, ...]
    share: float | None
    share_by_chance: float | None
    same: bool | None
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    machines: tuple[str, ...]


def compare(first: PerformanceMap, second: PerformanceMap) -> Comparison:
    """Whether the medians of two maps agree within their spread."""
    from scipy.stats import binom  # here: scipy takes half of the time that prism-sim needs to start

    ours, theirs = ({_key(cell): cell for cell in each.cells} for each in (first, second))
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
    """That the median of either of two runs' visits lies within the other's range, where all visits are alike: they
    don't when the lower half of all visits up to one median is of one run and the upper half of the other. Exact for odd
    numbers of visits; the widening of a spread to the quartiles of its batches is left out."""
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
