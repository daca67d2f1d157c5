"""Build a performance map from raw traces: pool the visits of each cell, then reduce them."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from prism.errors import TraceError
from prism.labels import short
from prism.link import LinkSpec
from prism.perfmap.map import Case, Cell, PerformanceMap, Provenance, canonical_plan
from prism.perfmap.pooling import TraceFile, TraceSet, machine, order, pool, same, setting, whole_batches
from prism.plan import Mode
from prism.trace import TraceHeader, now_text
from prism.trace.metrics import pace_ms, summarise
from prism.trace.quantiles import median, nearest_quantiles, quantiles


def build_map(traces: TraceSet, command: str = "", created: str | None = None) -> PerformanceMap:
    """Make a cell of each plan, batch and link.

    Raises TraceError where the visits of one cell, or rival cells, are of different machines, power modes or versions.
    """
    groups: dict[Any, list[TraceFile]] = defaultdict(list)
    rivals: dict[Case, list[TraceFile]] = defaultdict(list)
    for file in sorted(traces.files, key=order):
        header = file.trace.header
        case = Case(header.source, header.model, header.tokens, header.batch)
        groups[case, canonical_plan(header.plan), _link(header)].append(file)
        rivals[case].append(file)
    if not groups:
        reasons = f": {traces.left_out[0]}" if traces.left_out else ""
        raise TraceError(f"no trace to make a map of{reasons}; measure with prism-hw profile")
    for case, files in rivals.items():
        what = f"{short(case.model)} at batch {case.batch}"
        same([(file.name, machine(file.trace.header)) for file in files], what)
    cells = [_cell(files) for files in groups.values()]
    return PerformanceMap(
        created=created or now_text(), command=command, cells=tuple(sorted(cells, key=_place)), left_out=traces.left_out
    )


def _cell(files: list[TraceFile]) -> Cell:
    header = files[0].trace.header
    pooled = pool([file.trace for file in files])
    summary = summarise(pooled)
    medians = [median(_milliseconds(file)) for file in files]
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
    """Milliseconds of the pace block at each visit, the mean over the ranks; none where a rank didn't time it."""
    visits = [pace_ms(file.trace) for file in files]
    ranks = range(files[0].trace.header.plan.ranks)
    if any(rank not in paces for paces in visits for rank in ranks):
        return ()
    return tuple(float(np.mean([paces[rank] for rank in ranks])) for paces in visits)


def _spread(medians: Sequence[float], batches: Sequence[float]) -> tuple[float, float]:
    low, high = nearest_quantiles(medians, 10, 90)
    first, third = quantiles(batches, 25, 75)
    return min(low, first), max(high, third)


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
