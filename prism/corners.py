"""Between which cells of a table an observation lies, and with what weights.

Latency between cells is linear in the batch and in the seconds a bit takes (1 / rate): what crosses the link is bytes
over the rate on top of work. Beyond the cells the nearest ends go on, and how far is said.
"""

import bisect
import math
from collections.abc import Sequence
from typing import NamedTuple

SURE, UNSURE = 0.1, 1.0  # deviations of a rate: up to the one it is taken as it is, from the other on as if it were that
NODES = ((2 / 3, 0.0), (1 / 6, math.sqrt(3)), (1 / 6, -math.sqrt(3)))  # shares and deviations of Gauss-Hermite's three


class Corners(NamedTuple):
    """The cells around an observation with their weights, how far outside of the cells it lies in factors e, and what
    a figure is multiplied with where it lies beyond a single batch."""

    weights: list[tuple[int, float]]
    outside: float
    scale: float


class Axes(NamedTuple):
    """Where a plan has cells: batches, and for each the seconds a bit takes, ascending. Plans share equal ones."""

    batches: tuple[int, ...]
    lines: tuple[tuple[float, ...], ...]
    starts: tuple[int, ...]

    def expected(self, batch: int, per_bit: float, deviation: float) -> Corners:
        """The corners of the expectation over a rate that is known with a relative deviation: time is convex in the
        rate, so a link that may be slow costs more than the one that is believed."""
        if deviation < SURE or not self.lines[0][-1]:  # local has its one place at 0 whatever the rate
            return self.corners(batch, per_bit)
        width = min(deviation, UNSURE)
        return self._mixed(batch, [(share, per_bit * math.exp(step * width)) for share, step in NODES])

    def corners(self, batch: int, per_bit: float) -> Corners:
        return self._mixed(batch, [(1.0, per_bit)])

    def _mixed(self, batch: int, nodes: Sequence[tuple[float, float]]) -> Corners:
        """nodes: shares, and the seconds a bit takes. They share cells: each is mixed once."""
        place, along, beyond = between(self.batches, batch)
        lines = ((place, 1 - along), (place + 1, along)) if along else ((place, 1.0),)
        weights: dict[int, float] = {}
        outside = 0.0
        for share, per_bit in nodes:
            furthest, before = 0.0, None
            for line, weight in lines:
                if self.lines[line] is not before:  # batches mostly have the same rates
                    before = self.lines[line]
                    left, right_share, further = between(before, per_bit)
                    furthest = max(furthest, further)
                first = self.starts[line] + left
                weights[first] = weights.get(first, 0.0) + share * (weight * (1 - right_share))
                if right_share:
                    weights[first + 1] = weights.get(first + 1, 0.0) + share * (weight * right_share)
            outside += share * (beyond + furthest)
        single = beyond and len(self.batches) == 1  # one batch alone is known: all grows with it
        return Corners(list(weights.items()), outside, batch / self.batches[0] if single else 1.0)


def between(xs: Sequence[float], x: float) -> tuple[int, float, float]:
    """Left neighbour, share of the way to the right one, and how far outside. Beyond the last the line through the last
    two goes on; before the first it would fall below what was ever seen, so the first stands."""
    if x <= xs[0] or len(xs) == 1:  # local's one place is 0: it uses no link
        return 0, 0.0, abs(math.log(x / xs[0])) if x > 0 and xs[0] > 0 else 0.0
    right = min(bisect.bisect_left(xs, x), len(xs) - 1)
    share = (x - xs[right - 1]) / (xs[right] - xs[right - 1])
    return right - 1, share, math.log(x / xs[-1]) if x > xs[-1] else 0.0
