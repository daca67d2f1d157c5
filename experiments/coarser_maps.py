"""What a choice between the cells of a map is worth: Prism's policy and the published look-up on every map that lacks some rates.

Whether the nearest cell is a good choice depends on where the map happens to have cells: a look-up changes its plan half-way
between two rates, wherever the break-even lies. So the same observations are decided again with each set of at least two
of the map's rates, and each choice counts with its plan's static time of the slot. Nothing is corrected on the way.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from prism.plan import ExecutionPlan
from prism.policy import LookupPolicy, PrismPolicy, State
from prism.table import Objective, Observation, Table

Slot = tuple[Mapping[ExecutionPlan, float], Sequence[Observation]]  # static times, and what was seen before each batch
POLICIES = {"prism": PrismPolicy(), "lookup": LookupPolicy()}


def on_every_map(table: Table, slots: Sequence[Slot]) -> dict[str, Any]:
    """Time of each policy's choices over that of the quickest static plan: mean and worst over the maps, and on the whole one."""
    found = [_over_oracle(part, slots) for part in _parts(table)]
    return {
        "maps": len(found),
        **{
            name: {
                "mean": float(np.mean([each[name] for each in found])),
                "worst": max(each[name] for each in found),
                "whole_map": found[-1][name],
            }
            for name in POLICIES
        },
        "prism_better_or_equal": sum(each["prism"] <= each["lookup"] for each in found),
    }


def _parts(table: Table) -> Iterator[Table]:
    """Tables of at least two rates, the whole one last."""
    rates = sorted({row.rate_bps for row in table.rows if row.rate_bps})
    for count in range(2, len(rates) + 1):
        for kept in itertools.combinations(rates, count):
            yield Table(row for row in table.rows if row.rate_bps is None or row.rate_bps in kept)


def _over_oracle(table: Table, slots: Sequence[Slot]) -> dict[str, float]:
    """In the slots in which every choice was measured."""
    spent, states = dict.fromkeys(POLICIES, 0.0), dict.fromkeys(POLICIES, State())
    best = 0.0
    for static, seen in slots:
        times: dict[str, list[float]] = {name: [] for name in POLICIES}
        for (name, policy), observation in itertools.product(POLICIES.items(), seen):
            decision = policy.decide(observation, table, Objective(), states[name])
            states[name] = decision.state
            times[name].append(static.get(decision.plan, np.nan))
        means = {name: float(np.mean(each)) for name, each in times.items()}
        if np.isfinite(list(means.values())).all():
            best += min(static.values())
            spent = {name: spent[name] + means[name] for name in spent}
    return {name: each / best for name, each in spent.items()}
