"""Comparisons whose answer is known: the truth against itself, and against a profile that is wrong in one way."""

import html

import msgspec
import numpy as np
import pytest
from support.simulated import KNOWN, LOCAL, MODELS, PACE_MS, PROFILE, simulated, trace_set

from calibration.noise_floor import deviation
from calibration.report import comparison_page
from calibration.validate import ComparisonReport, compared
from prism.cost import CalibratedProfile, Term
from prism.errors import ConfigError
from prism.perfmap import PerformanceMap, build_map
from sim.ask.for_calibration import guesses

RATES = (20, 60, 200, 1000)


@pytest.fixture(scope="module")
def measured() -> PerformanceMap:
    return build_map(trace_set(simulated(visits=3, noise=0.004, rates_mbps=RATES)))


def profile(**changes: float) -> CalibratedProfile:
    values = {**KNOWN, **{name.replace("__", "."): value for name, value in changes.items()}}
    terms = tuple(Term(name=name, value=value, origin="fitted", source="a test") for name, value in values.items())
    return msgspec.structs.replace(PROFILE, terms=terms, residual_log_sd=0.01)


def report(measured: PerformanceMap, known: CalibratedProfile, **fields) -> ComparisonReport:
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


def test_a_machine_at_another_pace_is_told_from_a_wrong_profile(measured):
    slow = build_map(trace_set(simulated(visits=3, noise=0.004, rates_mbps=RATES, slowness=1.25)))
    known = msgspec.structs.replace(profile(), pace_ms=PACE_MS)
    found = report(slow, known)
    assert found.slowness == pytest.approx(1.25) and found.paced is not None
    assert found.scores.latency_mape_pct > 5 and found.scores.bias_by_mode_pct["local"] == pytest.approx(-20, abs=1)
    assert found.paced.perfect == found.scores.perfect  # all visits at one pace
    assert found.paced.latency_mape_pct < 1 and found.paced.coverage90_pct > 80 > found.scores.coverage90_pct
    page = html.unescape(comparison_page(found, known, 0, "prism-sim compare", "a title"))
    assert "25 % slower than when the profile was calibrated" in page and ">at its pace<" in page
    wrong = msgspec.structs.replace(profile(gemm__s_per_flop=1.5 * KNOWN["gemm.s_per_flop"]), pace_ms=PACE_MS)
    assert report(slow, wrong).paced.bias_by_mode_pct["local"] > 5, "what is wrong with a profile stays seen"
    for lacking in (report(measured, known), report(slow, profile())):
        assert lacking.paced is None and lacking.slowness is None


def test_the_scatter_of_visits_says_what_a_perfect_prediction_would_score(measured):
    visits = np.random.default_rng(3).normal(0.0, 0.08, (2000, 3))
    assert deviation(list(visits)) == pytest.approx(0.08, rel=0.03)
    disturbed = visits + 1.0 * (np.arange(visits.size).reshape(visits.shape) % 50 == 0)
    variance = float(disturbed.var(axis=1, ddof=1).mean())
    assert deviation(list(disturbed)) < 0.75 * variance**0.5, "a visit in fifty took nearly three times as long"
    assert deviation([each[:1] for each in visits]) is None
    noisy = build_map(trace_set(simulated(visits=3, noise=0.08, rates_mbps=RATES)))
    truth = report(noisy, profile()).scores
    known = truth.perfect
    assert known.latency_mape_pct == pytest.approx(truth.latency_mape_pct, rel=0.5)
    assert known.latency_mape_pct > 10 * report(measured, profile()).scores.perfect.latency_mape_pct
    assert known.decision_accuracy_pct > 90 and known.regret_mean_pct < 2 and known.crossover_log2_median > 0
    single = build_map(trace_set(simulated(rates_mbps=RATES)))
    assert report(single, profile()).scores.perfect is None


def test_without_a_pair_nothing_is_compared():
    alone = build_map(trace_set(simulated((LOCAL,))))
    with pytest.raises(ConfigError, match="local and a distributed"):
        report(alone, profile())


def test_the_page_says_whether_it_is_a_test(measured):
    found = report(measured, profile())
    page = comparison_page(found, profile(), 3, "prism-sim compare", "a title")
    assert "3 of the traces were part of the profile" in page and page.count("<svg") == 4 and "Which is faster" in page
    assert "No trace of this comparison" in comparison_page(found, profile(), 0, "c", "t")
