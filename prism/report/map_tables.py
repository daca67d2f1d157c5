"""A performance map as tables for a console of 100 columns; without colour the figures say the same."""

from collections.abc import Iterator, Sequence
from itertools import accumulate, chain

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from prism.perfmap import PerformanceMap
from prism.perfmap.crossover import Comparison, Crossover, MapAxis, crossovers
from prism.plan import ExecutionPlan
from prism.report.map_grid import Grid, crossover_rows, grids, notes, plan_codes, rate_label, ratio_label, spread_label

STRONG = 1.5  # the factor from which on a ratio is printed bold
WIDTH = 100  # columns of the narrowest console
LARGEST = 10  # differences of two maps in the table; --json has all
KEY = (
    "Latency over that of local; green: faster, red: slower, grey and ~: within the spread of the two. "
    "Mbps are the link's; never and always speak of the map's range; *: crosses more than once."
)

Column = tuple[str, list[Text]]


def map_view(map_: PerformanceMap) -> RenderableType:
    """Show all grids of a map, the best plan of each place, the crossovers, and what was left out."""
    crossings = crossovers(map_)
    parts = list(chain.from_iterable(_grid_views(grid, crossings) for grid in grids(map_)))
    return Group(Text(KEY), Text(), *parts, *[Text(line, style="yellow") for line in notes(map_)])


def _grid_views(grid: Grid, crossings: Sequence[Crossover]) -> Iterator[RenderableType]:
    yield Text(grid.title, style="bold")
    for plan in grid.plans:
        yield from _ratio_tables(grid, plan)
    yield from _best_tables(grid)
    yield from _crossover_tables(grid, crossings)


def _tables(title: str, fixed: Sequence[Column], columns: Sequence[Column]) -> Iterator[RenderableType]:
    """Set columns side by side under a title, in as many tables as WIDTH needs; the fixed columns lead each."""
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
    """Count the characters of a column with its padding and one line."""
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
    title = f"{grid.label(plan)}: latency over local, by batch and Mbps"
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
    names = [f"{code}: {grid.label(plan)}" for plan, code in plan_codes(grid.plans).items()]
    yield Text(", ".join([*names, "~: another is as good within the spread"]), style="dim")


def _best_text(grid: Grid, batch: int, rate: float | None) -> Text:
    best = grid.best(batch, rate)
    if best is None:
        return Text("-")
    cell, tie = best
    style = "bright_black" if tie else "green" if cell.plan.ranks > 1 else ""
    code = plan_codes(grid.plans).get(cell.plan, "local")
    return Text(f"{'~' if tie else ''}{code}", style=style)


def _crossover_tables(grid: Grid, crossings: Sequence[Crossover]) -> Iterator[RenderableType]:
    """Tabulate from which bandwidth on distributed is as fast as local at each batch; and the other way round."""
    plans = ("plan", [Text(grid.label(plan)) for plan in grid.plans])
    titles: dict[MapAxis, str] = {
        "bandwidth_mbps": "as fast as local from ... Mbps on, by batch",
        "batch": "as fast as local from batch ... on, by Mbps",
    }
    for axis, title in titles.items():
        heads, rows = crossover_rows(grid, crossings, axis)
        if rows:
            columns = [(head, [Text(row[k]) for row in rows]) for k, head in enumerate(heads)]
            yield from _tables(title, [plans], columns)


def comparison_view(comparison: Comparison) -> RenderableType:
    """Show how many cells of two maps agree, and where they differ most."""
    table = Table("cell", "first ms", "second ms", "change", "agree")
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for row in comparison.differences[:LARGEST]:
        table.add_row(
            row.cell,
            f"{row.first_ms:.1f} ({spread_label(row.first_spread_ms)})",
            f"{row.second_ms:.1f} ({spread_label(row.second_spread_ms)})",
            f"{row.relative:+.1%}",
            Text("yes") if row.agrees else Text("no", style="red"),
        )
    lines = [f"only in the first: {cell}" for cell in comparison.only_first]
    lines += [f"only in the second: {cell}" for cell in comparison.only_second]
    lines += [f"the machines differ in {text}" for text in comparison.machines]
    return Group(_verdict(comparison), table, *[Text(line, style="yellow") for line in lines])


def _verdict(comparison: Comparison) -> Text:
    if comparison.share is None:
        return Text("the two maps have no cell in common", style="red")
    agree = sum(row.agrees for row in comparison.differences)
    text = Text(f"{agree} of {len(comparison.differences)} cells agree within their spread ({comparison.share:.0%})")
    if comparison.share_by_chance is not None:
        text.append(f"; of two runs alike {comparison.share_by_chance:.0%} would: ")
        text.append("the same" if comparison.same else "NOT the same", style="green" if comparison.same else "red")
    return text
