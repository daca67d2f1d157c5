"""Export traces to the JSON that Perfetto and chrome://tracing show."""

from collections.abc import Iterator
from typing import Any

import msgspec

from prism.trace.schema import KINDS, Batch, Span, Trace


def perfetto(*traces: Trace) -> bytes:
    """Perfetto JSON: a process for each rank of each trace, a lane for each kind. Each trace begins at 0."""
    events: list[dict[str, Any]] = []
    first = 0
    for trace in traces:
        events += _lanes(trace, first)
        first += 1 + max((span.rank for span in trace.spans), default=0)
    return msgspec.json.encode(
        {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"headers": [trace.header for trace in traces]}}
    )


def _lanes(trace: Trace, first: int) -> Iterator[dict[str, Any]]:
    """Events of one trace; its ranks are processes from `first` on."""
    origin = min((record.start_ns for record in trace.records if isinstance(record, Span | Batch)), default=0)
    for rank in sorted({span.rank for span in trace.spans}):
        name = f"rank {rank} ({trace.header.source})"
        yield {"ph": "M", "pid": first + rank, "name": "process_name", "args": {"name": name}}
        for lane, kind in enumerate(KINDS):
            yield {"ph": "M", "pid": first + rank, "tid": lane, "name": "thread_name", "args": {"name": kind}}
    for span in trace.spans:
        yield {
            "ph": "X",
            "pid": first + span.rank,
            "tid": KINDS.index(span.kind),
            "cat": span.kind,
            "name": span.op if span.block < 0 else f"{span.op} {span.block}",
            "ts": (span.start_ns - origin) / 1e3,
            "dur": (span.end_ns - span.start_ns) / 1e3,
            "args": {"batch": span.batch, "sent_bytes": span.sent_bytes, "received_bytes": span.received_bytes},
        }
