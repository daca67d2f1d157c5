"""Compute the joules of a batch: measured from power samples, or modelled from a declared profile."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from prism.errors import TraceError
from prism.spec import PowerProfile
from prism.trace import Batch, Idle, Meter, Power, Record, Span, Trace

MIN_SAMPLES = 100  # of each rail, inside the batches of a run: below that there is no figure
MAX_HOLE = 0.1  # longest stretch of a run without a sample, as a share of the run

Interval = tuple[float, float]  # seconds
Run = tuple[Interval, ...]  # batches back to back


class Energy(msgspec.Struct, frozen=True, kw_only=True):
    """Joules per batch, means over the measured batches.

    joules: all devices together, waiting ones included.
    per_device_j: by the rank whose meter was read; where modelled, by rank.
    per_rail_j: every rail, also those that are part of a total.
    idle_w: mean power of the idle stretches, for the devices that have them.
    above_idle_j: joules less what the devices would have drawn idle; None unless every device has idle stretches.
    samples: the fewest of any rail that the figure rests on.
    """

    joules: float
    per_device_j: dict[int, float]
    per_rail_j: dict[int, dict[str, float]]
    idle_w: dict[int, float]
    above_idle_j: float | None
    samples: int
    source: str
    modelled: bool = False


class _Rail:
    """One rail's samples, in order of time: seconds and watts, both [n]."""

    def __init__(self, samples: Iterable[Power]) -> None:
        ordered = sorted(samples, key=lambda sample: sample.at_ns)
        self.at_s: NDArray[np.float64] = np.array([sample.at_ns for sample in ordered], dtype=float) / 1e9
        self.watts: NDArray[np.float64] = np.array([sample.watts for sample in ordered], dtype=float)

    def samples(self, run: Run) -> int:
        """Samples inside the run's batches."""
        return int(sum(np.diff(np.searchsorted(self.at_s, interval))[0] for interval in run))

    def lacks(self, run: Run) -> str:
        """The reason why the samples carry no figure for the run; empty when they do."""
        start, end = run[0][0], run[-1][1]
        count = self.samples(run)
        if count < MIN_SAMPLES:
            return f"{count} samples in {end - start:.3g} s without a pause, {MIN_SAMPLES} are needed"
        inside = self.at_s[(self.at_s >= start) & (self.at_s <= end)]
        hole = float(np.diff(np.concatenate([[start], inside, [end]])).max())
        if hole > MAX_HOLE * (end - start):
            return f"no sample for {hole:.3g} of {end - start:.3g} s, {MAX_HOLE:.0%} may be missing"
        return ""

    def joules(self, run: Run) -> float:
        """Trapezoid over the samples inside the batches, power interpolated at each start and end."""
        edges = np.array(run).ravel()
        knots = np.union1d(self.at_s, edges)
        watts = np.interp(knots, self.at_s, self.watts)
        total = np.concatenate([[0.0], np.cumsum(np.diff(knots) * (watts[1:] + watts[:-1]) / 2)])
        at_edges = total[np.searchsorted(knots, edges)].reshape(-1, 2)
        return float(np.sum(at_edges[:, 1] - at_edges[:, 0]))


def measured_energy(trace: Trace) -> Energy | str:
    """Measure the energy of a trace's batches, or say why its samples give none.

    Only runs of batches count in which every rail has MIN_SAMPLES samples and no long hole.
    """
    meters = {meter.rank: meter for meter in trace.records if isinstance(meter, Meter)}
    if not meters:
        return "no power meter was read"
    covered = {rank for meter in meters.values() for rank in meter.covers or (meter.rank,)}
    unseen = sorted(set(range(trace.header.plan.ranks)) - covered)
    if unseen:
        return f"the device of rank {unseen[0]} has no power meter that was read"
    rails = _rails(trace.records, meters)
    runs = list(_runs(trace.batches))
    if not runs:
        return "the trace holds no complete measured batch"
    good = [run for run in runs if not _lacking(meters, rails, run)]
    if not good:
        return _lacking(meters, rails, max(runs, key=lambda run: run[-1][1] - run[0][0]))
    return _mean_energy(meters, rails, good, _idle_w(trace.records, meters, rails))


def _rails(records: Iterable[Record], meters: dict[int, Meter]) -> dict[tuple[int, str], _Rail]:
    samples: dict[tuple[int, str], list[Power]] = defaultdict(list)
    for record in records:
        if isinstance(record, Power):
            samples[record.rank, record.rail].append(record)
    return {(rank, rail): _Rail(samples[rank, rail]) for rank, meter in meters.items() for rail in meter.rails}


def _runs(batches: Sequence[Batch]) -> Iterator[Run]:
    """Group measured batches that follow back to back.

    A warm-up, a failed batch or a pause longer than the batch before ends a run: a sensor that averages would carry
    the power of the time between into it.
    """
    run: list[Interval] = []
    for batch in sorted(batches, key=lambda batch: batch.start_ns):
        start, end = batch.start_ns / 1e9, batch.end_ns / 1e9
        if run and (not batch.counts or start - run[-1][1] > run[-1][1] - run[-1][0]):
            yield tuple(run)
            run = []
        if batch.counts:
            run.append((start, end))
    if run:
        yield tuple(run)


def _lacking(meters: dict[int, Meter], rails: dict[tuple[int, str], _Rail], run: Run) -> str:
    """Why the run gives no figure: the first rail that lacks samples. Empty when none does."""
    for (rank, name), rail in rails.items():
        reason = rail.lacks(run)
        if reason:
            meter = meters[rank]
            ended = f"; sampling ended early: {meter.ended}" if meter.ended else ""
            return f"{meter.source} {name} of rank {rank} has {reason}{ended}"
    return ""


def _idle_w(
    records: Iterable[Record], meters: dict[int, Meter], rails: dict[tuple[int, str], _Rail]
) -> dict[int, float]:
    """Mean watts of each device over the idle stretches that hold enough samples of all its rails."""
    stretches: list[Run] = [((i.start_ns / 1e9, i.end_ns / 1e9),) for i in records if isinstance(i, Idle)]
    idle_w: dict[int, float] = {}
    for rank, meter in meters.items():
        own = {key: rail for key, rail in rails.items() if key[0] == rank}
        good = [run for run in stretches if not _lacking(meters, own, run)]
        if good:
            joules = {name: sum(rail.joules(run) for run in good) for (_, name), rail in own.items()}
            idle_w[rank] = _of_device(meter, joules) / _seconds(good)
    return idle_w


def _mean_energy(
    meters: dict[int, Meter], rails: dict[tuple[int, str], _Rail], runs: list[Run], idle_w: dict[int, float]
) -> Energy:
    batches = sum(len(run) for run in runs)
    per_rail: dict[int, dict[str, float]] = {rank: {} for rank in meters}
    for (rank, name), rail in rails.items():
        per_rail[rank][name] = sum(rail.joules(run) for run in runs) / batches
    per_device = {rank: _of_device(meter, per_rail[rank]) for rank, meter in meters.items()}
    joules = sum(per_device.values())
    complete = len(idle_w) == len(meters)
    return Energy(
        joules=joules,
        per_device_j=per_device,
        per_rail_j=per_rail,
        idle_w=idle_w,
        above_idle_j=joules - sum(idle_w.values()) * _seconds(runs) / batches if complete else None,
        samples=min(sum(rail.samples(run) for run in runs) for rail in rails.values()),
        source=", ".join(sorted({meter.source for meter in meters.values()})),
    )


def _of_device(meter: Meter, rails: dict[str, float]) -> float:
    return rails[meter.total] if meter.total else sum(rails.values())


def _seconds(runs: Iterable[Run]) -> float:
    return sum(end - start for run in runs for start, end in run)


def modelled_energy(trace: Trace, profile: PowerProfile) -> Energy:
    """Model the energy as time in each state times the profile's watts of it, over the spans of every rank.

    Time of a batch that none of a rank's spans covers is idle; a transfer that computing hides draws the
    power of computing. Raises TraceError when no measured batch is complete.
    """
    done = trace.measured
    if not done:
        raise TraceError("the trace holds no complete measured batch; measure again with more batches")
    ranks = range(trace.header.plan.ranks)
    spans: dict[tuple[int, int], list[Span]] = defaultdict(list)
    for span in trace.spans:
        spans[span.batch, span.rank].append(span)
    per_device = {
        rank: sum(_modelled_j(batch, spans[batch.batch, rank], profile) for batch in done) / len(done) for rank in ranks
    }
    joules = sum(per_device.values())
    seconds = sum(batch.end_ns - batch.start_ns for batch in done) / 1e9 / len(done)
    return Energy(
        joules=joules,
        per_device_j=per_device,
        per_rail_j={},
        idle_w=dict.fromkeys(ranks, profile.idle_w),
        above_idle_j=joules - profile.idle_w * len(ranks) * seconds,
        samples=0,
        source=f"declared profile {profile.name}: {profile.covers}",
        modelled=True,
    )


def _modelled_j(batch: Batch, spans: list[Span], profile: PowerProfile) -> float:
    """Joules of one rank in one batch. Its spans never overlap each other; a worker's may reach past
    the batch's end, and count in full."""
    within = sum(max(0, min(s.end_ns, batch.end_ns) - max(s.start_ns, batch.start_ns)) for s in spans)
    idle_s = (batch.end_ns - batch.start_ns - within) / 1e9
    return idle_s * profile.idle_w + sum((s.end_ns - s.start_ns) / 1e9 * _watts(s, profile) for s in spans)


def _watts(span: Span, profile: PowerProfile) -> float:
    """Power during a span. The air is half-duplex: a wire span's time is shared by what was sent and
    what was received, by their bytes; without bytes the rank listens."""
    if span.kind == "compute":
        return profile.compute_w
    if span.kind == "wait":
        return profile.wait_w
    if span.kind != "wire":
        return profile.copy_w
    total = span.sent_bytes + span.received_bytes
    sent = span.sent_bytes / total if total else 0.0
    return sent * profile.transmit_w + (1 - sent) * profile.receive_w
