"""A performance map as heat maps for a terminal of 100 columns; without colour the figures say the same."""

from collections.abc import Iterator, Sequence
from itertools import accumulate, chain

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from prism.labels import plan_label
from prism.perfmap import PerformanceMap
from prism.perfmap.crossover import Comparison, Crossover, crossovers
from prism.plan import ExecutionPlan
from prism.report.map_grid import (
    Grid,
    crossover_label,
    grids,
    held_label,
    notes,
    of_grid,
    plan_codes,
    rate_label,
    ratio_label,
    spread_label,
)

STRONG = 1.5  # a factor from which on the terminal prints bold
WIDTH = 100  # columns of the narrowest terminal
LARGEST = 10  # differences of two maps in the table; --json has all
KEY = (
    "Latency over that of local; green: faster, red: slower, grey and ~: within the spread of the two. "
    "Mbps are the link's; never and always speak of the measured range; *: crosses more than once."
)

Column = tuple[str, list[Text]]


def map_view(map_: PerformanceMap) -> RenderableType:
    """All grids of a map, the best plan of each, the crossovers, and what was left out."""
    found = crossovers(map_)
    parts = list(chain.from_iterable(_grid_views(grid, found) for grid in grids(map_)))
    return Group(Text(KEY), Text(), *parts, *[Text(line, style="yellow") for line in notes(map_)])


def _grid_views(grid: Grid, found: Sequence[Crossover]) -> Iterator[RenderableType]:
    yield Text(grid.title, style="bold")
    for plan in grid.plans:
        yield from _ratio_tables(grid, plan)
    yield from _best_tables(grid)
    yield from _crossover_tables(grid, found)


def _tables(title: str, fixed: Sequence[Column], columns: Sequence[Column]) -> Iterator[RenderableType]:
    """A title, and the columns side by side, in as many tables as WIDTH needs; the fixed ones lead each."""
    yield Text(title, style="italic")
    room = WIDTH - 1 - sum(map(_width, fixed))
    while columns:
        sums = list(accumulate(map(_width, columns)))
        count = max(1, sum(total <= room for total in sums))
        shown, columns = [*fixed, *columns[:count]], columns[count:]
        table = Table()
        for head, _ in shown:
            table.add_column(head, justify="left" if head == "plan" else "right", no_wrap=True)
        for row in zip(*[cells for _, cells in shown], strict=True):
            table.add_row(*row)
        yield table


def _width(column: Column) -> int:
    """With its padding and one line."""
    head, cells = column
    return max(len(head), *[cell.cell_len for cell in cells]) + 3


def _batches(grid: Grid) -> Column:
    return "batch", [Text(str(batch)) for batch in grid.batches]


def _ratio_tables(grid: Grid, plan: ExecutionPlan) -> Iterator[RenderableType]:
    locals_ = [grid.locals.get(batch) for batch in grid.batches]
    times = [Text("-" if cell is None else f"{cell.latency_ms.p50:.1f}") for cell in locals_]
    columns = [
        (rate_label(rate), [_ratio_text(grid, plan, batch, rate) for batch in grid.batches]) for rate in grid.rates
    ]
    title = f"{plan_label(plan)}: latency over local, by batch and Mbps"
    return _tables(title, [_batches(grid), ("local ms", times)], columns)


def _ratio_text(grid: Grid, plan: ExecutionPlan, batch: int, rate: float | None) -> Text:
    value = grid.ratio(plan, batch, rate)
    if value is None:
        return Text("-")
    tie = grid.tie(plan, batch, rate)
    colour = "bright_black" if tie else "green" if value < 1 else "red"
    strong = "" if tie or 1 / STRONG < value < STRONG else "bold "
    return Text(f"{'~' if tie else ''}{ratio_label(value)}", style=f"{strong}{colour}")


def _best_tables(grid: Grid) -> Iterator[RenderableType]:
    columns = [(rate_label(rate), [_best_text(grid, batch, rate) for batch in grid.batches]) for rate in grid.rates]
    yield from _tables("best plan, by batch and Mbps", [_batches(grid)], columns)
    names = [f"{code}: {plan_label(plan)}" for plan, code in plan_codes(grid.plans).items()]
    yield Text(", ".join([*names, "~: another is as good within the spread"]), style="dim")


def _best_text(grid: Grid, batch: int, rate: float | None) -> Text:
    best = grid.best(batch, rate)
    if best is None:
        return Text("-")
    cell, tie = best
    style = "bright_black" if tie else "green" if cell.plan.ranks > 1 else ""
    code = plan_codes(grid.plans).get(cell.plan, "local")
    return Text(f"{'~' if tie else ''}{code}", style=style)


def _crossover_tables(grid: Grid, found: Sequence[Crossover]) -> Iterator[RenderableType]:
    """From which bandwidth on distributed is as fast as local, for each batch; and the other way round."""
    plans = ("plan", [Text(plan_label(plan)) for plan in grid.plans])
    for axis, title, heads in (
        ("bandwidth_mbps", "as fast as local from ... Mbps on, by batch", [str(batch) for batch in grid.batches]),
        ("batch", "as fast as local from batch ... on, by Mbps", [rate_label(rate) for rate in grid.rates if rate]),
    ):
        cells = {(held_label(c), c.plan): c for c in of_grid(grid, found) if c.axis == axis}
        columns = [(head, [Text(crossover_label(cells.get((head, plan)))) for plan in grid.plans]) for head in heads]
        if cells:
            yield from _tables(title, [plans], columns)


def comparison_view(found: Comparison) -> RenderableType:
    """How many cells of two maps agree, and where they differ most."""
    if found.share is None:
        head = Text("the two maps have no cell in common", style="red")
    else:
        agree = sum(row.agrees for row in found.differences)
        head = Text(f"{agree} of {len(found.differences)} cells agree within their spread ({found.share:.0%})")
        if found.share_by_chance is not None:
            head.append(f"; of two runs alike {found.share_by_chance:.0%} would: ")
            head.append("the same" if found.same else "NOT the same", style="green" if found.same else "red")
    table = Table("cell", "first ms", "second ms", "change", "agree")
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for row in found.differences[:LARGEST]:
        table.add_row(
            row.cell,
            f"{row.first_ms:.1f} ({spread_label(row.first_spread_ms)})",
            f"{row.second_ms:.1f} ({spread_label(row.second_spread_ms)})",
            f"{row.relative:+.1%}",
            Text("yes") if row.agrees else Text("no", style="red"),
        )
    lines = [f"only in the first: {cell}" for cell in found.only_first]
    lines += [f"only in the second: {cell}" for cell in found.only_second]
    lines += [f"the machines differ in {text}" for text in found.machines]
    return Group(head, table, *[Text(line, style="yellow") for line in lines])
