"""Define the performance map: what a model costs in each mode, batch and bandwidth, and what each figure rests on.

A map is one JSON file with a version.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from prism.errors import TraceError
from prism.files import write_json
from prism.labels import plan_label, short
from prism.link import LinkSpec
from prism.plan import LOCAL, ExecutionPlan
from prism.trace import TraceSource
from prism.trace.energy import Energy
from prism.trace.metrics import Latency
from prism.trace.quantiles import median

VERSION = 1


class Case(NamedTuple):
    """A batch of one model. The cells of one case are rivals: each is another way to compute the same batch."""

    source: TraceSource
    model: str
    tokens: int
    batch: int


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """What a cell was computed from.

    files: name and hash of each visit's trace.
    created: start of the first and of the last visit.
    configs: hashes of the visits' configurations.
    cut: a file lacked its end, and counts as far as it goes.
    """

    files: tuple[tuple[str, str], ...]
    created: tuple[str, str]
    host: dict[str, Any]
    configs: tuple[str, ...]
    commands: tuple[str, ...]
    cut: bool = False


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One plan at one batch over one link. A local cell has no link: bandwidth_mbps is null.

    bandwidth_mbps: of the link's medium, as configured.
    latency_ms: over the pooled batches of all visits, warm-ups and failed ones left out.
    visit_p50_ms: the median of each visit, in order of time.
    spread_ms: range in which the median may lie: that of the visits' medians, widened to the quartiles of the
    batches. Of more than five visits the outer tenth on either side is left out: the whole range would grow with
    every visit, until a stalled one makes it meaningless.
    split_ms: the leader's, as in Summary.
    visit_pace_ms: milliseconds of the pace block at each visit, the mean over the plan's ranks
    (prism.trace.metrics.pace_ms); empty where a visit lacks it.
    energy_j: measured joules of a batch, all devices together; null where not measured, and energy_note says why.
    """

    source: TraceSource
    model: str
    tokens: int
    weights: str
    plan: ExecutionPlan
    batch: int
    link: LinkSpec
    bandwidth_mbps: float | None
    latency_ms: Latency
    visit_p50_ms: tuple[float, ...]
    spread_ms: tuple[float, float]
    per_sample_ms: float
    split_ms: dict[str, float]
    bytes_per_exchange: int
    effective_bandwidth_mbps: float | None
    energy_j: float | None
    energy: Energy | None
    energy_note: str
    batches: int
    failed: int
    visits: int
    oversubscribed: bool
    provenance: Provenance
    visit_pace_ms: tuple[float, ...] = ()

    @property
    def pace_ms(self) -> float | None:
        """The median over the visits; None where a visit lacks it."""
        return median(self.visit_pace_ms) if self.visit_pace_ms else None

    @property
    def workload(self) -> Case:
        """The batch that this cell computes."""
        return Case(self.source, self.model, self.tokens, self.batch)

    def within_noise(self, other: "Cell") -> bool:
        """Whether the median of either lies within the spread of the other."""
        return any(a.spread_ms[0] <= b.latency_ms.p50 <= a.spread_ms[1] for a, b in ((self, other), (other, self)))

    @property
    def label(self) -> str:
        """One line that names the cell."""
        link = "" if self.plan.ranks == 1 else f", {self.link}"
        return f"{short(self.model)} B={self.batch} {plan_label(self.plan)}{link}"


class PerformanceMap(msgspec.Struct, frozen=True, kw_only=True):
    """Cells in a fixed order. left_out: a line for each trace file that gave no cell."""

    version: int = VERSION
    created: str
    command: str
    cells: tuple[Cell, ...]
    left_out: tuple[str, ...] = ()

    def lookup(self, workload: Case, plan: ExecutionPlan, link: LinkSpec | None = None) -> Cell | None:
        """The cell of exactly this plan and link, or None where it was not measured. Local needs no link."""
        wanted = (canonical_plan(plan), link if plan.ranks > 1 else LinkSpec())
        return next((c for c in self.cells if c.workload == workload and (c.plan, c.link) == wanted), None)

    def local(self, workload: Case) -> Cell | None:
        """The cell of one device, or None where it was not measured."""
        return self.lookup(workload, LOCAL)

    def save(self, path: Path) -> None:
        """Write the map's file. Raises ConfigError where it can't be written."""
        write_json(path, self)


class _Version(msgspec.Struct):
    version: int


def load_map(path: Path) -> PerformanceMap:
    """Load a map. Raises TraceError for a file that can't be read, is damaged, or is of another version."""
    remedy = "make it again with prism-hw map"
    try:
        raw = path.read_bytes()
        version = msgspec.json.decode(raw, type=_Version).version
        if version != VERSION:
            raise TraceError(f"{path}: map version {version}, this version reads {VERSION}; {remedy}")
        return msgspec.json.decode(raw, type=PerformanceMap)
    except OSError as error:
        raise TraceError(f"{path}: can't be read ({error}); give the path of a map") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:  # the second: bytes that are no UTF-8
        raise TraceError(f"{path}: is no performance map or damaged ({error}); {remedy}") from None


def canonical_plan(plan: ExecutionPlan) -> ExecutionPlan:
    """The plan without what plays no part in it: one device exchanges nothing."""
    return LOCAL if plan.ranks == 1 else plan


def workloads(cells: Iterable[Cell]) -> list[Case]:
    """The cases of some cells, each once, in their order."""
    return list(dict.fromkeys(cell.workload for cell in cells))
