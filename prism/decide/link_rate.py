"""Estimate the link's rate: samples in, an estimate with its deviation out. Pure, as policies are.

A one-dimensional Kalman filter over the logarithm of the rate, as a random walk, with a gate: one sample far from the
estimate raises the deviation, a second one on the same side replaces the estimate.
"""

import math
from typing import Literal

import msgspec

WANDER = 0.1  # relative deviation that an estimate gains per root second: how quickly links change
GATE = 3.0  # deviations from the estimate beyond which a sample is an outlier
LEARN = 0.3  # step towards a new difference between batches and probes
TOGETHER_S = 1.0  # within this time, a probe and a batch saw the same link
SampleSource = Literal["batch", "probe"]


class RateSample(msgspec.Struct, frozen=True, kw_only=True):
    """A rate measured at a time, by a batch that ran anyway or by a probe. deviation: relative."""

    at_s: float
    rate_bps: float
    deviation: float
    source: SampleSource = "batch"


class RateEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """An estimate of the rate, and the filter's state.

    deviation: relative, at at_s. source: of the last sample. doubted: the last sample, where it was an outlier.
    unprobed_s_per_bit: what batches take beyond a probe's seconds per bit. A batch's wait holds the slower rank and the
    cost of messages whatever the rate, and the rate that batches get is what counts. It is a term and not a factor:
    learnt on a fast link, a factor would be far too much on a slow one.
    """

    at_s: float
    rate_bps: float
    deviation: float
    source: SampleSource
    doubted: RateSample | None = None
    unprobed_s_per_bit: float = 0.0

    def deviation_at(self, at_s: float) -> float:
        """Relative deviation at a later time: it grows with the estimate's age."""
        return math.hypot(self.deviation, WANDER * math.sqrt(max(at_s - self.at_s, 0.0)))


def updated(estimate: RateEstimate | None, sample: RateSample) -> RateEstimate:
    """Update the estimate by a sample; the first sample is the estimate."""
    if estimate is None:
        return _restarted(sample, 0.0)
    unprobed, prior, raw_bps = estimate.unprobed_s_per_bit, estimate.deviation_at(sample.at_s), sample.rate_bps
    if sample.source == "probe":
        sample = msgspec.structs.replace(sample, rate_bps=1 / max(1 / raw_bps + unprobed, 0.5 / raw_bps))
    innovation = math.log(sample.rate_bps / estimate.rate_bps)
    if abs(innovation) > GATE * math.hypot(prior, sample.deviation):
        return _outlier(estimate, sample, innovation)
    after_batch = estimate.source == "batch" and estimate.doubted is None
    if sample.source == "probe" and after_batch and sample.at_s - estimate.at_s < TOGETHER_S:
        unprobed += LEARN * (1 / estimate.rate_bps - 1 / raw_bps - unprobed)
    gain = prior**2 / (prior**2 + sample.deviation**2)
    return RateEstimate(
        at_s=sample.at_s,
        rate_bps=estimate.rate_bps * math.exp(gain * innovation),
        source=sample.source,
        deviation=math.sqrt(1 - gain) * prior,
        unprobed_s_per_bit=unprobed,
    )


def _outlier(estimate: RateEstimate, sample: RateSample, innovation: float) -> RateEstimate:
    """Restart after two outliers on one side: the link changed. The first one moves half of the way and adds doubt."""
    before = estimate.doubted
    if before is not None and (before.rate_bps > estimate.rate_bps) == (innovation > 0):
        return _restarted(sample, estimate.unprobed_s_per_bit)
    return RateEstimate(
        at_s=sample.at_s,
        rate_bps=estimate.rate_bps * math.exp(innovation / 2),
        deviation=abs(innovation) / 2,
        source=sample.source,
        doubted=sample,
        unprobed_s_per_bit=estimate.unprobed_s_per_bit,
    )


def _restarted(sample: RateSample, unprobed_s_per_bit: float) -> RateEstimate:
    return RateEstimate(
        at_s=sample.at_s,
        rate_bps=sample.rate_bps,
        deviation=sample.deviation,
        source=sample.source,
        unprobed_s_per_bit=unprobed_s_per_bit,
    )
