"""The performance map: what a model costs in each mode, batch and bandwidth, and what each figure rests on.

Built from raw traces, of which the visits of a cell are pooled: only here do medians arise. A map is one
JSON file with a version. prism/perfmap/crossover.py says where the better plan changes, and compares two maps.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from prism.errors import TraceError
from prism.link import LinkSpec
from prism.perfmap.pooling import TraceFile, TraceSet, machine, order, pool, same, setting, whole_batches
from prism.plan import LOCAL, ExecutionPlan, Mode, plan_label
from prism.trace import TraceHeader, TraceSource, now_text
from prism.trace.energy import Energy
from prism.trace.metrics import Latency, pace_ms, summarise

VERSION = 1


class Workload(NamedTuple):
    """Cells of one workload answer the same question, and are compared with each other."""

    source: TraceSource
    model: str
    tokens: int
    batch: int


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """What a cell was computed from. files: name and hash of each visit's trace; created: first and last start.
    configs: hashes of the visits' configurations; cut: a file lacked its end, and counts as far as it goes."""

    files: tuple[tuple[str, str], ...]
    created: tuple[str, str]
    host: dict[str, Any]
    configs: tuple[str, ...]
    commands: tuple[str, ...]
    cut: bool = False


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One plan at one batch over one link. A local cell has no link: bandwidth_mbps is null.

    latency_ms: over the pooled batches of all visits, warm-ups and failed ones left out. visit_p50_ms: the median
    of each visit, in order of time. spread_ms: from where to where the median may lie: the range of the visits'
    medians, widened to the quartiles of the batches. Of more than five visits the outer tenth on either side is
    left out: the whole range would grow with every visit, until one that stalled makes it say nothing.
    split_ms: the terminal's, as in Summary. visit_pace_ms: how quick the machine was at each visit, the mean over the plan's
    ranks (prism.trace.metrics.pace_ms); empty where a visit lacks it.
    bandwidth_mbps: of the link's medium, as configured. energy_j: measured joules of a batch, all devices
    together; null where they are not measured, and energy_note says why.
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
        """The median over the visits."""
        return float(np.median(self.visit_pace_ms)) if self.visit_pace_ms else None

    @property
    def workload(self) -> Workload:
        return Workload(self.source, self.model, self.tokens, self.batch)

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

    def lookup(self, workload: Workload, plan: ExecutionPlan, link: LinkSpec | None = None) -> Cell | None:
        """The cell of exactly this plan and link, or None where it was not measured. Local needs no link."""
        wanted = (canonical_plan(plan), link if plan.ranks > 1 else LinkSpec())
        return next((c for c in self.cells if c.workload == workload and (c.plan, c.link) == wanted), None)

    def local(self, workload: Workload) -> Cell | None:
        return self.lookup(workload, LOCAL)

    def save(self, path: Path) -> None:
        try:
            path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")
        except OSError as error:
            raise TraceError(f"{path} can't be written ({error}); choose another place") from None


class _Version(msgspec.Struct):
    version: int


def load_map(path: Path) -> PerformanceMap:
    """Raises TraceError for a file that can't be read, is damaged, or is of another version."""
    remedy = "make it again with prism-hw map"
    try:
        raw = path.read_bytes()
        found = msgspec.json.decode(raw, type=_Version).version
        if found != VERSION:
            raise TraceError(f"{path}: map version {found}, this version reads {VERSION}; {remedy}")
        return msgspec.json.decode(raw, type=PerformanceMap)
    except OSError as error:
        raise TraceError(f"{path}: can't be read ({error}); give the path of a map") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:  # the second: bytes that are no UTF-8
        raise TraceError(f"{path}: is no performance map or damaged ({error}); {remedy}") from None


def build_map(traces: TraceSet, command: str = "", created: str | None = None) -> PerformanceMap:
    """A cell for each plan, batch and link. Raises TraceError where the visits of one cell, or the cells that are
    compared with each other, are of different machines, power modes or versions."""
    groups: dict[Any, list[TraceFile]] = defaultdict(list)
    rivals: dict[Workload, list[TraceFile]] = defaultdict(list)
    for file in sorted(traces.files, key=order):
        header = file.trace.header
        work = Workload(header.source, header.model, header.tokens, header.batch)
        groups[work, canonical_plan(header.plan), _link(header)].append(file)
        rivals[work].append(file)
    if not groups:
        reasons = f": {traces.left_out[0]}" if traces.left_out else ""
        raise TraceError(f"no trace to make a map of{reasons}; measure with prism-hw profile")
    for work, files in rivals.items():
        what = f"{short(work.model)} at batch {work.batch}"
        same([(file.name, machine(file.trace.header)) for file in files], what)
    cells = [_cell(files) for files in groups.values()]
    return PerformanceMap(
        created=created or now_text(), command=command, cells=tuple(sorted(cells, key=_place)), left_out=traces.left_out
    )


def _cell(files: list[TraceFile]) -> Cell:
    header = files[0].trace.header
    pooled = pool([file.trace for file in files])
    summary = summarise(pooled)
    medians = [float(np.median(_milliseconds(file))) for file in files]
    link = _link(header)
    cell = Cell(
        source=header.source,
        model=header.model,
        tokens=header.tokens,
        weights=header.weights,
        plan=canonical_plan(header.plan),
        batch=header.batch,
        link=link,
        bandwidth_mbps=None if link.rate_bps is None else link.rate_bps / 1e6,
        latency_ms=summary.latency_ms,
        visit_p50_ms=tuple(medians),
        spread_ms=_spread(medians, [ms for file in files for ms in _milliseconds(file)]),
        per_sample_ms=summary.latency_ms.p50 / header.batch,
        split_ms=summary.split_ms,
        bytes_per_exchange=summary.bytes_per_exchange,
        effective_bandwidth_mbps=summary.effective_bandwidth_mbps,
        energy_j=summary.energy_j,
        energy=summary.energy,
        energy_note=summary.energy_note,
        batches=summary.batches,
        failed=sum(bool(batch.failed) for batch in pooled.batches),
        visits=len(files),
        oversubscribed=header.oversubscribed,
        provenance=_provenance(files),
        visit_pace_ms=_paces(files),
    )
    same([(file.name, setting(file.trace.header)) for file in files], cell.label)
    return cell


def _paces(files: list[TraceFile]) -> tuple[float, ...]:
    each = [pace_ms(file.trace) for file in files]
    ranks = range(files[0].trace.header.plan.ranks)
    if any(rank not in paces for paces in each for rank in ranks):
        return ()
    return tuple(float(np.mean([paces[rank] for rank in ranks])) for paces in each)


def _spread(medians: Sequence[float], batches: Sequence[float]) -> tuple[float, float]:
    low, high = np.percentile(medians, (10, 90), method="nearest")
    first, third = np.percentile(batches, (25, 75))
    return float(min(low, first)), float(max(high, third))


def _provenance(files: list[TraceFile]) -> Provenance:
    headers = [file.trace.header for file in files]
    return Provenance(
        files=tuple((file.name, file.digest) for file in files),
        created=(headers[0].created, headers[-1].created),
        host={key: value for key, value in setting(headers[0]).items() if value is not None},
        configs=tuple(sorted({header.config_hash for header in headers if header.config_hash})),
        commands=tuple(sorted({header.command for header in headers})),
        cut=any(file.trace.cut for file in files),
    )


def _milliseconds(file: TraceFile) -> list[float]:
    return [(batch.end_ns - batch.start_ns) / 1e6 for batch in whole_batches(file.trace)]


def canonical_plan(plan: ExecutionPlan) -> ExecutionPlan:
    """The plan without what plays no part in it: one device exchanges nothing."""
    return LOCAL if plan.ranks == 1 else plan


def _link(header: TraceHeader) -> LinkSpec:
    return LinkSpec() if header.plan.ranks == 1 else LinkSpec.parse(header.link)


def _place(cell: Cell) -> tuple[Any, ...]:
    """Where a cell stands in a map, local ones first."""
    plan = cell.plan
    modes = tuple(Mode)
    return (
        cell.source,
        cell.model,
        cell.tokens,
        cell.batch,
        plan.ranks,
        modes.index(plan.mode),
        plan.segments or 0,
        plan.wire,
        str(plan),
        cell.link.kind,
        cell.bandwidth_mbps or 0.0,
        str(cell.link),
    )


def short(model: str) -> str:
    """A model's name without its folders."""
    return model.rstrip("/").rsplit("/", 1)[-1]


def workloads(cells: Iterable[Cell]) -> list[Workload]:
    """Every workload of some cells, once, in their order."""
    return list(dict.fromkeys(cell.workload for cell in cells))
