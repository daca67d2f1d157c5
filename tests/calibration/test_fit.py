"""A whole calibration on traces of known truth, and the refusal of traces that can't carry one."""

import msgspec
import numpy as np
import pytest
from support.simulated import (
    FULL,
    KNOWN,
    LOCAL,
    MEANS,
    MODELS,
    PACE_MS,
    PROFILE,
    disturbed,
    other_clock,
    simulated,
    trace_set,
    vit,
)

from calibration import link_terms
from calibration.fit import Calibration, calibrate
from calibration.link_terms import LINK, fit_link_terms, undisturbed_ms
from calibration.report.fit import fit_page
from prism.errors import ConfigError, TraceError
from prism.perfmap import build_map
from prism.trace import Probe, Span
from sim.ask.for_calibration import simulator_of

RATES = (50, 400)


@pytest.fixture(scope="module")
def found() -> Calibration:
    traces = trace_set(simulated(noise=0.02, visits=3, rates_mbps=RATES))
    return calibrate(traces, MODELS, simulator_of(MODELS), "known")


def test_whole_latencies_and_the_link_are_found_again(found):
    assert found.mape_pct < 3
    errors = {each.name: each for each in found.estimates}
    for name in ("gemm.s_per_flop", "link.gain", "exchange.s_per_byte"):
        each = errors[name]
        assert each.state == "fitted" and each.log_se is not None
        assert each.value == pytest.approx(KNOWN[name], rel=max(0.02, 4 * each.log_se))
    assert errors["overlap.power"].state == "prior"


def test_every_model_is_predicted_from_the_others(found):
    assert set(found.left_out_mape_pct) == set(MODELS)
    assert max(found.left_out_mape_pct.values()) < 12


def test_without_a_second_distributed_model_none_is_left_out():
    """What would be left says nothing of exchanges."""
    one = next(iter(MODELS))
    traces = simulated(noise=0.02, visits=2, rates_mbps=RATES)
    some = [trace for trace in traces if trace.header.model == one or trace.header.plan.ranks == 1]
    assert one not in calibrate(trace_set(some), MODELS, simulator_of(MODELS), "known").left_out_mape_pct


def test_the_profile_says_what_it_rests_on(found):
    profile = found.profile
    assert profile.ranges["width"] == (192, 768) and profile.ranges["link_mbps"] == RATES
    assert profile.taken.wires == ("fp32",) and len(profile.traces) == found.visits
    assert profile.outside({"batch": 16}) and not profile.outside({"batch": 2, "width": 384})


def test_a_machine_that_does_not_keep_its_speed_is_said(found):
    """A visit's speed scatters by 2 % in one, by 20 % in the other."""
    assert not any("keep its speed" in message for message in found.messages)
    moved = simulated(noise=0.2, visits=3, rates_mbps=RATES)
    (said,) = [
        m for m in calibrate(trace_set(moved), MODELS, simulator_of(MODELS), "moved").messages if "keep its speed" in m
    ]
    cells = [cell.visit_p50_ms for cell in build_map(trace_set(moved)).cells if cell.plan == LOCAL]
    assert f"took {np.median([max(each) / min(each) for each in cells]):.2f} times" in said and "--repeats" in said


def test_visits_at_another_pace_are_brought_to_the_usual_one():
    """Half of the cells were measured on a machine that took 1.3 times as long."""
    quick = simulated(rates_mbps=RATES, batches=(1,), visits=3, noise=0.005, slowness=1.0)
    slow = simulated(rates_mbps=RATES, batches=(4,), visits=3, noise=0.005, slowness=1.3)
    found = calibrate(trace_set([*quick, *slow]), MODELS, simulator_of(MODELS), "paced")
    known = found.profile.pace_ms
    assert known is not None and PACE_MS <= known <= 1.3 * PACE_MS
    assert found.mape_pct < 1.5
    value = found.profile.values()["gemm.s_per_flop"] * PACE_MS / known
    assert value == pytest.approx(KNOWN["gemm.s_per_flop"], rel=0.03)
    plain = [
        msgspec.structs.replace(t, records=tuple(r for r in t.records if not isinstance(r, Probe)))
        for t in (*quick, *slow)
    ]
    without = calibrate(trace_set(plain), MODELS, simulator_of(MODELS), "not paced")
    assert without.profile.pace_ms is None and without.mape_pct > 3 * found.mape_pct
    mixed = calibrate(trace_set([plain[0], *quick[1:], *slow]), MODELS, simulator_of(MODELS), "one visit lacks it")
    assert mixed.profile.pace_ms is None and mixed.mape_pct == without.mape_pct
    (said,) = [message for message in mixed.messages if "pace" in message]
    assert said.startswith("1 of ") and "prism-hw profile" in said


def test_a_parameter_that_the_traces_cannot_tell_is_said():
    traces = trace_set(simulated((LOCAL, FULL), rates_mbps=(100,), visits=3))
    found = calibrate(traces, MODELS, simulator_of(MODELS), "one rate")
    assert any("one rate of the link" in message for message in found.messages)


def test_what_is_missing_and_what_measures_it():
    def said(*args, **fields):
        with pytest.raises(ConfigError) as error:
            calibrate(trace_set(simulated(*args, **fields)), MODELS, simulator_of(MODELS), "bad")
        return str(error.value)

    assert "all traces have batch 1" in said(batches=(1,)) and "batches = [1, 4]" in said(batches=(1,))
    assert "no distributed cell" in said((LOCAL,), batches=(1, 2, 4))
    assert "no local cell" in said((FULL, MEANS))
    assert "at least 6" in said((LOCAL, FULL), models={"vit192": MODELS["vit192"]})


def test_traces_of_two_machines_are_refused():
    traces = simulated()
    other = msgspec.structs.replace(traces[0].header, host={**traces[0].header.host, "power_mode": "7W"})
    mixed = [msgspec.structs.replace(traces[0], header=other), *traces[1:]]
    with pytest.raises(TraceError, match="power_mode"):
        calibrate(trace_set(mixed), MODELS, simulator_of(MODELS), "mixed")


def test_a_clock_that_jumps_leaves_its_trace_out():
    traces = simulated(rates_mbps=RATES)
    records = list(traces[1].records)
    place = next(k for k, record in enumerate(records) if isinstance(record, Span))
    records[place] = msgspec.structs.replace(records[place], start_ns=-(10**9))
    jumped = msgspec.structs.replace(traces[1], records=tuple(records))
    found = calibrate(trace_set([traces[0], jumped, *traces[2:]]), MODELS, simulator_of(MODELS), "jump")
    assert found.visits == len(traces) - 1
    assert any("1.jsonl" in message and "clock jumped" in message for message in found.messages)


def test_two_hosts_whose_clocks_differ_within_their_error_are_kept():
    """Spans of rank 1 stand on the leader's clock to within the error of the round trips."""
    traces = [other_clock(trace) for trace in simulated(rates_mbps=RATES)]
    found = calibrate(trace_set(traces), MODELS, simulator_of(MODELS), "two clocks")
    assert found.visits == len(traces) and found.mape_pct < 1
    assert found.profile.values()["gemm.s_per_flop"] == pytest.approx(KNOWN["gemm.s_per_flop"], rel=0.02)


SEEDS, VISITS, LEVEL = 200, 7, 1.645  # 90 %


@pytest.mark.parametrize("outliers", [0.0, 0.1])
def test_the_links_terms_lie_in_their_intervals_as_often_as_stated(outliers):
    """Near the truth latencies are linear in the logarithms, so the simulator is asked for the slopes once."""
    one = {"vit192": vit(192, 197, blocks=1), "vit768": vit(768, 101, blocks=1)}
    cells = build_map(trace_set(simulated((FULL, MEANS), models=one, batches=(1, 4), rates_mbps=(50, 200, 800)))).cells
    truth, run = np.log([KNOWN[name] for name in LINK]), simulator_of(one)

    def logs_at(logs: np.ndarray) -> np.ndarray:
        values = {**KNOWN, **dict(zip(LINK, np.exp(logs), strict=True))}
        terms = tuple(msgspec.structs.replace(term, value=float(values[term.name])) for term in PROFILE.terms)
        return np.log(run(msgspec.structs.replace(PROFILE, terms=terms), cells))

    there = logs_at(truth)
    slopes = np.array([(logs_at(truth + step) - there) / 0.02 for step in 0.02 * np.eye(len(LINK))]).T

    def whole_ms(logs: np.ndarray) -> np.ndarray:
        return np.exp(there + slopes @ (logs - truth))

    hits = np.zeros(len(LINK))
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        gross = np.where(rng.random((len(cells), VISITS)) < outliers, rng.uniform(1.5, 5, (len(cells), VISITS)), 1)
        noise = undisturbed_ms(np.exp(0.05 * rng.standard_normal((len(cells), VISITS))) * gross)
        fitted = fit_link_terms(whole_ms, np.exp(there) * noise)
        found = np.log([fitted.values[name] for name in LINK])
        hits += np.abs(found - truth) < LEVEL * np.sqrt(np.diag(fitted.covariance))
    assert np.all(hits / SEEDS > 0.85), dict(zip(LINK, hits / SEEDS, strict=True))


def test_a_fit_of_the_link_that_does_not_converge_is_said(found, monkeypatch):
    """In the result, and in a message that the page and the command line show, with the remedy."""
    assert found.converged and not any("converge" in message for message in found.messages)
    monkeypatch.setattr(link_terms, "MOST_EVALUATIONS", 1)
    traces = trace_set(simulated(noise=0.02, visits=1, rates_mbps=RATES))
    stopped = calibrate(traces, MODELS, simulator_of(MODELS), "stopped")
    whole, left_out = [message for message in stopped.messages if "did not converge" in message]
    assert not stopped.converged and "link.gain 0.97" in whole and "prism-hw profile" in whole
    assert left_out.startswith("without vit192") and "did not converge (The maximum" in fit_page(stopped, "a test")


def test_gross_outliers_among_the_visits_move_little():
    clean = simulated(rates_mbps=RATES)
    traces = [disturbed(trace, 4.0 if (k + n) % 10 == 0 else 1.0) for n, trace in enumerate(clean) for k in range(3)]
    found = calibrate(trace_set(traces), MODELS, simulator_of(MODELS), "outliers")
    assert found.mape_pct < 2


def test_a_model_without_a_specification_is_refused():
    with pytest.raises(ConfigError, match="--model"):
        calibrate(trace_set(simulated()), {"vit192": MODELS["vit192"]}, simulator_of(MODELS), "unknown")
