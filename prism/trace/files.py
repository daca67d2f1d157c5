"""Write and read trace files: one JSON line for the header, one for each record.

A file is written line by line and flushed, so that a killed process leaves a file that loads: the reader
drops one truncated last line and marks the trace as cut.
"""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import msgspec

from prism.errors import InputError, TraceError
from prism.files import write_file
from prism.trace.schema import SCHEMA_VERSION, Record, Trace, TraceHeader

_HEADER, _RECORD = msgspec.json.Decoder(TraceHeader), msgspec.json.Decoder(Record)


@contextlib.contextmanager
def trace_file(path: str | None) -> Iterator[IO[bytes] | None]:
    """Open a file for a TraceWriter; None for no path. Raises InputError where it can't be opened."""
    if path is None:
        yield None
        return
    try:
        file = open(path, "wb", buffering=0)  # noqa: SIM115 - closed below; only opening it may fail as bad input
    except OSError as error:
        raise InputError(f"trace {path} can't be written ({error}); choose another --trace") from None
    with file:
        yield file


class TraceWriter:
    """Append the records of a run that is under way to an open file, flushed with each call."""

    def __init__(self, file: IO[bytes], header: TraceHeader) -> None:
        self._file = file
        self._append(_lines([header]))

    def write(self, records: Iterable[Record]) -> None:
        """Append records. Raises TraceError where the disk is full."""
        self._append(_lines(records))

    def _append(self, data: bytes) -> None:
        try:
            while data:  # an unbuffered file may take less than it is given
                data = data[self._file.write(data) :]
            self._file.flush()
        except OSError as error:
            raise TraceError(
                f"trace {self._file.name} can't be written ({error.strerror}); free space there, then run again"
            ) from None


def write_trace(path: Path, header: TraceHeader, records: Iterable[Record]) -> None:
    """Write a whole trace at once. Raises ConfigError where it can't be written."""
    write_file(path, _lines([header, *records]))


def _lines(items: Iterable[TraceHeader | Record]) -> bytes:
    encoder = msgspec.json.Encoder()
    return b"".join(encoder.encode(item) + b"\n" for item in items)


def read_trace(path: Path) -> Trace:
    """Load a trace. A truncated last line is dropped and marked; anything else wrong raises TraceError."""
    return parse_trace(read_bytes(path), path)


def read_bytes(path: Path) -> bytes:
    """Read the bytes of a trace file. Raises TraceError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise TraceError(f"{path}: can't be read ({error}); give the path of a trace file") from None


def parse_trace(raw: bytes, path: Path) -> Trace:
    """Decode the bytes of a trace file; `path` is for the message of a TraceError."""
    head, newline, rest = raw.partition(b"\n")
    if not newline:
        raise TraceError(f"{path}: holds no complete header line; measure again with prism-hw run --trace FILE")
    whole = rest[: rest.rfind(b"\n") + 1]
    header: TraceHeader = _decode(head, _HEADER, path, 1)
    if header.schema != SCHEMA_VERSION:
        raise TraceError(f"{path}: schema {header.schema}, this version reads {SCHEMA_VERSION}; measure it again")
    return Trace(header=header, records=_records(whole, path), cut=len(whole) < len(rest))


def _records(lines: bytes, path: Path) -> tuple[Record, ...]:
    """Decode all lines at once, which halves the time; one by one where a line isn't one record, to name it."""
    try:
        records = _RECORD.decode_lines(lines)
        if len(records) == lines.count(b"\n"):
            return tuple(records)
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
