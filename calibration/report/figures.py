"""Figures of a fit and of a comparison, for pages that need no other file."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from calibration.decision_scores import BreakEven, DecisionPair
from calibration.fit import Residual
from calibration.validate import CellComparison
from prism.labels import short
from prism.trace import KINDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"local": "#0072b2", "full": "#d55e00", "segment_means": "#009e73", "first_and_means": "#cc79a7"}
INK, GREY = "#1d2430", "#c9ced6"
MOST_LINES = 40


@contextmanager
def style() -> Iterator[None]:
    """Text stays text in the SVG; no window system is needed."""
    import matplotlib

    matplotlib.use("svg")
    with matplotlib.rc_context({"svg.fonttype": "none", "font.size": 9, "font.family": "sans-serif"}):
        yield


def _figure(height: float, columns: int = 1) -> tuple["Figure", list["Axes"]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.4, height), layout="constrained")
    axes = list(figure.subplots(1, columns, squeeze=False)[0])
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def scatter_figure(rows: Sequence[CellComparison]) -> "Figure":
    """Predicted against measured, with 90 % intervals; and the errors over the measured latency."""
    figure, (left, right) = _figure(4.4, 2)
    ends = [value for row in rows for value in (row.measured_ms, row.predicted_ms)]
    left.plot([min(ends), max(ends)], [min(ends), max(ends)], color=GREY, zorder=0)
    right.axhline(0, color=GREY, zorder=0)
    for mode, colour in COLOURS.items():
        chosen = [row for row in rows if row.mode == mode]
        if not chosen:
            continue
        measured = [row.measured_ms for row in chosen]
        low = [row.predicted_ms - row.interval_ms[0] for row in chosen]
        high = [row.interval_ms[1] - row.predicted_ms for row in chosen]
        left.errorbar(
            measured,
            [row.predicted_ms for row in chosen],
            yerr=[low, high],
            fmt="o",
            markersize=3,
            color=colour,
            elinewidth=0.6,
            alpha=0.8,
            label=mode.replace("_", " "),
        )
        right.plot(measured, [row.error_pct for row in chosen], "o", markersize=3, color=colour, alpha=0.8)
    left.set(xscale="log", yscale="log", xlabel="measured ms", ylabel="predicted ms, 90 % interval")
    right.set(xscale="log", xlabel="measured ms", ylabel="error, per cent")
    left.legend(frameon=False)
    return figure


def break_even_figure(evens: Sequence[BreakEven]) -> "Figure | None":
    """Break-evens in bandwidth, measured and predicted on one line each; never and always stand at the ends."""
    lines = [even for even in evens if even.axis == "bandwidth_mbps"][:MOST_LINES]
    places = [at for even in lines for at in (even.measured_at, even.predicted_at) if at is not None]
    if not places:
        return None
    ends = {"always": min(places) / 2, "never": max(places) * 2}
    figure, (axes,) = _figure(0.24 * len(lines) + 1.1)
    for place, even in enumerate(lines):
        ours = ends[even.measured] if even.measured_at is None else even.measured_at
        theirs = ends[even.predicted] if even.predicted_at is None else even.predicted_at
        axes.plot([ours, theirs], [place, place], color=GREY, linewidth=1.5, zorder=0)
        axes.plot(ours, place, "o", color=INK, label="measured" if not place else "")
        axes.plot(theirs, place, "D", color="#d55e00", markersize=4, label="predicted" if not place else "")
    names = [f"{even.model} {even.plan.removesuffix(' P=2')} {even.held}{' ~' * even.near_tie}" for even in lines]
    axes.set_yticks(range(len(lines)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="Mbps of the break-even; at the left end: always, at the right end: never")
    for end in ends.values():
        axes.axvline(end, color=GREY, linestyle=":")
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return figure


def map_figure(pairs: Sequence[DecisionPair]) -> "Figure | None":
    """Who is faster, measured and predicted side by side: a line for each model, plan and batch, a column for each
    rate; blue where distributed is, red where local is, white where they are alike or not measured."""
    lines = list(dict.fromkeys((pair.model, pair.plan, pair.batch) for pair in pairs))
    rates = sorted({pair.bandwidth_mbps for pair in pairs if pair.bandwidth_mbps is not None})
    if not rates:
        return None
    sides = np.full((2, len(lines), len(rates)), np.nan)
    for pair in pairs:
        if pair.bandwidth_mbps is not None:
            place = lines.index((pair.model, pair.plan, pair.batch)), rates.index(pair.bandwidth_mbps)
            sides[0][place], sides[1][place] = pair.measured_excess, pair.predicted_excess
    figure, axes = _figure(0.15 * len(lines) + 1.1, 2)
    for one, side, title in zip(axes, np.log2(1 + sides), ("measured", "predicted"), strict=True):
        drawn = one.imshow(side, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto", interpolation="none")
        one.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
        one.set_yticks([])
        one.set(xlabel="Mbps", title=title)
    names = [f"{short(model)} {plan.removesuffix(' P=2')} B={batch}" for model, plan, batch in lines]
    axes[0].set_yticks(range(len(lines)), names, fontsize=6)
    bar = figure.colorbar(drawn, ax=axes, shrink=min(1.0, 3 / figure.get_figheight()), extend="both")
    bar.set_ticks([-1, 0, 1], labels=["half as long", "alike", "twice as long"])
    return figure


def kinds_figure(rows: Sequence[CellComparison]) -> "Figure":
    """What the errors consist of: predicted less measured of each span kind, in per cent of the latency."""
    modes = [mode for mode in COLOURS if any(row.mode == mode for row in rows)]
    figure, axes = _figure(2.8, len(modes))
    for one, mode in zip(axes, modes, strict=True):
        chosen = [row for row in rows if row.mode == mode]
        one.axhline(0, color=GREY, zorder=0)
        one.boxplot([[row.split_pct[kind] for row in chosen] for kind in KINDS], sym=".", widths=0.6)
        one.set_xticks(range(1, len(KINDS) + 1), [kind.replace("stage_", "") for kind in KINDS])
        one.set_title(mode.replace("_", " "), loc="left", fontsize=9)
    axes[0].set_ylabel("predicted less measured,\nper cent of the latency")
    return figure


def residual_figure(residuals: Sequence[Residual]) -> "Figure":
    """The fit's errors, cell by cell, with the spread of the measured medians."""
    models = sorted({each.model for each in residuals})
    figure, axes = _figure(3.2, len(models))
    for one, model in zip(axes, models, strict=True):
        one.axhline(0, color=GREY, zorder=0)
        for mode, colour in COLOURS.items():
            chosen = [each for each in residuals if (each.model, each.mode) == (model, mode)]
            if chosen:
                measured = [each.measured_ms for each in chosen]
                one.plot(
                    measured,
                    [100 * each.error for each in chosen],
                    "o",
                    markersize=3,
                    color=colour,
                    label=mode.replace("_", " "),
                )
        one.set(xscale="log", xlabel="measured ms")
        one.xaxis.set_minor_formatter("")  # within one decade matplotlib labels these too, one over the other
        one.set_title(short(model), loc="left", fontsize=9)
    axes[0].set_ylabel("fitted less measured, per cent")
    axes[0].legend(frameon=False)
    return figure
