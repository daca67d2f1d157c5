"""Figures of a performance map: heat maps of batch by bandwidth, and latency over bandwidth with its crossovers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from prism.labels import plan_label
from prism.perfmap.crossover import Crossover
from prism.plan import ExecutionPlan
from prism.report.map_grid import Grid, of_grid, plan_codes, rate_label, ratio_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = "RdBu_r"  # diverging, told apart by colour-blind eyes; blue: faster than local
LIMIT = 4.0  # the factor at which colours saturate, on either side of 1
NOISE, MISSING = "#d9d9d9", "#ffffff"
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito's palette
DASHES = ("-", "--", "-.", ":")
Colour = tuple[float, float, float] | str


@contextmanager
def style() -> Iterator[None]:
    """Text stays text in the SVG; no window system is needed."""
    import matplotlib

    matplotlib.use("svg")
    with matplotlib.rc_context({"svg.fonttype": "none", "font.size": 9, "font.family": "sans-serif"}):
        yield


def _axes(count: int, height: float) -> tuple["Figure", list["Axes"]]:
    from matplotlib.figure import Figure

    abreast = 2 if count in (2, 4) else min(count, 3)
    rows = -(-count // abreast)
    figure = Figure(figsize=(10.4, height * rows), layout="constrained")
    grid = figure.subplots(rows, abreast, squeeze=False)
    every = [axes for row in grid for axes in row]
    for axes in every[count:]:
        axes.set_visible(False)
    return figure, every[:count]


def heat_figure(grid: Grid) -> "Figure":
    """A heat map for each plan, and the best plan of each place."""
    figure, axes = _axes(len(grid.plans) + 1, 0.9 + 0.32 * len(grid.batches))
    for plan, one in zip(grid.plans, axes, strict=False):
        _heat(one, grid, plan)
    _best(axes[-1], grid)
    return figure


def _frame(axes: "Axes", grid: Grid, title: str) -> None:
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_xticks(range(len(grid.rates)), [rate_label(rate) for rate in grid.rates])
    axes.set_yticks(range(len(grid.batches)), [str(batch) for batch in grid.batches])
    axes.set_xlabel("Mbps")
    axes.set_ylabel("batch")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _paint(axes: "Axes", row: int, column: int, colour: Colour, text: str) -> None:
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=colour, edgecolor="#e3e6ea", linewidth=1))
    dark = float(np.dot(to_rgb(colour), (0.299, 0.587, 0.114))) < 0.5  # weights of the eye, ITU-R BT.601
    axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")


def _heat(axes: "Axes", grid: Grid, plan: ExecutionPlan) -> None:
    _frame(axes, grid, f"{plan_label(plan)}: latency over local")
    for row, batch in enumerate(grid.batches):
        for column, rate in enumerate(grid.rates):
            value = grid.ratio(plan, batch, rate)
            if value is None:
                _paint(axes, row, column, MISSING, "-")
            elif grid.tie(plan, batch, rate):
                _paint(axes, row, column, NOISE, f"~{ratio_label(value)}")
            else:
                _paint(axes, row, column, colour_of(value), ratio_label(value))
    _fit(axes, grid)


def colour_of(value: float) -> Colour:
    """Of a ratio: white at 1, the same depth for a factor and its inverse."""
    from matplotlib import colormaps

    share = float(np.clip(np.log(value) / np.log(LIMIT), -1, 1))
    red, green, blue, _ = colormaps[COLOURS](0.5 + share / 2)
    return red, green, blue


def _best(axes: "Axes", grid: Grid) -> None:
    _frame(axes, grid, "best plan, and its latency over local")
    codes = plan_codes(grid.plans)
    for row, batch in enumerate(grid.batches):
        for column, rate in enumerate(grid.rates):
            best = grid.best(batch, rate)
            if best is None:
                _paint(axes, row, column, MISSING, "-")
                continue
            cell, tie = best
            value = grid.ratio(cell.plan, batch, rate)
            text = f"{'~' if tie else ''}{codes.get(cell.plan, 'local')}"
            known = text if value is None else f"{text}\n{ratio_label(value)}"
            colour = NOISE if tie else MISSING if value is None else colour_of(value)
            _paint(axes, row, column, colour, known)
    _fit(axes, grid)


def _fit(axes: "Axes", grid: Grid) -> None:
    axes.set_xlim(-0.5, len(grid.rates) - 0.5)
    axes.set_ylim(len(grid.batches) - 0.5, -0.5)


def line_figure(grid: Grid, found: Sequence[Crossover]) -> "Figure | None":
    """Latency over local against bandwidth, a panel a batch; bars span the visits' medians, rings mark crossovers.
    None without two rates to draw a line between."""
    rates = [rate for rate in grid.rates if rate is not None]
    batches = [batch for batch in grid.batches if batch in grid.locals]
    if len(rates) < 2 or not batches:
        return None
    figure, axes = _axes(len(batches), 2.4)
    own = [c for c in of_grid(grid, found) if c.axis == "bandwidth_mbps"]
    for batch, one in zip(batches, axes, strict=True):
        for number, plan in enumerate(grid.plans):
            _line(one, grid, plan, batch, number)
        crossed = [c.at for c in own if c.batch == batch and c.at is not None]
        one.plot(crossed, [1.0] * len(crossed), "o", mfc="white", mec="black", ms=6, zorder=4)
        _decorate(one, batch, rates)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=len(labels), frameon=False)
    return figure


def _line(axes: "Axes", grid: Grid, plan: ExecutionPlan, batch: int, number: int) -> None:
    local = grid.locals[batch].latency_ms.p50
    points = [(rate, cell) for rate in grid.rates if rate and (cell := grid.cells.get((plan, batch, rate)))]
    if not points:
        return
    middle = [cell.latency_ms.p50 / local for _, cell in points]
    low = [max(0.0, y - min(cell.visit_p50_ms) / local) for y, (_, cell) in zip(middle, points, strict=True)]
    high = [max(0.0, max(cell.visit_p50_ms) / local - y) for y, (_, cell) in zip(middle, points, strict=True)]
    axes.errorbar(
        [rate for rate, _ in points],
        middle,
        yerr=[low, high],
        label=plan_label(plan),
        marker=".",
        capsize=2,
        color=LINES[number % len(LINES)],
        linestyle=DASHES[number % len(DASHES)],
        linewidth=1.3,
    )


def _decorate(axes: "Axes", batch: int, rates: Sequence[float]) -> None:
    from matplotlib.ticker import FuncFormatter, NullLocator

    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yscale("log", base=2)
    axes.set_xticks(rates, [rate_label(rate) for rate in rates])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.set_title(f"batch {batch}", fontsize=9, loc="left")
    axes.set_xlabel("Mbps")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
