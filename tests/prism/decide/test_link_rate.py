"""What is believed of a link, against links that are known."""

import math

import numpy as np
import pytest

from prism.decide.link_rate import RateEstimate, RateSample, updated


def fed(rates, deviation=0.05, step_s=0.5, source="batch", seed=0) -> list[RateEstimate]:
    rng, known, found = np.random.default_rng(seed), None, []
    for k, rate in enumerate(rates):
        seen = rate * math.exp(deviation * rng.normal())
        known = updated(known, RateSample(at_s=k * step_s, rate_bps=seen, deviation=deviation, source=source))
        found.append(known)
    return found


def test_a_steady_link_is_known_better_than_a_sample_says():
    errors = [math.log(e.rate_bps / 1e8) for e in fed([1e8] * 400)[50:]]
    assert np.std(errors) < 0.05 and abs(np.mean(errors)) < 0.01


def test_one_stall_is_doubted_and_the_second_believed():
    steady, stalled, again = fed([1e8] * 20 + [1e7] * 2)[-3:]
    assert steady.deviation < 0.1 and stalled.deviation > 0.5 and stalled.rate_bps > 2e7
    assert again.rate_bps == pytest.approx(1e7, rel=0.2) and again.deviation < 0.1
    back = fed([1e8] * 20 + [1e7] + [1e8] * 3)[-1]
    assert back.rate_bps == pytest.approx(1e8, rel=0.2)


def test_a_drift_is_followed():
    rates = [1e8 * math.exp(0.05 * k) for k in range(60)]
    assert fed(rates)[-1].rate_bps == pytest.approx(rates[-1], rel=0.2)


def test_a_belief_grows_old():
    (known,) = fed([1e8])
    assert known.deviation_at(0) < known.deviation_at(10) < known.deviation_at(100)


def test_probes_learn_what_batches_say():
    """Probes that see 0.7 of the rate that batches see are corrected after a few."""
    known = None
    for k in range(40):
        known = updated(known, RateSample(at_s=k, rate_bps=1e8, deviation=0.05))
        known = updated(known, RateSample(at_s=k + 0.1, rate_bps=0.7e8, deviation=0.15, source="probe"))
    assert 1 / (1 / 0.7e8 + known.unprobed_s_per_bit) == pytest.approx(1e8, rel=0.1)


def test_what_a_slow_rank_adds_on_a_fast_link_is_little_on_a_slow_one():
    """Batches of 1.5 Mbit wait 5 ms for the other rank, beside what the link takes. Learnt at 200 Mbps, used at 40."""

    def waits(rate):
        return 1 / (1 / rate + 5e-3 / 1.5e6)

    known = None
    for k in range(40):
        known = updated(known, RateSample(at_s=k, rate_bps=waits(2e8), deviation=0.1))
        known = updated(known, RateSample(at_s=k + 0.1, rate_bps=2e8, deviation=0.15, source="probe"))
    for k in range(40, 44):
        known = updated(known, RateSample(at_s=k, rate_bps=4e7, deviation=0.15, source="probe"))
    assert known.rate_bps == pytest.approx(waits(4e7), rel=0.05)
    assert waits(2e8) / 2e8 < 0.65, "as a factor it would be far off: 0.6 there, 0.88 here"


def test_a_probe_of_another_moment_teaches_nothing():
    """A burst ended between a batch and the probe behind it: that is the link's change, not the probe's way."""
    known = None
    for k in range(5):
        known = updated(known, RateSample(at_s=k, rate_bps=1.5e7, deviation=0.03))
    known = updated(known, RateSample(at_s=4.2, rate_bps=1e8, deviation=0.15, source="probe"))
    known = updated(known, RateSample(at_s=4.8, rate_bps=1e8, deviation=0.15, source="probe"))
    assert known.unprobed_s_per_bit == 0 and known.rate_bps == pytest.approx(1e8, rel=0.05)
