"""Interpolate plan costs between measured cells, vectorised over all plans that share a grid.

Between cells latency is linear in the batch and in the seconds that a bit takes (1 / rate): what crosses the link takes
bytes over rate on top of the computing. Beyond the cells the last two go on in a straight line, and the distance to
them adds to the deviation.
"""

import bisect
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prism.plan import ExecutionPlan

MS, P95, JOULES, WIRE, DEVIATION = range(5)  # figures of a cell, in this order; unknown joules are NaN
MIXED = 3  # the first figures, which a decision needs of every plan
LEAST = 1e-6  # floor of a mixed figure, where a straight line would fall to nothing
BEYOND = 0.3  # deviation added per factor e outside of the cells
SURE = 0.1  # relative standard deviation of the rate estimate below which it counts as exact
UNSURE = 1.0  # and the largest that is reckoned with: larger ones are clamped to it
GAUSS_HERMITE = ((2 / 3, 0.0), (1 / 6, math.sqrt(3)), (1 / 6, -math.sqrt(3)))  # weights and nodes of three points


class CellAxes(NamedTuple):
    """Where a plan has cells: its batches, and for each the seconds that a bit takes. Both ascending.

    Equal axes are one object, so that plans can be grouped by them.
    """

    batches: tuple[int, ...]
    per_bit: tuple[tuple[float, ...], ...]


class MixedCosts(NamedTuple):
    """Figures at one observation, a value for each plan.

    columns: cells that they are mixed from. outside: how far outside of the cells, as log(ratio).
    """

    columns: list[int]
    outside: float
    ms: list[float]
    p95_ms: list[float]
    joules: list[float]


class BatchCosts:
    """What plans cost at one batch, along the seconds that a bit takes.

    per_bit: [cells], ascending. figures: [cells, 5, plans], in the order of MS, P95 and so on.
    """

    def __init__(self, per_bit: tuple[float, ...], figures: NDArray[np.float64], outside: float) -> None:
        self.per_bit, self.figures, self._outside = per_bit, figures, outside
        self._rows = figures[:, :MIXED].reshape(len(per_bit), -1).copy()
        self._deviations: list[list[float]] = figures[:, DEVIATION].T.tolist()
        # plans on one device have a single cell, at 0 seconds per bit: the rate doesn't matter
        self._local = None if per_bit[-1] else MixedCosts([0], outside, *self._mixed([0], [1.0]))

    def at(self, nodes: Sequence[tuple[float, float]]) -> MixedCosts:
        """Average the figures over `nodes`: weights, and the seconds that a bit takes."""
        if self._local is not None:
            return self._local
        columns, weights, outside = [], [], self._outside
        for weight, per_bit in nodes:
            left, share, beyond = neighbours(self.per_bit, per_bit)
            columns.append(left)
            weights.append(weight * (1 - share))
            if share:
                columns.append(left + 1)
                weights.append(weight * share)
            outside += weight * beyond
        return MixedCosts(columns, outside, *self._mixed(columns, weights))

    def _mixed(self, columns: list[int], weights: list[float]) -> list[list[float]]:
        """Add up weighted cells: [MIXED, plans]."""
        rows = self._rows.take(columns, axis=0)
        rows *= np.array(weights)[:, None]
        mixed = np.add.reduce(rows, 0)  # in the order of the rows; a matrix product need not keep it
        figures: list[list[float]] = np.maximum(mixed, LEAST).reshape(MIXED, -1).tolist()
        return figures

    def deviation(self, plan: int, mixed: MixedCosts) -> float:
        """Relative deviation of a plan's latency: of the least known cell behind it, and more outside of the cells."""
        return math.hypot(max(map(self._deviations[plan].__getitem__, mixed.columns)), BEYOND * mixed.outside)


class CostGrid:
    """Costs of plans with equal axes. cells: [cells in the order of the axes, 5, plans].

    The costs of a batch are kept: few batches are asked for.
    """

    def __init__(self, axes: CellAxes, cells: NDArray[np.float64]) -> None:
        self._axes = axes
        self._cells = np.split(cells, np.cumsum([len(per_bit) for per_bit in axes.per_bit])[:-1])
        self._by_batch: dict[int, BatchCosts] = {}

    def at(self, batch: int, full: float) -> BatchCosts:
        """Interpolate between the two neighbours of a batch, each first brought to the rates of both.

        full: the batch that takes as long, which is a larger one where replicas have unequal shares. Joules are those
        of the samples that there are.
        """
        costs = self._by_batch.get(batch)
        if costs is None:
            costs = self._by_batch[batch] = self._interpolated(full, batch / full)
        return costs

    def _interpolated(self, batch: float, used: float) -> BatchCosts:
        batches = self._axes.batches
        left, share, beyond = neighbours(batches, batch)
        weights = {left: 1 - share, left + 1: share} if share else {left: 1.0}
        per_bit = tuple(sorted({x for index in weights for x in self._axes.per_bit[index]}))
        ends = [self._resampled(index, per_bit) for index in weights]
        figures = np.add.reduce([weight * end for weight, end in zip(weights.values(), ends, strict=True)])
        if beyond and len(batches) == 1:  # with one measured batch, everything is taken to grow with it
            figures *= batch / batches[0]
        figures[:, JOULES] *= used
        figures[:, DEVIATION] = np.max([end[:, DEVIATION] for end in ends], axis=0)
        return BatchCosts(per_bit, figures, beyond)

    def _resampled(self, index: int, per_bit: tuple[float, ...]) -> NDArray[np.float64]:
        """Bring a measured batch's figures to other rates than its own: [per_bit, 5, plans]."""
        own, cells = self._axes.per_bit[index], self._cells[index]
        if own == per_bit:
            return cells
        figures = np.empty((len(per_bit), *cells.shape[1:]))
        for row, x in zip(figures, per_bit, strict=True):
            left, share, beyond = neighbours(own, x)
            right = left + 1 if share else left
            row[:] = (1 - share) * cells[left] + share * cells[right]
            row[DEVIATION] = np.hypot(np.maximum(cells[left], cells[right])[DEVIATION], BEYOND * beyond)
        return figures


def full_batch(plan: ExecutionPlan, batch: int) -> float:
    """The batch that would fill all replicas as `batch` fills the fullest one, which decides how long it takes.

    As 4 for 3 samples on 2 even replicas, since one of them gets 2.
    """
    if plan.replicas == 1:
        return batch
    weights = plan.replica_weights
    shares = zip(plan.shares(batch), weights, strict=True)
    return max(share / weight for share, weight in shares if weight) * sum(weights)


def quadrature(per_bit: float, deviation: float) -> Sequence[tuple[float, float]]:
    """Weights and nodes (seconds per bit) whose mean is the expectation over a rate with a relative deviation.

    Time is convex in the rate, so a link that may be slow costs more than one at the estimate.
    """
    if deviation < SURE:
        return ((1.0, per_bit),)
    width = min(deviation, UNSURE)
    return [(weight, per_bit * math.exp(node * width)) for weight, node in GAUSS_HERMITE]


def neighbours(points: Sequence[float], x: float) -> tuple[int, float, float]:
    """Locate `x` on ascending points: left neighbour, share of the way to the right one, log(ratio) outside of them.

    Beyond the last point the line through the last two goes on. Before the first one it would fall below anything that
    was measured, so the first one stands.
    """
    if x <= points[0] or len(points) == 1:
        return 0, 0.0, abs(math.log(x / points[0])) if x > 0 and points[0] > 0 else 0.0
    right = min(bisect.bisect_left(points, x), len(points) - 1)
    share = (x - points[right - 1]) / (points[right] - points[right - 1])
    return right - 1, share, math.log(x / points[-1]) if x > points[-1] else 0.0
