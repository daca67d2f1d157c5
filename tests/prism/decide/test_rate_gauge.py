"""The link's rate by the time that a batch waited for it."""

import pytest
from support.serving import FULL, MODEL, cell

from prism.decide.rate_gauge import RateGauge
from prism.decide.table import table_of
from prism.perfmap import PerformanceMap
from prism.plan import LOCAL, ExecutionPlan, Mode


@pytest.fixture
def gauge() -> RateGauge:
    cells = [cell(LOCAL, b, None, 100.0 * b) for b in (1, 8)]
    cells += [cell(FULL, b, m, 50.0 * b + 5000 / m, 5000 / m) for b in (1, 8) for m in (10, 100, 1000)]
    return RateGauge(table_of([PerformanceMap(created="", command="", cells=tuple(cells))], MODEL))


@pytest.mark.parametrize("mbps", [10, 30, 100, 700])
def test_a_wait_for_the_link_says_its_rate(gauge, mbps):
    rate, deviation = gauge.rate_of(FULL, 1, 5000 / mbps)
    assert rate == pytest.approx(mbps * 1e6) and deviation < 2


def test_no_rate_is_read_beyond_twice_the_fastest_measured(gauge):
    assert gauge.rate_of(FULL, 1, 1e-9).rate_bps <= 2e9


def test_where_the_link_takes_little_of_the_time_the_time_says_little_of_the_link(gauge):
    assert gauge.rate_of(FULL, 1, 500.0).deviation < gauge.rate_of(FULL, 1, 5.0).deviation


def test_a_plan_that_is_local_or_unknown_measures_nothing(gauge):
    assert gauge.rate_of(LOCAL, 1, 5.0) is None
    assert gauge.rate_of(ExecutionPlan(mode=Mode.FULL, devices=3), 1, 5.0) is None
