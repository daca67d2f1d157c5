"""A performance map as grids of batch by bandwidth, and the words for what they hold: for console and page alike."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from prism.codecs import CODECS
from prism.labels import plan_label, shared_habits, short, without_habits
from prism.link import LinkSpec
from prism.perfmap import Cell, PerformanceMap, workloads
from prism.perfmap.crossover import Crossover, MapAxis, any_rate, ratio
from prism.plan import ExecutionPlan
from prism.units import format_seconds


class Grid(msgspec.Struct, frozen=True, kw_only=True):
    """The cells of one model over one link at several rates.

    `cells` by (plan, batch, rate in Mbps), `locals` by batch; a rate of None is a link without one. A combination that
    the map lacks is missing in both.
    """

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
    def measured(self) -> bool:
        """Whether devices ran it; a simulated map says so in its title."""
        return self.source == "measured"

    @property
    def title(self) -> str:
        """Name the model, its tokens, the link, and what all plans share."""
        words = [short(self.model), f"{self.tokens} tokens", link_label(self.link), *shared_habits(self.plans)]
        return ", ".join(words if self.measured else [*words, self.source])

    def label(self, plan: ExecutionPlan) -> str:
        """Name a plan; the habits that all plans of the grid share stand in the title."""
        return plan_label(without_habits(plan) if shared_habits(self.plans) else plan)

    def ratio(self, plan: ExecutionPlan, batch: int, rate: float | None) -> float | None:
        """Divide a plan's latency by that of local; None where either is missing."""
        cell, local = self.cells.get((plan, batch, rate)), self.locals.get(batch)
        return None if cell is None or local is None else ratio(cell, local)

    def tie(self, plan: ExecutionPlan, batch: int, rate: float | None) -> bool:
        """Say whether plan and local differ by less than their noise."""
        cell, local = self.cells.get((plan, batch, rate)), self.locals.get(batch)
        return cell is not None and local is not None and cell.within_noise(local)

    def best(self, batch: int, rate: float | None) -> tuple[Cell, bool] | None:
        """Find the fastest cell, and whether another is within its noise. None where the map has no cell there."""
        rivals = [self.cells[key] for plan in self.plans if (key := (plan, batch, rate)) in self.cells]
        if not rivals:
            return None
        if batch in self.locals:
            rivals.append(self.locals[batch])
        first, *others = sorted(rivals, key=lambda cell: cell.latency_ms.p50)
        return first, any(first.within_noise(other) for other in others)


def grids(map_: PerformanceMap) -> list[Grid]:
    """Sort the cells of a map into grids, in its order. Models with local cells alone have none."""
    groups: dict[Any, list[Cell]] = defaultdict(list)
    for cell in map_.cells:
        if cell.plan.ranks > 1:
            groups[cell.source, cell.model, cell.tokens, any_rate(cell.link)].append(cell)
    return [_grid(map_, cells) for cells in groups.values()]


def _grid(map_: PerformanceMap, cells: list[Cell]) -> Grid:
    first = cells[0]
    works = workloads(cells)
    return Grid(
        source=first.source,
        model=first.model,
        tokens=first.tokens,
        link=any_rate(first.link),
        plans=tuple(dict.fromkeys(cell.plan for cell in cells)),
        batches=tuple(sorted(work.batch for work in works)),
        rates=tuple(sorted({cell.bandwidth_mbps for cell in cells}, key=lambda rate: rate or 0.0)),
        cells={(cell.plan, cell.batch, cell.bandwidth_mbps): cell for cell in cells},
        locals={work.batch: local for work in works if (local := map_.local(work)) is not None},
    )


def link_label(link: LinkSpec) -> str:
    """Name a link without its rate."""
    parts: list[str] = ["network as it is" if link.kind == "network" else link.kind]
    parts += [f"latency {format_seconds(link.latency_s)}"] if link.latency_s else []
    parts += [f"jitter {format_seconds(link.jitter_s)}"] if link.jitter_s else []
    parts += [f"loss {100 * link.loss:g} %"] if link.loss else []
    parts += [f"{link.overhead_bytes} B a frame"] if link.overhead_bytes else []
    parts += [link.rates] if link.rates else []
    return ", ".join(parts)


def rate_label(rate: float | None) -> str:
    """Spell the rate of a link."""
    return "as it is" if rate is None else f"{rate:g}"


def plan_codes(plans: Sequence[ExecutionPlan]) -> dict[ExecutionPlan, str]:
    """Give each plan a short name, as M10 for means with L = 10, R2xM10 for two replicas of it, S2 for two stages.

    What all plans share is left out.
    """
    several = len({plan.parts for plan in plans if plan.parts > 1}) > 1
    codes: dict[ExecutionPlan, str] = {}
    for plan in plans:
        names = {"R": plan.replicas, "S": plan.stages}
        words = [f"{name}{count}" for name, count in names.items() if count > 1]
        words += [f"M{plan.segments}" if plan.segments else "F"] if plan.parts > 1 else []
        code = "x".join(words) + (f"m{plan.microbatch}" if plan.microbatch else "")
        code += "" if CODECS[plan.wire].lossless else f"-{plan.wire}"
        code += f"-P{plan.parts}" if several and plan.parts > 1 else ""
        taken = sum(other == code or other.startswith(f"{code}.") for other in codes.values())
        codes[plan] = f"{code}.{taken + 1}" if taken else code
    return codes


def ratio_label(value: float) -> str:
    """Spell a latency over the local one."""
    return f"{value:.2f}x" if value < 10 else f"{value:.0f}x"


def spread_label(spread_ms: tuple[float, float]) -> str:
    """Spell the interval of a latency, in milliseconds."""
    return f"{spread_ms[0]:.1f}-{spread_ms[1]:.1f}"


def of_grid(grid: Grid, crossings: Sequence[Crossover]) -> list[Crossover]:
    """Choose the crossovers that lie on lines of this grid."""
    own = (grid.source, grid.model, grid.tokens, grid.link)
    return [c for c in crossings if (c.source, c.model, c.tokens, any_rate(c.link)) == own]


def crossover_rows(grid: Grid, crossings: Sequence[Crossover], axis: MapAxis) -> tuple[list[str], list[list[str]]]:
    """Tabulate the crossovers along one axis: a column for each value of the other axis, a row for each plan.

    Without a crossover along that axis there are no rows.
    """
    if axis == "bandwidth_mbps":
        heads = [str(batch) for batch in grid.batches]
    else:
        heads = [rate_label(rate) for rate in grid.rates if rate]
    own = {(held_label(c), c.plan): c for c in of_grid(grid, crossings) if c.axis == axis}
    rows = [[crossover_label(own.get((head, plan))) for head in heads] for plan in grid.plans]
    return heads, rows if own else []


def held_label(crossover: Crossover) -> str:
    """Name the value that a crossover holds: its batch, or its link's rate."""
    if crossover.batch is not None:
        return str(crossover.batch)
    return rate_label((crossover.link.rate_bps or 0.0) / 1e6)


def crossover_label(crossover: Crossover | None) -> str:
    """Spell where two plans are equally fast."""
    if crossover is None:
        return "-"
    where = crossover.kind if crossover.at is None else f"{crossover.at:.3g}"
    return f"{'~' if crossover.near_tie else ''}{where}{'*' if len(crossover.crossings) > 1 else ''}"


def notes(map_: PerformanceMap) -> Iterator[str]:
    """List what a reader of the map has to know, a line each."""
    yield from _counts(map_.cells)
    if any(cell.oversubscribed for cell in map_.cells):
        yield "oversubscribed: ranks share cores in some cells, so their times are no device's"
    failed = sum(cell.failed for cell in map_.cells)
    if failed:
        yield f"{failed} batches failed and are not counted"
    yield from _incomplete(map_)
    if all(cell.energy_j is None for cell in map_.cells):
        yield "energy: " + "; ".join(sorted({cell.energy_note for cell in map_.cells}))
    for line in map_.left_out:
        yield f"left out: {line}"


def _counts(cells: Sequence[Cell]) -> Iterator[str]:
    """How many cells there are, and how many visits and batches stand behind each."""
    counts = sorted({(cell.visits, cell.batches) for cell in cells if cell.source == "measured"})
    if not counts:
        yield f"{len(cells)} cells, simulated"
        return
    (few, least), (many, most) = counts[0], counts[-1]
    visits, batches = (f"{few} to {many}", f"{least} to {most}") if len(counts) > 1 else (str(few), str(least))
    yield f"{len(cells)} cells, {visits} visits and {batches} batches each"
    if many == 1:
        yield "one visit each: the spread can't show drift; measure with more repeats"


def _incomplete(map_: PerformanceMap) -> Iterator[str]:
    """Workloads that lack either a local cell or a distributed one."""
    works = workloads(map_.cells)
    for work in works:
        if map_.local(work) is None:
            yield f"{short(work.model)} at batch {work.batch} has no local cell, so nothing to be compared with"
    shared = {(cell.source, cell.model, cell.tokens) for cell in map_.cells if cell.plan.ranks > 1}
    for work in works:
        if (work.source, work.model, work.tokens) not in shared:
            yield f"{short(work.model)} at batch {work.batch} has local cells alone, so it is in no grid"
