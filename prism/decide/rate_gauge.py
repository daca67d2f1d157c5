"""Measure the link's rate by a batch that ran anyway: invert the table's waits over the seconds that a bit takes."""

import bisect
from typing import NamedTuple

from prism.decide.interpolation import WIRE, full_batch, quadrature
from prism.decide.table import LEAST_DEVIATION, Table
from prism.plan import ExecutionPlan


class GaugedRate(NamedTuple):
    """A rate in bit/s, and its relative standard deviation."""

    rate_bps: float
    deviation: float


class RateGauge:
    """Read the link's rate off the time that a batch waited for it.

    The same table judges the plans and measures the link: an error of its waits moves the estimate of the rate, too.
    """

    def __init__(self, table: Table) -> None:
        self._table = table

    def rate_of(self, plan: ExecutionPlan, batch: int, wire_ms: float) -> GaugedRate | None:
        """Find the rate at which a batch of this plan waits `wire_ms`, at most twice the fastest that was measured.

        None where the plan isn't in the table, runs on one device, has replicas of unequal shares, whose wait is for
        each other's computing, or has cells whose waits don't grow as the rate falls.
        """
        costs = self._table.batch_costs(plan, batch)
        if costs is None or plan.ranks == 1 or full_batch(plan, batch) != batch:
            return None
        line, member = costs
        per_bit, waits_ms = line.per_bit, line.figures[:, WIRE, member].tolist()
        right = min(max(bisect.bisect_left(waits_ms, wire_ms), 1), len(per_bit) - 1)
        if right < 1 or waits_ms[right] <= waits_ms[right - 1]:
            return None
        slope = (waits_ms[right] - waits_ms[right - 1]) / (per_bit[right] - per_bit[right - 1])
        s_per_bit = max(per_bit[right] + (wire_ms - waits_ms[right]) / slope, per_bit[0] / 2)
        mixed = line.at(quadrature(s_per_bit, 0.0))
        noise_ms = line.deviation(member, mixed) * mixed.ms[member]
        return GaugedRate(1 / s_per_bit, max(noise_ms / (slope * s_per_bit), LEAST_DEVIATION))
