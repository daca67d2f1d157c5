"""Choices on maps that lack some rates, where the right one is known."""

import pytest

from experiments.adaptive.coarser_maps import on_every_map
from prism.decide.table import Observation, Table, TableRow
from prism.plan import LOCAL, ExecutionPlan, Mode

MEANS = ExecutionPlan(mode=Mode.SEGMENT_MEANS, devices=2, segments=10)
FULL = ExecutionPlan(mode=Mode.FULL, devices=2)  # not measured in every slot: never chosen


def row(plan: ExecutionPlan, rate: float | None, ms: float) -> TableRow:
    return TableRow(plan=plan, batch=1, rate_bps=rate, ms=ms, p95_ms=ms, wire_ms=0.0, deviation=0.01)


def test_between_two_rates_the_line_is_right_and_the_nearest_cell_is_not():
    """Means take 50 ms and 5 s/rate, local 100: 100 Mbps is the break-even, and 150 and 1000 lie beyond it."""
    rates = (20e6, 150e6, 1000e6)
    rows = [row(LOCAL, None, 100.0), *(row(MEANS, rate, 50 + 5e9 / rate) for rate in rates), row(FULL, 1000e6, 1.0)]
    slots = []
    for k, rate in enumerate((60e6, 80e6, 200e6)):
        seen = Observation(batch=1, devices=2, bandwidth_bps=rate, at_s=10.0 * k)
        slots.append(({LOCAL: 100.0, MEANS: 50 + 5e9 / rate, **({FULL: 1.0} if k == 0 else {})}, [seen, seen]))
    found = on_every_map(Table(rows), slots)
    by_rates = {tuple(each["mbps"]): each for each in found["maps"]}
    assert len(by_rates) == 4 and [*by_rates][-1] == (20.0, 150.0, 1000.0)
    whole = by_rates[20.0, 150.0, 1000.0]
    assert whole["prism"] == pytest.approx(1.0)
    spent = (50 + 5e9 / 60e6) + (50 + 5e9 / 80e6) + (50 + 5e9 / 200e6)  # 150 Mbps is nearer to 60 than 20 is
    assert whole["lookup"] == pytest.approx(spent / (100 + 100 + 75))
    assert found["mean"]["lookup"] > 1.1 and found["mean"]["prism"] == pytest.approx(1.0)
