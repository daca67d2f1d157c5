"""Decide the same observations with every map that lacks some rates, by Prism's policy and by the published look-up.

A look-up takes the plan of the nearest cell, so it changes its plan half-way between two rates, wherever the break-even
lies. How well that works depends on where the map happens to have cells. So the observations are decided again, by
latency alone, with each subset of at least two of the map's rates. Only plans that every slot measured may be chosen,
and a choice counts with its plan's static time in the slot. No corrections are learnt on the way."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from prism.decide.policy import LookupPolicy, PrismPolicy, State
from prism.decide.table import Objective, Observation, Table, TableRow
from prism.plan import ExecutionPlan

Slot = tuple[Mapping[ExecutionPlan, float], Sequence[Observation]]  # static times, and what was seen before each batch
POLICIES = {"prism": PrismPolicy(), "lookup": LookupPolicy()}


def on_every_map(table: Table, slots: Sequence[Slot]) -> dict[str, Any]:
    """Divide the time of each policy's choices by that of the quickest static plan, on each map and in the mean.

    Each map carries its rates in Mbps; the complete map comes last."""
    always = set.intersection(*({*static} for static, _ in slots))
    rows = [row for row in table.rows if row.plan in always]
    found = [
        {"mbps": [rate / 1e6 for rate in rates], **_over_oracle(part, slots, always)} for rates, part in _parts(rows)
    ]
    return {"mean": {name: float(np.mean([each[name] for each in found])) for name in POLICIES}, "maps": found}


def _parts(rows: Sequence[TableRow]) -> Iterator[tuple[tuple[float, ...], Table]]:
    rates = sorted({row.rate_bps for row in rows if row.rate_bps})
    for count in range(2, len(rates) + 1):
        for kept in itertools.combinations(rates, count):
            yield kept, Table(row for row in rows if row.rate_bps is None or row.rate_bps in kept)


def _over_oracle(table: Table, slots: Sequence[Slot], plans: set[ExecutionPlan]) -> dict[str, float]:
    spent, states = dict.fromkeys(POLICIES, 0.0), dict.fromkeys(POLICIES, State())
    for static, seen in slots:
        for (name, policy), observation in itertools.product(POLICIES.items(), seen):
            decision = policy.decide(observation, table, Objective(), states[name])
            states[name] = decision.state
            spent[name] += static[decision.plan] / len(seen)
    best = sum(min(static[plan] for plan in plans) for static, _ in slots)
    return {name: each / best for name, each in spent.items()}
