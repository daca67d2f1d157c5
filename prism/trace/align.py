"""Put the spans, power samples and probes of all ranks on the leader's clock."""

from collections import Counter, defaultdict
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
    messages = HandOvers(on_leader)
    return [
        part
        for span in on_leader
        for part in (_split_wait(span, messages.of(span)) if span.kind == "wire" else (span,))
    ]


class HandOvers:
    """When messages were handed over. One op and block may have several, as microbatches have: they arrive in order."""

    def __init__(self, spans: Iterable[Span]) -> None:
        self._issued: dict[tuple[int, int, str, int], list[int]] = defaultdict(list)
        self._taken: Counter[tuple[int, int, int, str, int]] = Counter()
        for span in sorted((s for s in spans if s.kind == "wire" and s.sent_bytes), key=lambda s: s.issued_ns):
            self._issued[span.batch, span.rank, span.op, span.block].append(span.issued_ns)

    def of(self, span: Span) -> list[int]:
        """When the sources of the next received span handed their messages over, where they say it."""
        found = []
        for source in span.sources:
            issued = self._issued.get((span.batch, source, span.op, span.block))
            if issued:
                place = (span.batch, span.rank, source, span.op, span.block)
                found.append(issued[min(self._taken[place], len(issued) - 1)])
                self._taken[place] += 1
        return found


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


def _split_wait(span: Span, handed: Sequence[int]) -> Iterator[Span]:
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
