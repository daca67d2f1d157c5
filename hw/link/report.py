"""Reduce the link bench's raw probes to curves, quantiles and goodput. No torch.

Probes and their shapes, all on the leader's clock:
- pair (source, target, bytes): a message there and one byte back, sent when the whole message is in the
  receiver's hands, so that no socket buffer counts as the link.
- mesh, ring (ranks, bytes, number): one record of each rank, from the call to everything received; `bytes`
  is what each rank gives. The collective takes from the last rank's start to the last rank's end.
- echo (a, b, state): one small round trip; state 0 idle (after a pause), 1 busy (back to back), 2 loaded
  (during a bulk transfer from a to b). calls 0: no answer came.
- bulk (source, target, bytes): from one arrival of a message of a long transfer to the next.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from calibration.alpha_beta import AlphaBeta, fit_alpha_beta
from prism.errors import TraceError
from prism.link import CROSSINGS, LinkSpec
from prism.plan import Route
from prism.trace import Probe
from prism.trace.quantiles import quantiles

IDLE, BUSY, LOADED = 0, 1, 2
RAMP = 0.2  # of a bulk transfer's time: the sender's window still grows
SLEEPS_MS = 5.0  # idle round trips longer than busy ones by more than any CPU's own wake-up


class LinkConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to measure links. budget_s: of the whole; largest sizes and repeats follow from it and from the link."""

    budget_s: Annotated[float, msgspec.Meta(ge=1, le=600)] = 30.0
    max_bytes: Annotated[int, msgspec.Meta(ge=16_384, le=1 << 26)] = 1 << 24
    seed: Annotated[int, msgspec.Meta(ge=0)] = 0


class RoundTrips(msgspec.Struct, frozen=True, kw_only=True):
    """Quantiles of `n` answered round trips, in milliseconds. lost: round trips without an answer."""

    p50: float
    p95: float
    p99: float
    n: int
    lost: int


class PairReport(msgspec.Struct, frozen=True, kw_only=True):
    """One pair, both directions pooled. None is "not measured".

    alpha_ms, beta_mbps: of one message one way. jitter_ms: mean absolute difference of consecutive busy round trips.
    """

    a: int
    b: int
    alpha_ms: float
    beta_mbps: float
    break_bytes: int | None
    rtt_idle_ms: RoundTrips | None
    rtt_busy_ms: RoundTrips | None
    rtt_loaded_ms: RoundTrips | None
    jitter_ms: float | None
    goodput_mbps: float | None
    curve: AlphaBeta


class CollectiveReport(msgspec.Struct, frozen=True, kw_only=True):
    """One collective: its whole time over the bytes that each rank gives."""

    collective: Route
    ranks: int
    alpha_ms: float
    beta_mbps: float
    break_bytes: int | None
    curve: AlphaBeta


class PowerSave(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the radio sleeps between messages.

    checked: idle and busy round trips were compared. found: the idle ones take `SLEEPS_MS` longer on some pair.
    interface: the driver's own report.
    """

    checked: bool
    found: bool | None
    extra_ms: float | None
    interface: str


class LinkReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `prism-hw link --json` prints. None is "not measured".

    expected_goodput_mbps: the configured rate over two crossings. goodput_over_configured: the median pair's goodput
    over that.
    """

    link: str
    ranks: int
    created: str
    seconds: float
    pairs: tuple[PairReport, ...]
    collectives: tuple[CollectiveReport, ...]
    configured_mbps: float | None
    expected_goodput_mbps: float | None
    goodput_over_configured: float | None
    power_save: PowerSave
    rtt_over: Literal["udp", "exchange"]
    host: dict[str, Any]
    seed: int
    command: str


def one_way(probes: Iterable[Probe], a: int, b: int) -> tuple[list[int], list[float]]:
    """List sizes and one-way seconds of a pair: each echo less the way back, which is half of the smallest echo.

    Raises TraceError where the pair was not measured.
    """
    sizes, seconds = [], []
    for probe in probes:
        if probe.op == "pair" and not probe.warmup and set(probe.shape[:2]) == {a, b}:
            sizes.append(probe.shape[2])
            seconds.append(_seconds(probe))
    if not sizes:
        raise TraceError(f"no message between ranks {a} and {b} is recorded; measure the link again")
    back = float(np.median([time for size, time in zip(sizes, seconds, strict=True) if size == min(sizes)])) / 2
    return sizes, [max(time - back, time / 2) for time in seconds]


def collective_times(probes: Iterable[Probe], op: str) -> tuple[list[int], list[float]]:
    """List sizes and seconds of a collective, from the last rank's start to the last rank's end."""
    grouped: dict[tuple[int, ...], list[Probe]] = defaultdict(list)
    for probe in probes:
        if probe.op == op and not probe.warmup:
            grouped[probe.shape].append(probe)
    whole = {shape: group for shape, group in grouped.items() if len(group) == shape[0]}
    times = [
        (max(probe.end_ns for probe in group) - max(probe.start_ns for probe in group)) / 1e9
        for group in whole.values()
    ]
    # clocks of two machines agree within some µs only; a time that isn't positive says nothing
    kept = [(shape[1], time) for shape, time in zip(whole, times, strict=True) if time > 0]
    return [size for size, _ in kept], [time for _, time in kept]


def trips_ms(probes: Iterable[Probe], a: int, b: int, state: int) -> tuple[list[float], int]:
    """List the round trips of a pair in a state, in order, and count the lost ones."""
    trips = [probe for probe in probes if probe.op == "echo" and probe.shape == (a, b, state) and not probe.warmup]
    return [1e3 * _seconds(probe) for probe in trips if probe.calls], sum(not probe.calls for probe in trips)


def goodput_bps(probes: Iterable[Probe], a: int, b: int) -> float | None:
    """Fit the sustained payload rate of a pair's bulk transfer after its ramp.

    It is the slope of received bytes over the receiver's clock, which messages that arrive in clumps don't disturb.
    """
    chunks = [probe for probe in probes if probe.op == "bulk" and set(probe.shape[:2]) == {a, b}]
    if not chunks:
        return None
    begin = chunks[0].start_ns + RAMP * (chunks[-1].end_ns - chunks[0].start_ns)
    steady = [probe for probe in chunks if probe.end_ns >= begin]
    seconds = np.array([probe.end_ns - steady[0].end_ns for probe in steady]) / 1e9
    if len(steady) < 3 or seconds[-1] <= 0:
        return None
    return 8 * float(np.polyfit(seconds, np.cumsum([probe.bytes for probe in steady]), 1)[0])


def pair_report(probes: Sequence[Probe], a: int, b: int) -> PairReport:
    """Report one pair. Raises TraceError where it was not measured."""
    curve = fit_alpha_beta(*one_way(probes, a, b))
    busy, _ = trips_ms(probes, a, b, BUSY)
    goodput = goodput_bps(probes, a, b)
    return PairReport(
        a=a,
        b=b,
        alpha_ms=1e3 * curve.alpha_s,
        beta_mbps=curve.beta_bps / 1e6,
        break_bytes=curve.break_bytes,
        rtt_idle_ms=_round_trips(*trips_ms(probes, a, b, IDLE)),
        rtt_busy_ms=_round_trips(*trips_ms(probes, a, b, BUSY)),
        rtt_loaded_ms=_round_trips(*trips_ms(probes, a, b, LOADED)),
        jitter_ms=float(np.mean(np.abs(np.diff(busy)))) if len(busy) > 1 else None,
        goodput_mbps=None if goodput is None else goodput / 1e6,
        curve=curve,
    )


def collective_report(probes: Sequence[Probe], op: Route, ranks: int) -> CollectiveReport:
    """Report one collective."""
    curve = fit_alpha_beta(*collective_times(probes, op))
    return CollectiveReport(
        collective=op,
        ranks=ranks,
        alpha_ms=1e3 * curve.alpha_s,
        beta_mbps=curve.beta_bps / 1e6,
        break_bytes=curve.break_bytes,
        curve=curve,
    )


def power_save(pairs: Iterable[PairReport], interface: str) -> PowerSave:
    """Judge by the round trips whether the radio sleeps. interface: the driver's own report."""
    extra = [pair.rtt_idle_ms.p50 - pair.rtt_busy_ms.p50 for pair in pairs if pair.rtt_idle_ms and pair.rtt_busy_ms]
    if not extra:
        return PowerSave(checked=False, found=None, extra_ms=None, interface=interface)
    return PowerSave(checked=True, found=max(extra) > SLEEPS_MS, extra_ms=max(extra), interface=interface)


def expected_goodput_bps(link: LinkSpec) -> float | None:
    """Halve a configured rate, if any: each byte between two stations crosses the air twice."""
    return None if link.rate_bps is None else link.rate_bps / CROSSINGS


def goodput_ratio(pairs: Iterable[PairReport], expected_bps: float | None) -> float | None:
    """Divide the median pair's goodput by the expected one; None without either."""
    measured = [pair.goodput_mbps for pair in pairs if pair.goodput_mbps is not None]
    return float(np.median(measured)) * 1e6 / expected_bps if measured and expected_bps else None


def _round_trips(times_ms: list[float], lost: int) -> RoundTrips | None:
    if not times_ms:
        return None
    p50, p95, p99 = quantiles(times_ms, 50, 95, 99)
    return RoundTrips(p50=p50, p95=p95, p99=p99, n=len(times_ms), lost=lost)


def _seconds(probe: Probe) -> float:
    return (probe.end_ns - probe.start_ns) / 1e9
