"""What is believed of the link's rate: samples in, an estimate with its doubt out. Pure, as the policy is.

A one-dimensional Kalman filter over the logarithm of the rate, as a random walk, with a gate: one sample far from what
is believed widens the doubt, a second one like it replaces the belief.
"""

import math
from typing import Literal

import msgspec

WANDER = 0.1  # relative deviation that a belief gains per root second: how quickly a link changes
GATE = 3.0  # deviations from which on a sample is doubted
LEARN = 0.3  # share of the way that what probes leave out moves to a new difference
TOGETHER_S = 1.0  # a probe this near to a batch saw the same link


class RateSample(msgspec.Struct, frozen=True, kw_only=True):
    """A rate seen at a time, with its relative deviation: by a batch that ran anyway, or by a probe."""

    at_s: float
    rate_bps: float
    deviation: float
    source: Literal["batch", "probe"] = "batch"


class RateEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """A belief and what it needs to go on. doubted: the last sample where it lay outside of the gate. unprobed_s_per_bit:
    what batches take beyond a probe's seconds a bit. A slow rank and the cost of messages are in a batch's wait whatever the
    rate, and batches are what counts; as a factor, what was learnt on a fast link would be far too much on a slow one."""

    at_s: float
    rate_bps: float
    deviation: float
    source: Literal["batch", "probe"]
    doubted: RateSample | None = None
    unprobed_s_per_bit: float = 0.0

    def deviation_at(self, at_s: float) -> float:
        """Relative, grown with the belief's age."""
        return math.hypot(self.deviation, WANDER * math.sqrt(max(at_s - self.at_s, 0.0)))


def updated(known: RateEstimate | None, sample: RateSample) -> RateEstimate:
    """The belief after a sample."""
    if known is None:
        return RateEstimate(
            at_s=sample.at_s, rate_bps=sample.rate_bps, deviation=sample.deviation, source=sample.source
        )
    unprobed, prior, raw_bps = known.unprobed_s_per_bit, known.deviation_at(sample.at_s), sample.rate_bps
    if sample.source == "probe":
        sample = msgspec.structs.replace(sample, rate_bps=1 / max(1 / raw_bps + unprobed, 0.5 / raw_bps))
    gap = math.log(sample.rate_bps / known.rate_bps)
    if abs(gap) > GATE * math.hypot(prior, sample.deviation):
        return _surprised(known, sample, gap)
    together = known.source == "batch" and known.doubted is None and sample.at_s - known.at_s < TOGETHER_S
    if sample.source == "probe" and together:
        unprobed += LEARN * (1 / known.rate_bps - 1 / raw_bps - unprobed)
    gain = prior**2 / (prior**2 + sample.deviation**2)
    return RateEstimate(
        at_s=sample.at_s,
        rate_bps=known.rate_bps * math.exp(gain * gap),
        source=sample.source,
        deviation=math.sqrt(1 - gain) * prior,
        unprobed_s_per_bit=unprobed,
    )


def _surprised(known: RateEstimate, sample: RateSample, gap: float) -> RateEstimate:
    """Two surprises on one side are a change of the link; one is a reason to doubt."""
    before = known.doubted
    if before is not None and (before.rate_bps > known.rate_bps) == (gap > 0):
        return RateEstimate(
            at_s=sample.at_s,
            rate_bps=sample.rate_bps,
            source=sample.source,
            deviation=sample.deviation,
            unprobed_s_per_bit=known.unprobed_s_per_bit,
        )
    half = known.rate_bps * math.exp(gap / 2)
    return RateEstimate(
        at_s=sample.at_s,
        rate_bps=half,
        deviation=abs(gap) / 2,
        source=sample.source,
        doubted=sample,
        unprobed_s_per_bit=known.unprobed_s_per_bit,
    )
