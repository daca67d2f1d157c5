"""Put the spans, power samples and probes of all ranks on the leader's clock."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import msgspec

from prism.trace.schema import Power, Probe, Record, Span

Timed = TypeVar("Timed", Span, Power, Probe)


def aligned(spans: Sequence[Span], offset_ns: Mapping[int, int]) -> list[Span]:
    """Put the spans of all ranks of one batch on the leader's clock, and split each wire span in two.

    Before the last of its sources handed its message over a rank waits (`wait`), after that the message moves
    (`wire`). offset_ns: of each rank's clock, less the leader's.
    """
    on_leader = [shifted(span, offset_ns.get(span.rank, 0)) for span in spans]
    issued = {(s.rank, s.op, s.block): s.issued_ns for s in on_leader if s.kind == "wire"}
    return [part for span in on_leader for part in (_split_wait(span, issued) if span.kind == "wire" else (span,))]


def aligned_power(records: Iterable[Record], offset_ns: Mapping[int, int]) -> list[Record]:
    """Put the power samples of all ranks on the leader's clock; other records stay as they are."""
    return [
        shifted(record, offset_ns.get(record.rank, 0)) if isinstance(record, Power) else record for record in records
    ]


def shifted(record: Timed, offset_ns: int) -> Timed:
    """Put a record on the leader's clock. offset_ns: of its rank's clock, less the leader's."""
    if not offset_ns:
        return record
    if isinstance(record, Power):
        return msgspec.structs.replace(record, at_ns=record.at_ns - offset_ns)
    times = {"start_ns": record.start_ns - offset_ns, "end_ns": record.end_ns - offset_ns}
    if isinstance(record, Span):
        times["issued_ns"] = record.issued_ns - offset_ns if record.kind == "wire" else 0
    return msgspec.structs.replace(record, **times)


def _split_wait(span: Span, issued: Mapping[tuple[int, str, int], int]) -> Iterator[Span]:
    handed = [issued[key] for source in span.sources if (key := (source, span.op, span.block)) in issued]
    ready = min(max([span.start_ns, *handed]), span.end_ns)
    if ready > span.start_ns:
        yield Span(
            batch=span.batch,
            rank=span.rank,
            kind="wait",
            op=span.op,
            block=span.block,
            start_ns=span.start_ns,
            end_ns=ready,
        )
    yield msgspec.structs.replace(span, start_ns=ready)
