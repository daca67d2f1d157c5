"""The only trace schema: one header line and flat records, as JSON lines.

A file is written line by line and flushed, so that a killed process leaves a file that loads: the
reader drops one cut last line and says so. Times are integer nanoseconds on the terminal's
monotonic clock. docs/trace-schema.md describes every field.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal

import msgspec

from prism.errors import TraceError
from prism.plan import ExecutionPlan
from prism.spec import ModelSpec, PowerProfile

SCHEMA_VERSION = 1
SensorName = Literal["ina3221", "jtop", "rapl"]  # each has its module in hw/energy; "auto" tries them in this order
MeterName = Literal["auto", "none", SensorName]  # what a run may ask for
Kind = Literal["compute", "stage_d2h", "wait", "wire", "stage_h2d"]
KINDS: tuple[Kind, ...] = ("compute", "stage_d2h", "wait", "wire", "stage_h2d")


PACE = "pace"  # op of the probes beside the batches that tell how quick the machine was


class TraceHeader(msgspec.Struct, frozen=True, kw_only=True, tag="header", tag_field="type"):
    """What was run, on what, and the command that reproduces it. `power` is a declaration of the user's,
    from which energy is modelled where no sensor was read. spec: the model's shape; null in older files."""

    schema: int = SCHEMA_VERSION
    source: Literal["measured", "simulated"]
    created: str
    model: str
    weights: str
    plan: ExecutionPlan
    batch: int
    tokens: int
    link: str
    seed: int
    command: str
    oversubscribed: bool = False
    config: dict[str, Any] = {}
    config_hash: str = ""
    host: dict[str, Any] = {}
    power: PowerProfile | None = None
    spec: ModelSpec | None = None


# no cycle leads through a span, and there are hundreds of thousands of them: the collector needn't look
class Span(msgspec.Struct, frozen=True, kw_only=True, tag="span", tag_field="type", gc=False):
    """One stretch of one rank's time; the spans of a rank within a batch never overlap.

    op: the step inside the kind (embed, compress, project, attend, head, exchange, ...).
    block: the Transformer block; -1 before the first, the number of blocks after the last.
    issued_ns: on wire spans, when this rank handed its own message over.
    sources: on wire spans, the ranks whose messages were waited for.
    sent_bytes, received_bytes: payload of the messages, without headers of lower layers.
    """

    batch: int
    rank: int
    kind: Kind
    op: str
    block: int
    start_ns: int
    end_ns: int
    issued_ns: int = 0
    sources: tuple[int, ...] = ()
    sent_bytes: int = 0
    received_bytes: int = 0


class Batch(msgspec.Struct, frozen=True, kw_only=True, tag="batch", tag_field="type"):
    """One whole batch as the terminal saw it. Written after its spans; `failed` ones have a reason."""

    batch: int
    size: int
    start_ns: int
    end_ns: int
    warmup: bool = False
    failed: str = ""


class Clock(msgspec.Struct, frozen=True, kw_only=True, tag="clock", tag_field="type"):
    """A rank's monotonic clock minus the terminal's, estimated by round trips; error is half of the best."""

    rank: int
    at_ns: int
    offset_ns: int
    error_ns: int


class Meter(msgspec.Struct, frozen=True, kw_only=True, tag="meter", tag_field="type"):
    """What the power samples of `rank` come from: one a device, the first of its ranks reads it.

    rails: what is sampled; `total` names the rail that stands for the device, or is empty when the
    device is the sum of its rails. covers: the ranks that run on this device. ended: why sampling
    stopped early; a second record of the same rank says so.
    """

    rank: int
    source: SensorName
    rails: tuple[str, ...]
    total: str = ""
    covers: tuple[int, ...] = ()
    ended: str = ""


class Power(msgspec.Struct, frozen=True, kw_only=True, tag="power", tag_field="type"):
    """One raw sample of one rail, at the middle of its read."""

    rank: int
    rail: str
    at_ns: int
    watts: float


class Idle(msgspec.Struct, frozen=True, kw_only=True, tag="idle", tag_field="type"):
    """A stretch in which every rank was loaded and none was asked for anything."""

    start_ns: int
    end_ns: int


class Probe(msgspec.Struct, frozen=True, kw_only=True, tag="probe", tag_field="type"):
    """One timed repeat of a micro-benchmark: `calls` calls of `op` between start and end, back to back.

    op: gemm, attention, norm, elementwise, block, d2h, h2d, pack, unpack, pair, mesh, ring; and pace, a block of one shape
    that is timed beside the batches of a run.
    shape: what the op's own documentation in hw/probe/suite.py says, in that order.
    flops, bytes: of one call, by prism.workload's rules (exchange: payload bytes of one message).
    """

    rank: int
    op: str
    shape: tuple[int, ...]
    flops: int
    bytes: int
    start_ns: int
    end_ns: int
    calls: int = 1
    warmup: bool = False


Record = Span | Batch | Clock | Meter | Power | Idle | Probe
_HEADER, _RECORD = msgspec.json.Decoder(TraceHeader), msgspec.json.Decoder(Record)


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """A header and its records, in the order written. `cut` says that a truncated last line was dropped."""

    header: TraceHeader
    records: tuple[Record, ...]
    cut: bool = False

    @property
    def spans(self) -> list[Span]:
        return [record for record in self.records if isinstance(record, Span)]

    @property
    def probes(self) -> list[Probe]:
        return [record for record in self.records if isinstance(record, Probe)]

    @property
    def batches(self) -> list[Batch]:
        return [record for record in self.records if isinstance(record, Batch)]

    @property
    def measured(self) -> list[Batch]:
        """Batches that are neither warm-up nor failed."""
        return [batch for batch in self.batches if not batch.warmup and not batch.failed]


class TraceWriter:
    """Appends records to a JSON lines file, a flush for each call. Use as a context manager."""

    def __init__(self, file: IO[bytes], header: TraceHeader) -> None:
        self._file = file
        self._encoder = msgspec.json.Encoder()
        self._lines([header])

    def write(self, records: Iterable[Record]) -> None:
        self._lines(records)

    def _lines(self, items: Iterable[TraceHeader | Record]) -> None:
        data = b"".join(self._encoder.encode(item) + b"\n" for item in items)
        try:
            while data:  # an unbuffered file may take less than it is given
                data = data[self._file.write(data) :]
            self._file.flush()
        except OSError as error:
            raise TraceError(
                f"trace {self._file.name} can't be written ({error.strerror}); free space there, then run again"
            ) from None


def write_trace(path: Path, header: TraceHeader, records: Iterable[Record]) -> None:
    """A whole trace at once. Raises TraceError where it can't be written."""
    try:
        with open(path, "wb", buffering=0) as file:
            TraceWriter(file, header).write(records)
    except OSError as error:
        raise TraceError(f"trace {path} can't be written ({error.strerror}); choose another place") from None


def now_text() -> str:
    """UTC, to the second, for headers."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def read_trace(path: Path) -> Trace:
    """Load a trace. A cut last line is dropped and marked; anything else wrong raises TraceError."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise TraceError(f"{path}: can't be read ({error}); give the path of a trace file") from None
    head, newline, rest = raw.partition(b"\n")
    if not newline:
        raise TraceError(f"{path}: holds no complete header line; measure again with prism-hw run --trace FILE")
    whole = rest[: rest.rfind(b"\n") + 1]
    header: TraceHeader = _decode(head, _HEADER, path, 1)
    if header.schema != SCHEMA_VERSION:
        raise TraceError(f"{path}: schema {header.schema}, this version reads {SCHEMA_VERSION}; measure it again")
    return Trace(header=header, records=_records(whole, path), cut=len(whole) < len(rest))


def _records(lines: bytes, path: Path) -> tuple[Record, ...]:
    """All at once, which takes half of the time; line by line where a line isn't one record, to name it."""
    try:
        found = _RECORD.decode_lines(lines)
        if len(found) == lines.count(b"\n"):
            return tuple(found)
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    return tuple(_decode(line, _RECORD, path, number) for number, line in enumerate(lines.split(b"\n")[:-1], 2))


def _decode(line: bytes, decoder: msgspec.json.Decoder[Any], path: Path, number: int) -> Any:
    try:
        return decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:  # the second: bytes that are no UTF-8
        raise TraceError(
            f"{path}: line {number} is no trace record ({error}); the file is damaged, measure it again"
        ) from None


def aligned(spans: Sequence[Span], offset_ns: Mapping[int, int]) -> list[Span]:
    """Spans of all ranks of one batch on the terminal's clock, each wire span split where the last of
    its sources handed its message over: `wait` before, `wire` after. Nothing is counted twice."""
    shifted = [_shift(span, offset_ns.get(span.rank, 0)) for span in spans]
    issued = {(s.rank, s.op, s.block): s.issued_ns for s in shifted if s.kind == "wire"}
    return [part for span in shifted for part in (_split_wait(span, issued) if span.kind == "wire" else (span,))]


def aligned_power(records: Iterable[Record], offset_ns: Mapping[int, int]) -> list[Record]:
    """Power samples of all ranks on the terminal's clock; other records as they are."""
    return [
        msgspec.structs.replace(record, at_ns=record.at_ns - offset_ns.get(record.rank, 0))
        if isinstance(record, Power)
        else record
        for record in records
    ]


def _shift(span: Span, offset: int) -> Span:
    if not offset:
        return span
    return msgspec.structs.replace(
        span,
        start_ns=span.start_ns - offset,
        end_ns=span.end_ns - offset,
        issued_ns=span.issued_ns - offset if span.kind == "wire" else 0,
    )


def _split_wait(span: Span, issued: Mapping[tuple[int, str, int], int]) -> Iterator[Span]:
    known = [issued[key] for source in span.sources if (key := (source, span.op, span.block)) in issued]
    ready = min(max([span.start_ns, *known]), span.end_ns)
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


def perfetto(*traces: Trace) -> bytes:
    """Chrome/Perfetto JSON: a process per rank of each trace, a lane per kind. Each trace begins at 0."""
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
