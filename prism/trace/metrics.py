"""Reduce a Trace to a Summary: medians over the batches that are neither warm-up nor failed."""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence

import msgspec

from prism.errors import TraceError
from prism.trace import KINDS, PACE, Batch, Span, Trace
from prism.trace.align import HandOvers
from prism.trace.energy import Energy, measured_energy, modelled_energy
from prism.trace.quantiles import median, quantile


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds of a batch."""

    p50: float
    p95: float


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What a trace says.

    split_ms: the leader's, and adds up to the batch. bytes_per_exchange: one message of the leader in one block.
    coverage: share of the batches' time that the leader's spans account for.
    energy_note: why energy is not measured; empty where it is.
    samples_per_s: what a stream sustains.
    """

    batches: int
    latency_ms: Latency
    split_ms: dict[str, float]
    split_per_rank_ms: dict[int, dict[str, float]]
    bytes_per_exchange: int
    effective_bandwidth_mbps: float | None
    coverage: float
    energy: Energy | None = None
    energy_note: str = ""
    samples_per_s: float = 0.0

    @property
    def energy_j(self) -> float | None:
        """Measured joules per batch of all devices together; None where they are modelled or unknown."""
        return None if self.energy is None or self.energy.modelled else self.energy.joules


def summarise(trace: Trace) -> Summary:
    """Summarise a trace. Raises TraceError when no measured batch is complete."""
    done = trace.measured
    if not done:
        raise TraceError("the trace holds no complete measured batch; measure again with more batches")
    numbers = {batch.batch for batch in done}
    spans = [span for span in trace.spans if span.batch in numbers]
    per_rank = {rank: _split(part, numbers) for rank, part in sorted(_by_rank(spans).items())}
    energy, note = _energy(trace)
    rates = bandwidths(spans)
    total_ms = [(batch.end_ns - batch.start_ns) / 1e6 for batch in done]
    return Summary(
        batches=len(done),
        latency_ms=Latency(p50=median(total_ms), p95=quantile(total_ms, 95)),
        split_ms=per_rank.get(0, dict.fromkeys(KINDS, 0.0)),
        split_per_rank_ms=per_rank,
        bytes_per_exchange=_exchange_bytes(spans, trace.header.plan.parts),
        effective_bandwidth_mbps=median(rates) if rates else None,
        coverage=_coverage(done, spans),
        energy=energy,
        energy_note=note,
        samples_per_s=samples_per_s(done),
    )


def samples_per_s(batches: Sequence[Batch]) -> float:
    """Samples per second that a stream sustains.

    Of batches in flight together, counted from the first one's answer to the last one's. Of batches one after another,
    over the time that they took: pauses between them are the measurement's.
    """
    first, *others = sorted(batches, key=lambda batch: batch.end_ns)
    together = any(later.start_ns < earlier.end_ns for earlier, later in itertools.pairwise([first, *others]))
    if together:
        return sum(batch.size for batch in others) * 1e9 / (others[-1].end_ns - first.end_ns)
    return sum(batch.size for batch in batches) * 1e9 / sum(batch.end_ns - batch.start_ns for batch in batches)


def pace_ms(trace: Trace) -> dict[int, float]:
    """Milliseconds of the pace block (hw/probe/pace.py) on each rank that timed it: the median over its stretches."""
    times_ms: dict[int, list[float]] = defaultdict(list)
    for probe in trace.probes:
        if probe.op == PACE and not probe.warmup:
            times_ms[probe.rank].append((probe.end_ns - probe.start_ns) / 1e6 / probe.calls)
    return {rank: median(times) for rank, times in times_ms.items()}


def _energy(trace: Trace) -> tuple[Energy | None, str]:
    """Measured before modelled; modelled only where the header declares a power profile."""
    measured = measured_energy(trace)
    if isinstance(measured, Energy):
        return measured, ""
    if trace.header.power is None:
        return None, f"not measured: {measured}"
    return modelled_energy(trace, trace.header.power), f"modelled, not measured: {measured}"


def _by_rank(spans: Iterable[Span]) -> dict[int, list[Span]]:
    groups: dict[int, list[Span]] = defaultdict(list)
    for span in spans:
        groups[span.rank].append(span)
    return groups


def _split(spans: list[Span], numbers: set[int]) -> dict[str, float]:
    """Median over batches of the milliseconds spent in each kind."""
    sums: dict[str, dict[int, float]] = {kind: dict.fromkeys(numbers, 0.0) for kind in KINDS}
    for span in spans:
        sums[span.kind][span.batch] += (span.end_ns - span.start_ns) / 1e6
    return {kind: median(values.values()) for kind, values in sums.items()}


def _exchanges(spans: list[Span]) -> list[Span]:
    return [span for span in spans if span.kind == "wire" and span.op == "exchange"]


def _exchange_bytes(spans: list[Span], parts: int) -> int:
    """Payload of one message of the leader's block exchange."""
    sent = [span.sent_bytes // (parts - 1) for span in _exchanges(spans) if span.rank == 0]
    return int(median(sent)) if sent else 0


def bandwidths(spans: list[Span]) -> list[float]:
    """Megabits per second of each batch with messages: what arrived at all ranks over the time that any was under way.

    A message is under way from its hand-over to its arrival; overlaps count once. A message that arrives while its
    receiver still computes is seen late, so each figure is a lower bound.
    """
    wires = [span for span in spans if span.kind == "wire"]
    messages = HandOvers(wires)
    under_way: dict[int, list[tuple[int, int]]] = defaultdict(list)
    received: dict[int, int] = defaultdict(int)
    for span in wires:
        sources = messages.of(span)
        if sources:
            under_way[span.batch].append((min(sources), span.end_ns))
            received[span.batch] += span.received_bytes
    return [received[batch] * 8e3 / busy for batch, intervals in under_way.items() if (busy := _union(intervals)) > 0]


def _union(intervals: list[tuple[int, int]]) -> int:
    """Length of the union of intervals."""
    total, reached = 0, min(start for start, _ in intervals)
    for start, end in sorted(intervals):
        total += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _coverage(done: list[Batch], spans: list[Span]) -> float:
    """Share of the batches' time that the leader's spans account for."""
    covered = sum(span.end_ns - span.start_ns for span in spans if span.rank == 0)
    return covered / sum(batch.end_ns - batch.start_ns for batch in done)
