"""Figures of plans between their cells, for all plans at once that have the same ones.

Latency between cells is linear in the batch and in the seconds a bit takes (1 / rate): what crosses the link is bytes
over the rate on top of work. Beyond the cells the nearest ends go on, and how far is said.
"""

import bisect
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MS, P95, JOULES, WIRE, DEVIATION = range(5)  # of a cell; joules that aren't known are no number
MIXED = 3  # of these, the first: what a decision wants of every plan
LEAST = 1e-6  # of a figure, where a line falls to nothing
BEYOND = 0.3  # deviation added per factor e outside of the cells
SURE, UNSURE = (
    0.1,
    1.0,
)  # deviations of a rate: up to the one it is taken as it is, from the other on as if it were that
NODES = ((2 / 3, 0.0), (1 / 6, math.sqrt(3)), (1 / 6, -math.sqrt(3)))  # shares and deviations of Gauss-Hermite's three


class CellAxes(NamedTuple):
    """Where a plan has cells: batches, and for each the seconds a bit takes, ascending. Equal ones are one object."""

    batches: tuple[int, ...]
    lines: tuple[tuple[float, ...], ...]


class MixedCosts(NamedTuple):
    """An observation's place on a line, how far outside of the cells it lies in factors e, and a figure of each plan."""

    columns: list[int]
    outside: float
    ms: list[float]
    p95_ms: list[float]
    joules: list[float]


class BatchCosts:
    """What plans cost at one batch, along the seconds that a bit takes. figures: [xs, 5, plans], MS and so on."""

    def __init__(self, xs: tuple[float, ...], figures: NDArray[np.float64], outside: float) -> None:
        self.xs, self.figures, self._outside = xs, figures, outside
        self._rows = figures[:, :MIXED].reshape(len(xs), -1).copy()
        self._doubts: list[list[float]] = figures[:, DEVIATION].T.tolist()
        self._local = None if xs[-1] else MixedCosts([0], outside, *self._mixed([0], [1.0]))

    def at(self, nodes: Sequence[tuple[float, float]]) -> MixedCosts:
        """nodes: shares, and the seconds a bit takes."""
        if self._local is not None:  # its one place is at 0 whatever the rate
            return self._local
        columns, weights, outside = [], [], self._outside
        for share, per_bit in nodes:
            left, along, beyond = between(self.xs, per_bit)
            columns.append(left)
            weights.append(share * (1 - along))
            if along:
                columns.append(left + 1)
                weights.append(share * along)
            outside += share * beyond
        return MixedCosts(columns, outside, *self._mixed(columns, weights))

    def _mixed(self, columns: list[int], weights: list[float]) -> list[list[float]]:
        rows = self._rows.take(columns, axis=0)
        rows *= np.array(weights)[:, None]
        mixed = np.add.reduce(rows, 0)  # in the rows' order, which a product of matrices needn't keep
        found: list[list[float]] = np.maximum(mixed, LEAST).reshape(MIXED, -1).tolist()
        return found

    def deviation(self, plan: int, mixed: MixedCosts) -> float:
        """Of a plan's latency, relative: as of the least known of the cells, and more outside of them."""
        return math.hypot(max(map(self._doubts[plan].__getitem__, mixed.columns)), BEYOND * mixed.outside)


class CostGrid:
    """Plans with equal axes. cells: [cells in the order of the axes, 5, plans]. A batch's line is kept: there are few."""

    def __init__(self, axes: CellAxes, cells: NDArray[np.float64]) -> None:
        self._axes = axes
        self._cells = np.split(cells, np.cumsum([len(xs) for xs in axes.lines])[:-1])
        self._known: dict[int, BatchCosts] = {}

    def at(self, batch: int) -> BatchCosts:
        """Each of a batch's two neighbours is brought to the rates of both."""
        known = self._known.get(batch)
        if known is not None:
            return known
        batches = self._axes.batches
        left, along, beyond = between(batches, batch)
        shares = {left: 1 - along, left + 1: along} if along else {left: 1.0}
        xs = tuple(sorted({x for line in shares for x in self._axes.lines[line]}))
        ends = [self._along(line, xs) for line in shares]
        figures = np.add.reduce([share * end for share, end in zip(shares.values(), ends, strict=True)])
        if beyond and len(batches) == 1:  # one batch alone is known: all grows with it
            figures *= batch / batches[0]
        figures[:, DEVIATION] = np.max([end[:, DEVIATION] for end in ends], axis=0)
        found = self._known[batch] = BatchCosts(xs, figures, beyond)
        return found

    def _along(self, line: int, xs: tuple[float, ...]) -> NDArray[np.float64]:
        """A measured batch's figures at other rates than its own; farther out they are known less."""
        own, cells = self._axes.lines[line], self._cells[line]
        if own == xs:
            return cells
        found = np.empty((len(xs), *cells.shape[1:]))
        for row, x in zip(found, xs, strict=True):
            left, along, beyond = between(own, x)
            right = left + 1 if along else left
            row[:] = (1 - along) * cells[left] + along * cells[right]
            row[DEVIATION] = np.hypot(np.maximum(cells[left], cells[right])[DEVIATION], BEYOND * beyond)
        return found


def nodes(per_bit: float, deviation: float) -> Sequence[tuple[float, float]]:
    """Where to look for the expectation over a rate that is known with a relative deviation: time is convex in the rate,
    so a link that may be slow costs more than the one that is believed."""
    if deviation < SURE:
        return ((1.0, per_bit),)
    width = min(deviation, UNSURE)
    return [(share, per_bit * math.exp(step * width)) for share, step in NODES]


def between(xs: Sequence[float], x: float) -> tuple[int, float, float]:
    """Left neighbour, share of the way to the right one, and how far outside. Beyond the last the line through the last
    two goes on; before the first it would fall below what was ever seen, so the first stands."""
    if x <= xs[0] or len(xs) == 1:
        return 0, 0.0, abs(math.log(x / xs[0])) if x > 0 and xs[0] > 0 else 0.0
    right = min(bisect.bisect_left(xs, x), len(xs) - 1)
    share = (x - xs[right - 1]) / (xs[right] - xs[right - 1])
    return right - 1, share, math.log(x / xs[-1]) if x > xs[-1] else 0.0
