"""Figures of the simulator's answers, for pages."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prism.labels import plan_label
from prism.report.figures import BLUE, GREY, INK, KIND_COLOURS, PALE, SLATE, VERMILION, panels, split_bars
from sim.ask.break_even import PlanBreakEven
from sim.ask.point import PointPrediction
from sim.ask.study import Result
from sim.cli.answer_tables import SHOWN, STAGES, names_of, prediction_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STAGE_COLOURS = {stage: KIND_COLOURS["stage_d2h" if stage == "staging" else stage] for stage in STAGES}


def prediction_bars(cells: Sequence[PointPrediction]) -> "Figure":
    """Stack the stages of each prediction to a bar, with its 90 % interval."""
    chosen = cells[:SHOWN]
    rows = prediction_rows(chosen)
    splits = [{stage: row[f"{stage}_ms"] for stage in STAGES} for row in rows]
    names = [f"{number}. {name}" for number, name in enumerate(names_of(chosen), 1)]
    spans = [cell.interval_ms for cell in chosen]
    return split_bars(list(zip(names, splits, strict=True)), "ms per batch, simulated", STAGE_COLOURS, spans)


def crossover_figure(flip: PlanBreakEven) -> "Figure":
    """Draw both latencies over the quantity that varies, and where they cross with its interval."""
    from matplotlib.ticker import LogFormatter

    figure, (axes,) = panels(1, 4.0)
    axes.plot(flip.values, flip.local_ms, color=SLATE, linewidth=3, label=plan_label(flip.against))
    axes.plot(flip.values, flip.distributed_ms, color=VERMILION, label=plan_label(flip.plan))
    if flip.value is not None and flip.interval is not None:
        axes.axvspan(*flip.interval, color=PALE, zorder=0)
        axes.axvline(flip.value, color=INK, linestyle=":")
    unit = " (Mbps)" if flip.over == "bandwidth" else ""
    axes.set(xscale="log", yscale="log", xlabel=f"{flip.over}{unit}", ylabel="ms per batch, simulated")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(LogFormatter())  # plain numbers, no powers of ten
        axis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))
    axes.legend()
    return figure


def front_figure(result: Result) -> "Figure":
    """Draw joules over milliseconds per sample of every feasible cell, and the Pareto front as a line."""
    figure, (axes,) = panels(1, 4.5)
    axes.scatter(*_costs(result, result.feasible), s=12, color=GREY, edgecolors=BLUE, label="keeps the constraints")
    axes.plot(*_costs(result, result.front), color=VERMILION, marker="o", label="Pareto front")
    axes.set(xlabel="ms per sample, simulated", ylabel="J per sample, modelled")
    axes.legend()
    return figure


def _costs(result: Result, chosen: Sequence[int]) -> tuple[list[float], list[float]]:
    """Milliseconds and joules per sample of the cells that have joules."""
    cells = [result.cells[k] for k in chosen if result.cells[k].energy_j is not None]
    return [cell.per_sample_ms for cell in cells], [(cell.energy_j or 0.0) / cell.batch for cell in cells]
