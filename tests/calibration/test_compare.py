"""Comparisons whose answer is known: the truth against itself, and against a profile that is wrong in one way."""

import msgspec
import pytest
from support.simulated import KNOWN, LOCAL, MODELS, PROFILE, simulated, trace_set

from calibration import pages
from calibration.compare import Report, compared
from prism.cost import CalibratedProfile, Term
from prism.errors import ConfigError
from prism.perfmap import PerformanceMap, build_map
from sim.fitting import guesses

RATES = (20, 60, 200, 1000)


@pytest.fixture(scope="module")
def measured() -> PerformanceMap:
    return build_map(trace_set(simulated(visits=3, noise=0.004, rates_mbps=RATES)))


def profile(**changes: float) -> CalibratedProfile:
    values = {**KNOWN, **{name.replace("__", "."): value for name, value in changes.items()}}
    terms = tuple(
        Term(name=name, value=value, origin="fitted", source="a test") for name, value in values.items()
    )
    return msgspec.structs.replace(PROFILE, terms=terms, residual_log_sd=0.01)


def report(measured: PerformanceMap, known: CalibratedProfile, **fields) -> Report:
    return compared(known, measured, guesses(known, measured.cells, MODELS, 40, 0, 1), MODELS, **fields)


def test_the_truth_against_itself(measured):
    scores = report(measured, profile()).scores
    assert scores.latency_mape_pct < 1 and scores.prism.decision_accuracy_pct == 100
    assert scores.prism.regret_mean_pct < 0.1 and scores.brier < 0.05
    assert scores.crossover_log2_median < 0.05 and scores.crossovers_at_both > 0
    assert scores.coverage90_pct > 80
    assert scores.extrapolated_cells == scores.cells, "a profile without ranges calibrates nothing"


def test_an_error_is_found_where_it_is(measured):
    found = report(measured, profile(gemm__s_per_flop=1.5 * KNOWN["gemm.s_per_flop"]))
    local = [row for row in found.rows if row.mode == "local"]
    assert all(row.error_pct > 5 and row.reason.startswith("compute +") for row in local)
    assert found.scores.bias_by_mode_pct["local"] > 5
    slow = report(measured, profile(link__gain=0.5))
    assert slow.scores.bias_by_mode_pct["local"] == pytest.approx(0, abs=1)
    assert slow.scores.bias_by_mode_pct["full"] > 20 and slow.scores.difference_bias_pct > 0
    assert slow.scores.crossover_log2_median > 0.5


def test_rules_that_do_not_model_do_worse(measured):
    found = report(measured, profile(), reference=measured).scores
    assert found.baselines["nearest profiled model"].decision_accuracy_pct == 100  # it was profiled itself
    for name in ("always local", "always distributed", "FLOP threshold"):
        rule = found.baselines[name]
        assert rule.decision_accuracy_pct < 100 and rule.regret_mean_pct > found.prism.regret_mean_pct
    without = report(measured, profile()).scores.baselines
    assert set(without) == {"always local", "always distributed"}


def test_without_a_pair_nothing_is_compared():
    alone = build_map(trace_set(simulated((LOCAL,))))
    with pytest.raises(ConfigError, match="local and a distributed"):
        report(alone, profile())


def test_the_page_says_whether_it_is_a_test(measured):
    found = report(measured, profile())
    page = pages.comparison_page(found, profile(), 3, "prism-sim compare", "a title")
    assert "3 of the traces were part of the profile" in page and page.count("<svg") == 4 and "Which is faster" in page
    assert "No trace of this comparison" in pages.comparison_page(found, profile(), 0, "c", "t")
