"""Correct the table of plan costs where served latencies keep deviating from it."""

import math
import statistics
from collections import deque

import msgspec

from prism.decide.log import Corrected
from prism.decide.table import CellPlace, Objective, Observation, Table
from prism.plan import ExecutionPlan

RESIDUALS = 12  # batches nearest to a cell that a correction rests on
ALARM = 0.10  # median deviation from the expected latency, in logarithms, that calls for one


class Corrections:
    """A table, and the factors of its cells that served batches have shown to be wrong.

    first: the table as it was measured. table: the corrected one. count: corrections so far.
    """

    def __init__(self, table: Table, objective: Objective) -> None:
        self.first = self.table = table
        self._objective = objective
        self._residuals: dict[CellPlace, deque[float]] = {}
        self._factors: dict[CellPlace, float] = {}
        self.count = 0

    def compare(
        self, seen: Observation, plan: ExecutionPlan, ms: float, inferred_bps: float | None, now: float
    ) -> Corrected | None:
        """Compare a batch with what the table expects, and correct the nearest cell once enough batches agree.

        inferred_bps: the rate inferred from the batch itself, where it was distributed. The earlier estimate would
        blame the map for every change of the link.
        """
        if plan.ranks > 1 and inferred_bps is None:
            return None
        at = msgspec.structs.replace(seen, bandwidth_bps=inferred_bps, bandwidth_deviation=0.0)
        near, expected = self.first.nearest(plan, at), self.table.at(at, self._objective).of(plan)
        if near is None or expected is None or not self.first.mixes(plan, at):
            return None
        place = near[0]
        residuals = self._residuals.setdefault(place, deque(maxlen=RESIDUALS))
        residuals.append(math.log(ms / expected.ms))
        if len(residuals) < RESIDUALS or abs(statistics.median(residuals)) < ALARM:
            return None
        factor = self._factors[place] = self._factors.get(place, 1.0) * math.exp(statistics.median(residuals))
        residuals.clear()
        self.count += 1
        self.table = self.first.corrected(self._factors)
        return Corrected(at_s=now, version=self.count, place=place, factor=factor, batches=RESIDUALS)
