"""Read trace files in bulk and pool the visits of one cell into one trace, without reducing anything."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from prism.errors import TraceError
from prism.spec import ModelSpec
from prism.trace import Batch, Probe, Record, Span, Trace, TraceHeader
from prism.trace.files import parse_trace, read_bytes

TIMES = ("start_ns", "end_ns", "at_ns")  # on the leader's clock; a record has one or two of them
# facts that two runs must share for their times to be comparable; the clock, read once at the start, is none
MACHINE = (
    "system",
    "processor",
    "cores",
    "threads",
    "device",
    "governor",
    "power_mode",
    "tcp_congestion_control",
    "versions",
)


class TraceFile(msgspec.Struct, frozen=True, kw_only=True):
    """A trace, the name of its file without folders, and a hash of its bytes."""

    name: str
    digest: str
    trace: Trace


class TraceSet(msgspec.Struct, frozen=True, kw_only=True):
    """Traces in order of their start. left_out: a line for each file that gave none."""

    files: tuple[TraceFile, ...]
    left_out: tuple[str, ...] = ()

    def models(self) -> list[str]:
        """Names of the models, sorted."""
        return sorted({file.trace.header.model for file in self.files})

    def shapes(self) -> dict[str, ModelSpec]:
        """The shape of each model whose traces record one. Raises TraceError where two differ in more than tokens."""
        shapes: dict[str, ModelSpec] = {}
        for header in (file.trace.header for file in self.files):
            if header.spec is not None:
                first = shapes.setdefault(header.model, header.spec)
                if msgspec.structs.replace(header.spec, tokens=first.tokens) != first:
                    raise TraceError(f"traces of {header.model} are of two shapes; give each model's alone")
        return shapes


def read_traces(paths: Iterable[Path]) -> TraceSet:
    """Read files, and every *.jsonl directly inside of folders.

    A file that can't be read, holds no measured batch or repeats another is left out with its reason. Raises
    TraceError for a path or a folder without traces.
    """
    by_digest: dict[str, TraceFile] = {}
    left_out: list[str] = []
    for path in sorted({file.resolve() for file in _files(paths)}):
        try:
            file = _read(path)
        except TraceError as error:
            left_out.append(str(error).replace(str(path), path.name))
            continue
        if file.digest in by_digest:
            left_out.append(f"{path.name}: the same bytes as {by_digest[file.digest].name}")
        elif not whole_batches(file.trace):
            left_out.append(f"{path.name}: holds no complete measured batch")
        elif file.trace.header.config.get("in_flight", 1) > 1:
            left_out.append(f"{path.name}: its batches were in flight together, so their latencies are a queue's")
        else:
            by_digest[file.digest] = file
    files = sorted(by_digest.values(), key=order)
    return TraceSet(files=tuple(files), left_out=tuple(sorted(left_out)))


def order(file: TraceFile) -> tuple[str, str]:
    """Sort key that doesn't depend on the order in which files were named."""
    return file.trace.header.created, file.digest


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        inside = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not inside:
            raise TraceError(f"{path} holds no *.jsonl file; give the folder that prism-hw profile wrote")
        if not path.exists():
            raise TraceError(f"{path} doesn't exist; give trace files or the folder that prism-hw profile wrote")
        yield from inside


def _read(path: Path) -> TraceFile:
    raw = read_bytes(path)
    digest = hashlib.blake2b(raw, digest_size=8).hexdigest()
    return TraceFile(name=path.name, digest=digest, trace=parse_trace(raw, path))


def whole_batches(trace: Trace) -> list[Batch]:
    """Measured batches of the header's size; the last one of a pass over all inputs may be smaller."""
    return [batch for batch in trace.measured if batch.size == trace.header.batch]


def machine(header: TraceHeader) -> dict[str, Any]:
    """Facts of a header's host, flat, that two runs must share for their times to be compared."""
    facts = {key: header.host[key] for key in MACHINE if key in header.host}
    versions = facts.pop("versions", {})
    return {**facts, **{f"version of {name}": number for name, number in sorted(versions.items())}}


def setting(header: TraceHeader) -> dict[str, Any]:
    """Facts that the visits of one cell must share."""
    medium = header.host.get("testbed", {}).get("medium") if header.plan.ranks > 1 else None
    return {
        **machine(header),
        "weights": header.weights,
        "oversubscribed": header.oversubscribed,
        "declared power": header.power.name if header.power else None,
        "medium": medium,
    }


def same(facts: Sequence[tuple[str, dict[str, Any]]], what: str) -> None:
    """Refuse facts that differ between files. Raises TraceError with the first difference.

    facts: name of a file, and its facts. what: the subject of the message.
    """
    first, expected = facts[0]
    for name, other in facts[1:]:
        for key in sorted(expected.keys() | other.keys()):
            if expected.get(key) != other.get(key):
                raise TraceError(
                    f"{what}: {key} is {expected.get(key)!r} in {first} and {other.get(key)!r} in {name}; "
                    f"use each alone, or measure both alike with prism-hw profile"
                )


def pool(traces: Sequence[Trace]) -> Trace:
    """Join the visits of one cell into one trace under the first header.

    Batches are numbered on and clocks follow each other, far enough apart that no run of back-to-back batches
    reaches from one visit into the next.
    """
    records: list[Record] = []
    batches, end_ns = 0, 0
    for trace in traces:
        kept = [record for record in trace.records if not isinstance(record, Probe) and _whole(record, trace)]
        times = [time for record in kept for time in _times(record)]
        longest = max((b.end_ns - b.start_ns for b in trace.batches), default=0)
        shift = end_ns + longest - min(times)
        records += [_moved(record, batches, shift) for record in kept]
        batches += 1 + max(record.batch for record in kept if isinstance(record, Span | Batch))
        end_ns = max(times) + shift + longest + 1
    return Trace(header=traces[0].header, records=tuple(records), cut=any(trace.cut for trace in traces))


def _whole(record: Record, trace: Trace) -> bool:
    return not isinstance(record, Batch) or record.size == trace.header.batch


def _times(record: Record) -> tuple[int, ...]:
    if isinstance(record, Span):  # nearly all records are spans, so they skip the look-up by name, here and in _moved
        return record.start_ns, record.end_ns
    return tuple(getattr(record, name) for name in TIMES if hasattr(record, name))


def _moved(record: Record, batches: int, shift: int) -> Record:
    if isinstance(record, Span):
        issued_ns = record.issued_ns + shift if record.kind == "wire" else record.issued_ns
        return msgspec.structs.replace(
            record,
            batch=record.batch + batches,
            start_ns=record.start_ns + shift,
            end_ns=record.end_ns + shift,
            issued_ns=issued_ns,
        )
    changes: dict[str, Any] = {name: getattr(record, name) + shift for name in TIMES if hasattr(record, name)}
    if isinstance(record, Batch):
        changes["batch"] = record.batch + batches
    return msgspec.structs.replace(record, **changes) if changes else record
