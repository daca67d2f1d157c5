"""A performance map as grids of batch by bandwidth, and the words for what they hold. For terminal and page."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from prism.codecs import CODECS
from prism.labels import short
from prism.link import LinkSpec
from prism.perfmap import Cell, PerformanceMap, workloads
from prism.perfmap.crossover import Crossover, any_rate, ratio
from prism.plan import ExecutionPlan
from prism.units import format_seconds


class Grid(msgspec.Struct, frozen=True, kw_only=True):
    """Cells of one model and one link but for its rate. `cells` by (plan, batch, rate in Mbps), `locals` by batch;
    a rate of None is a link without one. What was not measured is missing in both."""

    source: str
    model: str
    tokens: int
    link: LinkSpec
    plans: tuple[ExecutionPlan, ...]
    batches: tuple[int, ...]
    rates: tuple[float | None, ...]
    cells: dict[tuple[ExecutionPlan, int, float | None], Cell]
    locals: dict[int, Cell]

    @property
    def title(self) -> str:
        kind = "" if self.source == "measured" else f", {self.source}"
        return f"{short(self.model)}, {self.tokens} tokens, {link_label(self.link)}{kind}"

    def ratio(self, plan: ExecutionPlan, batch: int, rate: float | None) -> float | None:
        """Latency over that of local; None where either is missing."""
        cell, local = self.cells.get((plan, batch, rate)), self.locals.get(batch)
        return None if cell is None or local is None else ratio(cell, local)

    def tie(self, plan: ExecutionPlan, batch: int, rate: float | None) -> bool:
        """Whether plan and local differ by less than their noise."""
        cell, local = self.cells.get((plan, batch, rate)), self.locals.get(batch)
        return cell is not None and local is not None and cell.within_noise(local)

    def best(self, batch: int, rate: float | None) -> tuple[Cell, bool] | None:
        """The fastest cell, and whether another one is within the noise of it. None where nothing was measured."""
        found = [self.cells[key] for plan in self.plans if (key := (plan, batch, rate)) in self.cells]
        if not found:
            return None
        if batch in self.locals:
            found.append(self.locals[batch])
        first, *others = sorted(found, key=lambda cell: cell.latency_ms.p50)
        return first, any(first.within_noise(other) for other in others)


def grids(map_: PerformanceMap) -> list[Grid]:
    """Every grid of a map, in its order. Models measured locally alone have none."""
    groups: dict[Any, list[Cell]] = defaultdict(list)
    for cell in map_.cells:
        if cell.plan.ranks > 1:
            groups[cell.source, cell.model, cell.tokens, any_rate(cell.link)].append(cell)
    return [_grid(map_, cells) for cells in groups.values()]


def _grid(map_: PerformanceMap, cells: list[Cell]) -> Grid:
    first = cells[0]
    works = workloads(cells)
    found = {work.batch: local for work in works if (local := map_.local(work)) is not None}
    return Grid(
        source=first.source,
        model=first.model,
        tokens=first.tokens,
        link=any_rate(first.link),
        plans=tuple(dict.fromkeys(cell.plan for cell in cells)),
        batches=tuple(sorted(work.batch for work in works)),
        rates=tuple(sorted({cell.bandwidth_mbps for cell in cells}, key=lambda rate: rate or 0.0)),
        cells={(cell.plan, cell.batch, cell.bandwidth_mbps): cell for cell in cells},
        locals=found,
    )


def link_label(link: LinkSpec) -> str:
    """The link without its rate."""
    parts: list[str] = ["network as it is" if link.kind == "network" else link.kind]
    parts += [f"latency {format_seconds(link.latency_s)}"] if link.latency_s else []
    parts += [f"jitter {format_seconds(link.jitter_s)}"] if link.jitter_s else []
    parts += [f"loss {100 * link.loss:g} %"] if link.loss else []
    parts += [f"{link.overhead_bytes} B a frame"] if link.overhead_bytes else []
    parts += [link.rates] if link.rates else []
    return ", ".join(parts)


def rate_label(rate: float | None) -> str:
    return "as it is" if rate is None else f"{rate:g}"


def plan_codes(plans: Sequence[ExecutionPlan]) -> dict[ExecutionPlan, str]:
    """A short name for each plan, as M10 for means with L = 10; what all share is left out."""
    several = len({plan.devices for plan in plans}) > 1
    codes: dict[ExecutionPlan, str] = {}
    for plan in plans:
        code = f"M{plan.segments}" if plan.segments else "F"
        code += "" if CODECS[plan.wire].lossless else f"-{plan.wire}"
        code += f"-P{plan.devices}" if several else ""
        taken = sum(other == code or other.startswith(f"{code}.") for other in codes.values())
        codes[plan] = f"{code}.{taken + 1}" if taken else code
    return codes


def ratio_label(value: float) -> str:
    return f"{value:.2f}x" if value < 10 else f"{value:.0f}x"


def spread_label(spread_ms: tuple[float, float]) -> str:
    return f"{spread_ms[0]:.1f}-{spread_ms[1]:.1f}"


def of_grid(grid: Grid, found: Sequence[Crossover]) -> list[Crossover]:
    return [
        c
        for c in found
        if (c.source, c.model, c.tokens, any_rate(c.link)) == (grid.source, grid.model, grid.tokens, grid.link)
    ]


def held_label(crossover: Crossover) -> str:
    """The value that a crossover holds: its batch, or its link's rate."""
    if crossover.batch is not None:
        return str(crossover.batch)
    return rate_label((crossover.link.rate_bps or 0.0) / 1e6)


def crossover_label(crossover: Crossover | None) -> str:
    if crossover is None:
        return "-"
    where = crossover.kind if crossover.at is None else f"{crossover.at:.3g}"
    return f"{'~' if crossover.near_tie else ''}{where}{'*' if len(crossover.crossings) > 1 else ''}"


def notes(map_: PerformanceMap) -> Iterator[str]:
    """What a reader of the figures has to know, a line each."""
    counts = sorted({(cell.visits, cell.batches) for cell in map_.cells})
    (few, least), (many, most) = counts[0], counts[-1]
    yield (
        f"{len(map_.cells)} cells, {few} to {many} visits and {least} to {most} batches each"
        if len(counts) > 1
        else f"{len(map_.cells)} cells, {few} visits and {least} batches each"
    )
    if many == 1:
        yield "one visit each: the spread can't show drift; measure with more repeats"
    if any(cell.oversubscribed for cell in map_.cells):
        yield "oversubscribed: ranks share cores in some cells, so their times are no device's"
    failed = sum(cell.failed for cell in map_.cells)
    if failed:
        yield f"{failed} batches failed and are not counted"
    for work in workloads(map_.cells):
        if map_.local(work) is None:
            yield f"{short(work.model)} at batch {work.batch} has no local cell, so nothing to be compared with"
    shared = {(cell.source, cell.model, cell.tokens) for cell in map_.cells if cell.plan.ranks > 1}
    for work in workloads(map_.cells):
        if (work.source, work.model, work.tokens) not in shared:
            yield f"{short(work.model)} at batch {work.batch} was measured locally alone, so it is in no grid"
    if all(cell.energy_j is None for cell in map_.cells):
        yield "energy: " + "; ".join(sorted({cell.energy_note for cell in map_.cells}))
    for line in map_.left_out:
        yield f"left out: {line}"
