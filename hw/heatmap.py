"""A performance map as heat maps for a terminal of 100 columns; without colour the figures say the same."""

from collections.abc import Iterator, Sequence
from itertools import chain

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hw.mapgrid import (
    Grid,
    crossover_label,
    grids,
    held_label,
    notes,
    of_grid,
    plan_codes,
    rate_label,
    ratio_label,
)
from prism.crossover import Comparison, Crossover, crossovers
from prism.perfmap import PerformanceMap, plan_label
from prism.plan import ExecutionPlan

STRONG = 1.5  # a factor from which on the terminal prints bold
COLUMNS = 9  # rates side by side in 100 columns
LARGEST = 10  # differences of two maps in the table; --json has all
KEY = (
    "Latency over that of local; green: faster, red: slower, grey and ~: within the spread of the two. "
    "Mbps are the link's; never and always speak of the measured range; *: crosses more than once."
)


def map_view(map_: PerformanceMap) -> RenderableType:
    """All grids of a map, the best plan of each, the crossovers, and what was left out."""
    found = crossovers(map_)
    parts = list(chain.from_iterable(_grid_views(grid, found) for grid in grids(map_)))
    return Group(Text(KEY), Text(), *parts, *[Text(line, style="yellow") for line in notes(map_)])


def _grid_views(grid: Grid, found: Sequence[Crossover]) -> Iterator[RenderableType]:
    yield Text(grid.title, style="bold")
    for start in range(0, len(grid.rates), COLUMNS):
        rates = grid.rates[start : start + COLUMNS]
        for plan in grid.plans:
            yield _ratio_table(grid, plan, rates)
        yield _best_table(grid, rates)
    yield from crossover_tables(grid, found)


def _table(title: str, first: str, columns: Sequence[str], caption: str = "") -> Table:
    table = Table(first, *columns, title=title, caption=caption, title_justify="left", caption_justify="left")
    for column in table.columns:
        column.justify, column.no_wrap = "right", True
    return table


def _ratio_table(grid: Grid, plan: ExecutionPlan, rates: Sequence[float | None]) -> Table:
    title = f"{plan_label(plan)}: latency over local, by batch and Mbps"
    table = _table(title, "batch", ["local ms", *map(rate_label, rates)])
    for batch in grid.batches:
        local = grid.locals.get(batch)
        milliseconds = "-" if local is None else f"{local.latency_ms.p50:.1f}"
        table.add_row(str(batch), milliseconds, *[_ratio_text(grid, plan, batch, rate) for rate in rates])
    return table


def _ratio_text(grid: Grid, plan: ExecutionPlan, batch: int, rate: float | None) -> Text:
    value = grid.ratio(plan, batch, rate)
    if value is None:
        return Text("-")
    tie = grid.tie(plan, batch, rate)
    colour = "bright_black" if tie else "green" if value < 1 else "red"
    strong = "" if tie or 1 / STRONG < value < STRONG else "bold "
    return Text(f"{'~' if tie else ''}{ratio_label(value)}", style=f"{strong}{colour}")


def _best_table(grid: Grid, rates: Sequence[float | None]) -> Table:
    codes = plan_codes(grid.plans)
    key = ", ".join(f"{code}: {plan_label(plan)}" for plan, code in codes.items())
    table = _table(
        "best plan, by batch and Mbps", "batch", [rate_label(rate) for rate in rates], f"{key}; ~: so is another"
    )  # fmt: skip
    for batch in grid.batches:
        row = []
        for rate in rates:
            best = grid.best(batch, rate)
            if best is None:
                row.append(Text("-"))
                continue
            cell, tie = best
            style = "bright_black" if tie else "" if cell.plan.ranks == 1 else "green"
            row.append(Text(f"{'~' if tie else ''}{codes.get(cell.plan, 'local')}", style=style))
        table.add_row(str(batch), *row)
    return table


def crossover_tables(grid: Grid, found: Sequence[Crossover]) -> Iterator[Table]:
    """From which bandwidth on distributed is as fast as local, for each batch; and the other way round."""
    own = of_grid(grid, found)
    for axis, title, heads in (
        ("bandwidth_mbps", "as fast as local from ... Mbps on, by batch", [str(batch) for batch in grid.batches]),
        ("batch", "as fast as local from batch ... on, by Mbps", [rate_label(rate) for rate in grid.rates if rate]),
    ):  # fmt: skip
        lines = [c for c in own if c.axis == axis]
        if not lines:
            continue
        table = _table(title, "plan", heads)
        table.columns[0].justify = "left"
        for plan in grid.plans:
            cells = {held_label(c): c for c in lines if c.plan == plan}
            table.add_row(plan_label(plan), *[crossover_label(cells.get(head)) for head in heads])
        yield table


def comparison_view(found: Comparison) -> RenderableType:
    """How many cells of two maps agree, and where they differ most."""
    if found.share is None:
        head = Text("the two maps have no cell in common", style="red")
    else:
        agree = sum(row.agrees for row in found.differences)
        head = Text(
            f"{agree} of {len(found.differences)} cells agree within their spread ({found.share:.0%})"
        )
    table = Table("cell", "first ms", "second ms", "change", "allowed ms", "agree")
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for row in found.differences[:LARGEST]:
        table.add_row(
            row.cell, f"{row.first_ms:.1f}", f"{row.second_ms:.1f}", f"{row.relative:+.1%}",
            f"{row.allowed_ms:.1f}", Text("yes") if row.agrees else Text("no", style="red"),
        )  # fmt: skip
    lines = [f"only in the first: {cell}" for cell in found.only_first]
    lines += [f"only in the second: {cell}" for cell in found.only_second]
    lines += [f"the machines differ in {text}" for text in found.machines]
    return Group(head, table, *[Text(line, style="yellow") for line in lines])
