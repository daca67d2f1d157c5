"""Log decisions: what was observed, decided and served. prism/decide/replay.py makes them again.

JSON lines, a header first, written line by line: a killed process leaves a file that loads.
"""

from pathlib import Path
from typing import Any

import msgspec

from prism.decide.policy import AnyPolicy, Decision
from prism.decide.table import CellPlace, Objective, Observation, TableRow
from prism.errors import TraceError
from prism.plan import ExecutionPlan

VERSION = 2  # version 1 corrected plans instead of cells


class LogHeader(msgspec.Struct, frozen=True, kw_only=True, tag="decisions", tag_field="type"):
    """Everything that decisions depend on but the observations, and the command that made them.

    rows: the table as it was at the start. map_hash: of the file it came from.
    """

    version: int = VERSION
    created: str
    command: str
    model: str
    policy: AnyPolicy
    objective: Objective
    rows: tuple[TableRow, ...]
    map_hash: str = ""
    link: str = ""
    host: dict[str, Any] = {}


class Decided(msgspec.Struct, frozen=True, kw_only=True, tag="decided", tag_field="type"):
    """One decision. epoch: of the group that it was made for."""

    number: int
    epoch: int
    observation: Observation
    plan: ExecutionPlan
    why: str
    expected_ms: float | None
    runner_up: ExecutionPlan | None
    runner_up_ms: float | None


class Answered(msgspec.Struct, frozen=True, kw_only=True, tag="answered", tag_field="type"):
    """The outcome of a decided batch. ms: until its answer. ran: the plan that gave it, local after a failure."""

    number: int
    at_s: float
    ms: float
    ran: ExecutionPlan
    failed: str = ""


class Corrected(msgspec.Struct, frozen=True, kw_only=True, tag="corrected", tag_field="type"):
    """A correction of the table: from here on, the latency of one cell is multiplied by a factor.

    version: of the table, from 1 on. batches: that the factor rests on.
    """

    at_s: float
    version: int
    place: CellPlace
    factor: float
    batches: int


Entry = Decided | Answered | Corrected


def decided(number: int, epoch: int, observation: Observation, decision: Decision) -> Decided:
    """Make the log's line of a decision."""
    expected, other = decision.expected, decision.runner_up
    return Decided(
        number=number,
        epoch=epoch,
        observation=observation,
        plan=decision.plan,
        why=decision.why,
        expected_ms=None if expected is None else expected.ms,
        runner_up=None if other is None else other.plan,
        runner_up_ms=None if other is None else other.ms,
    )


class DecisionLog(msgspec.Struct, frozen=True):
    """A log as read. cut: its last line was incomplete and is left out."""

    header: LogHeader
    entries: tuple[Entry, ...]
    cut: bool = False


def read_decisions(path: Path) -> DecisionLog:
    """Read a log. Raises TraceError for a file that is no decision log of this version."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise TraceError(f"{path}: can't be read ({error}); give a log that prism-hw serve wrote") from None
    cut, whole = bool(lines[-1]), [line for line in lines[:-1] if line]
    try:
        header = msgspec.json.decode(whole[0] if whole else b"", type=LogHeader)
        entries = tuple(msgspec.json.decode(line, type=Entry) for line in whole[1:])
    except msgspec.DecodeError as error:
        raise TraceError(f"{path}: is no decision log of version {VERSION} ({error})") from None
    if header.version != VERSION:
        raise TraceError(
            f"{path}: is a decision log of version {header.version}, not {VERSION}; serve again for a new one"
        )
    return DecisionLog(header, entries, cut)
