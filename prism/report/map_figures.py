"""Figures of a performance map: heat maps of batch by bandwidth, and latency over bandwidth with its crossovers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from prism.labels import way
from prism.perfmap.crossover import Crossover
from prism.plan import ExecutionPlan
from prism.report.figures import PALE, WAY_COLOURS, legend_above, line_style, panels
from prism.report.map_grid import Grid, of_grid, plan_codes, rate_label, ratio_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RATIO_COLOURS = "RdBu_r"  # diverging, told apart by colour-blind eyes; blue: faster than local
SATURATION = 4.0  # the factor at which colours saturate, on either side of 1
TIE, MISSING = "#d9d9d9", "#ffffff"
Colour = tuple[float, float, float] | str


def heat_figure(grid: Grid) -> "Figure":
    """Draw a heat map of the way that wins at each place, and one of each plan's latency over local."""
    figure, axes = _panels(len(grid.plans) + 1, 0.9 + 0.32 * len(grid.batches))
    _best_heat_map(axes[0], grid)
    for plan, panel in zip(grid.plans, axes[1:], strict=True):
        _ratio_heat_map(panel, grid, plan)
    legend_above(figure, abreast=len(WAY_COLOURS))
    return figure


def line_figure(grid: Grid, crossings: Sequence[Crossover]) -> "Figure | None":
    """Draw latency over local against bandwidth, a panel a batch, with rings at crossovers.

    Error bars span the medians of the visits. None without two rates to draw a line between.
    """
    rates = [rate for rate in grid.rates if rate is not None]
    batches = [batch for batch in grid.batches if batch in grid.locals]
    if len(rates) < 2 or not batches:
        return None
    figure, axes = _panels(len(batches), 2.4)
    own = [crossing for crossing in of_grid(grid, crossings) if crossing.axis == "bandwidth_mbps"]
    for batch, panel in zip(batches, axes, strict=True):
        for number, plan in enumerate(grid.plans):
            _ratio_line(panel, grid, plan, batch, number)
        rings = [crossing.at for crossing in own if crossing.batch == batch and crossing.at is not None]
        panel.plot(rings, [1.0] * len(rings), "o", mfc="white", mec="black", ms=6, zorder=4)
        _decorate(panel, batch, rates)
    legend_above(figure)
    return figure


def colour_of(ratio: float) -> Colour:
    """Give a ratio its colour: white at 1, the same depth for a factor and its inverse."""
    from matplotlib import colormaps

    share = float(np.clip(np.log(ratio) / np.log(SATURATION), -1, 1))
    red, green, blue, _ = colormaps[RATIO_COLOURS](0.5 + share / 2)
    return red, green, blue


def pale(colour: Colour) -> Colour:
    """Mix a colour with as much white."""
    from matplotlib.colors import to_rgb

    red, green, blue = ((1 + value) / 2 for value in to_rgb(colour))
    return red, green, blue


def _panels(count: int, height: float) -> tuple["Figure", list["Axes"]]:
    return panels(count, height, abreast=2 if count in (2, 4) else min(count, 3))


def _ratio_heat_map(panel: "Axes", grid: Grid, plan: ExecutionPlan) -> None:
    _frame(panel, grid, grid.label(plan))
    for row, batch in enumerate(grid.batches):
        for column, rate in enumerate(grid.rates):
            ratio = grid.ratio(plan, batch, rate)
            if ratio is None:
                _paint(panel, row, column, MISSING, "-")
            elif grid.tie(plan, batch, rate):
                _paint(panel, row, column, TIE, f"~{ratio_label(ratio)}")
            else:
                _paint(panel, row, column, colour_of(ratio), ratio_label(ratio))


def _best_heat_map(panel: "Axes", grid: Grid) -> None:
    """Paint each place in the colour of the way that wins, paler where another plan is as good within the spread."""
    from matplotlib.patches import Rectangle

    _frame(panel, grid, "the plan that wins, and its latency over local")
    codes, winners = plan_codes(grid.plans), set[str]()
    for row, batch in enumerate(grid.batches):
        for column, rate in enumerate(grid.rates):
            best = grid.best(batch, rate)
            if best is None:
                _paint(panel, row, column, MISSING, "-")
                continue
            cell, tie = best
            ratio = grid.ratio(cell.plan, batch, rate)
            code = f"{'~' if tie else ''}{codes.get(cell.plan, 'local')}"
            text = code if ratio is None else f"{code}\n{ratio_label(ratio)}"
            winners.add(way(cell.plan))
            colour = WAY_COLOURS[way(cell.plan)]
            _paint(panel, row, column, pale(colour) if tie else colour, text)
    for name, colour in WAY_COLOURS.items():
        if name in winners:  # a patch of no size, for the legend
            panel.add_patch(Rectangle((0, 0), 0, 0, facecolor=colour, label=name))


def _frame(panel: "Axes", grid: Grid, title: str) -> None:
    panel.set_title(title)
    panel.set_xticks(range(len(grid.rates)), [rate_label(rate) for rate in grid.rates])
    panel.set_yticks(range(len(grid.batches)), [str(batch) for batch in grid.batches])
    panel.set(xlabel="Mbps", ylabel="batch")
    panel.set(xlim=(-0.5, len(grid.rates) - 0.5), ylim=(len(grid.batches) - 0.5, -0.5))
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)


def _paint(panel: "Axes", row: int, column: int, colour: Colour, text: str) -> None:
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Rectangle

    panel.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=colour, edgecolor=PALE, linewidth=1))
    dark = float(np.dot(to_rgb(colour), (0.299, 0.587, 0.114))) < 0.5  # weights of the eye, ITU-R BT.601
    panel.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")


def _ratio_line(panel: "Axes", grid: Grid, plan: ExecutionPlan, batch: int, number: int) -> None:
    local = grid.locals[batch].latency_ms.p50
    points = [(rate, cell) for rate in grid.rates if rate and (cell := grid.cells.get((plan, batch, rate)))]
    if not points:
        return
    middle = [cell.latency_ms.p50 / local for _, cell in points]
    visits = [[ms / local for ms in cell.visit_p50_ms or (cell.latency_ms.p50,)] for _, cell in points]
    low = [max(0.0, ratio - min(medians)) for ratio, medians in zip(middle, visits, strict=True)]
    high = [max(0.0, max(medians) - ratio) for ratio, medians in zip(middle, visits, strict=True)]
    rates = [rate for rate, _ in points]
    style = line_style(number)
    panel.errorbar(rates, middle, [low, high], label=grid.label(plan), marker=".", capsize=2, lw=1.3, **style)


def _decorate(panel: "Axes", batch: int, rates: Sequence[float]) -> None:
    from matplotlib.ticker import FuncFormatter, NullLocator

    panel.axhline(1.0, color="black", linewidth=0.8)
    panel.set_xscale("log")
    panel.set_yscale("log", base=2)
    panel.set_xticks(rates, [rate_label(rate) for rate in rates])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    panel.set_title(f"batch {batch}")
    panel.set_xlabel("Mbps")
    panel.grid(alpha=0.25)
