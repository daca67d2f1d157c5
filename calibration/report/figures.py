"""Figures of a fit and of a comparison."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from calibration.decision_scores import BreakEven, DecisionPair
from calibration.fit import Residual
from calibration.validate import CellComparison
from prism.labels import short
from prism.report.figures import GREY, INK, MODE_COLOURS, VERMILION, legend_above, panels
from prism.trace import KINDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_LINES = 40
DOTS: dict[str, Any] = {"marker": "o", "markersize": 3, "linestyle": "none", "alpha": 0.8}


def scatter_figure(rows: Sequence[CellComparison]) -> "Figure":
    """Draw predicted over measured milliseconds with 90 % intervals, and the errors over the measured latency."""
    figure, (left, right) = panels(2, 4.4)
    ends = [value for row in rows for value in (row.measured_ms, row.predicted_ms)]
    left.plot([min(ends), max(ends)], [min(ends), max(ends)], color=GREY, zorder=0)
    right.axhline(0, color=GREY, zorder=0)
    for mode, colour in MODE_COLOURS.items():
        chosen = [row for row in rows if row.mode == mode]
        measured, predicted = [row.measured_ms for row in chosen], [row.predicted_ms for row in chosen]
        low = [row.predicted_ms - row.interval_ms[0] for row in chosen]
        high = [row.interval_ms[1] - row.predicted_ms for row in chosen]
        if chosen:
            style = {**DOTS, "color": colour}
            left.errorbar(measured, predicted, [low, high], elinewidth=0.6, label=mode.replace("_", " "), **style)
            right.plot(measured, [row.error_pct for row in chosen], **style)
    left.set(xscale="log", yscale="log", xlabel="measured ms", ylabel="predicted ms, 90 % interval")
    right.set(xscale="log", xlabel="measured ms", ylabel="error, per cent")
    left.legend()
    return figure


def break_even_figure(evens: Sequence[BreakEven]) -> "Figure | None":
    """Draw break-evens in bandwidth, measured and predicted on one line each; never and always stand at the ends."""
    lines = [even for even in evens if even.axis == "bandwidth_mbps"][:MOST_LINES]
    places = [at for even in lines for at in (even.measured_at, even.predicted_at) if at is not None]
    if not places:
        return None
    ends = {"always": min(places) / 2, "never": max(places) * 2}
    figure, (axes,) = panels(1, 0.24 * len(lines) + 1.1)
    for place, even in enumerate(lines):
        _break_even_line(axes, place, even, ends)
    names = [f"{even.model} {even.plan.removesuffix(' P=2')} {even.held}{' ~' * even.near_tie}" for even in lines]
    axes.set_yticks(range(len(lines)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="Mbps of the break-even; at the left end: always, at the right end: never")
    for end in ends.values():
        axes.axvline(end, color=GREY, linestyle=":")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return figure


def _break_even_line(axes: "Axes", place: int, even: BreakEven, ends: Mapping[str, float]) -> None:
    measured = ends[even.measured] if even.measured_at is None else even.measured_at
    predicted = ends[even.predicted] if even.predicted_at is None else even.predicted_at
    axes.plot([measured, predicted], [place, place], color=GREY, linewidth=1.5, zorder=0)
    axes.plot(measured, place, "o", color=INK, label="" if place else "measured")
    axes.plot(predicted, place, "D", color=VERMILION, markersize=4, label="" if place else "predicted")


def winner_figure(pairs: Sequence[DecisionPair]) -> "Figure | None":
    """Draw which plan is faster, measured and predicted side by side: a line for each model, plan and batch, a column
    for each rate.

    Blue: distributed is faster, red: local is, white: they are alike or were not measured.
    """
    lines = list(dict.fromkeys((pair.model, pair.plan, pair.batch) for pair in pairs))
    rates = sorted({pair.bandwidth_mbps for pair in pairs if pair.bandwidth_mbps is not None})
    if not rates:
        return None
    sides = np.full((2, len(lines), len(rates)), np.nan)
    for pair in pairs:
        if pair.bandwidth_mbps is not None:
            place = lines.index((pair.model, pair.plan, pair.batch)), rates.index(pair.bandwidth_mbps)
            sides[0][place], sides[1][place] = pair.measured_excess, pair.predicted_excess
    figure, axes = panels(2, 0.15 * len(lines) + 1.1)
    for panel, side, title in zip(axes, np.log2(1 + sides), ("measured", "predicted"), strict=True):
        image = panel.imshow(side, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto", interpolation="none")
        panel.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
        panel.set_yticks([])
        panel.set(xlabel="Mbps", title=title)
    names = [f"{short(model)} {plan.removesuffix(' P=2')} B={batch}" for model, plan, batch in lines]
    axes[0].set_yticks(range(len(lines)), names, fontsize=6)
    bar = figure.colorbar(image, ax=axes, shrink=min(1.0, 3 / figure.get_figheight()), extend="both")
    bar.set_ticks([-1, 0, 1], labels=["half as long", "alike", "twice as long"])
    return figure


def kinds_figure(rows: Sequence[CellComparison]) -> "Figure":
    """Draw what the errors consist of: predicted less measured of each span kind, in per cent of the latency."""
    modes = [mode for mode in MODE_COLOURS if any(row.mode == mode for row in rows)]
    figure, axes = panels(len(modes), 2.8)
    for panel, mode in zip(axes, modes, strict=True):
        chosen = [row for row in rows if row.mode == mode]
        panel.axhline(0, color=GREY, zorder=0)
        panel.boxplot([[row.split_pct[kind] for row in chosen] for kind in KINDS], sym=".", widths=0.6)
        panel.set_xticks(range(1, len(KINDS) + 1), [kind.replace("stage_", "") for kind in KINDS])
        panel.set_title(mode.replace("_", " "))
    axes[0].set_ylabel("predicted less measured,\nper cent of the latency")
    return figure


def residual_figure(residuals: Sequence[Residual]) -> "Figure":
    """Draw the error of the fit in every cell, a panel a model."""
    models = sorted({residual.model for residual in residuals})
    figure, axes = panels(len(models), 3.2, abreast=min(len(models), 4))
    for panel, model in zip(axes, models, strict=True):
        panel.axhline(0, color=GREY, zorder=0)
        for mode, colour in MODE_COLOURS.items():
            chosen = [residual for residual in residuals if (residual.model, residual.mode) == (model, mode)]
            measured, errors = [r.measured_ms for r in chosen], [100 * r.error for r in chosen]
            if chosen:
                panel.plot(measured, errors, label=mode.replace("_", " "), color=colour, **DOTS)
        panel.set(xscale="log", xlabel="measured ms")
        panel.xaxis.set_minor_formatter("")  # within one decade matplotlib labels these too, one over the other
        panel.set_title(short(model))
    axes[0].set_ylabel("fitted less measured, per cent")
    legend_above(figure, abreast=4)
    return figure
