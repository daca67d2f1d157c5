"""Keep scored samples in a file, so that a killed evaluation goes on."""

from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import msgspec

from hw.evaluate.config import EvalConfig
from hw.evaluate.scores import SampleScore
from prism.errors import ConfigError
from prism.plan import ExecutionPlan


class EvalHeader(msgspec.Struct, frozen=True, kw_only=True, tag="evaluation", tag_field="type"):
    """The head of a file of scores: what makes two evaluations the same. command, created and host are the first's."""

    config: EvalConfig
    weights: str
    data: str
    plans: tuple[ExecutionPlan, ...]
    command: str = ""
    created: str = ""
    host: dict[str, Any] = {}

    def same(self, other: "EvalHeader") -> bool:
        """Whether scores of the other may stand in this one's file."""
        return _bare(self) == _bare(other)


def _bare(header: EvalHeader) -> bytes:
    """Encode what scores depend on. The batch counts: texts are padded to its longest, and a delta codec's groups go
    across its samples."""
    replace = msgspec.structs.replace
    config = replace(header.config, threads=None, map=None, bandwidth=None)
    return msgspec.json.encode(replace(header, command="", created="", host={}, config=config))


class Store:
    """Scored samples in a file, a line each. A truncated last line is dropped and its sample scored again."""

    def __init__(self, path: Path, header: EvalHeader) -> None:
        self.rows: dict[tuple[int, int], SampleScore] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                header = self._read(path, header)
            self._file: IO[bytes] = open(path, "ab")  # noqa: SIM115
        except OSError as error:
            raise ConfigError(f"{path} can't be written ({error.strerror}); choose another --output") from None
        self.header = header
        if self._file.tell() == 0:
            self._write(header)

    def _read(self, path: Path, header: EvalHeader) -> EvalHeader:
        raw = path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        lines = whole.splitlines()
        if not lines:
            path.write_bytes(b"")
            return header
        try:
            before = msgspec.json.decode(lines[0], type=EvalHeader)
            scores = [msgspec.json.decode(line, type=SampleScore) for line in lines[1:]]
        except msgspec.DecodeError as error:
            raise ConfigError(f"{path} is no evaluation ({error}); choose another --output") from None
        if not before.same(header):
            raise ConfigError(
                f"{path} holds another evaluation ({before.command}): other plans, data or weights; "
                f"choose another --output"
            )
        if len(whole) < len(raw):
            path.write_bytes(whole)
        self.rows = {(row.plan, row.sample): row for row in scores}
        return before

    def add(self, rows: Sequence[SampleScore]) -> None:
        """Append the scores that the file lacks."""
        for row in rows:
            if (row.plan, row.sample) not in self.rows:
                self.rows[row.plan, row.sample] = row
                self._write(row)
        self._file.flush()

    def _write(self, line: EvalHeader | SampleScore) -> None:
        self._file.write(msgspec.json.encode(line) + b"\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()
