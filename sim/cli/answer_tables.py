"""The simulator's answers as flat rows, as tables for the console, and as lines."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from rich.table import Table

from prism.labels import plan_label, shared_habits, without_habits
from prism.plan import LOCAL, ExecutionPlan
from prism.report.page import cell_text
from sim.ask.break_even import Influence, PlanBreakEven
from sim.ask.point import PointPrediction, plan_fields
from sim.ask.study import Result
from sim.serving.scenario import ServingReport

SHOWN = 40  # rows of a table or a figure; files have all
STAGES = ("compute", "staging", "wait", "wire")
PARTS = ("bandwidth_mbps", "batch")  # of a prediction's name, beside its plan, where cells differ in them


def prediction_rows(cells: Sequence[PointPrediction]) -> list[dict[str, Any]]:
    """Flatten predictions to rows of the same fields. A plan's name leaves out how all of them exchange."""
    habits = not shared_habits([cell.plan for cell in cells if cell.plan.ranks > 1])
    return [_row(cell, cell.plan if habits else without_habits(cell.plan)) for cell in cells]


def _row(cell: PointPrediction, named: ExecutionPlan) -> dict[str, Any]:
    split, plan = cell.split_ms, cell.plan
    low, high = cell.interval_ms or (None, None)
    return {
        "model": cell.model,
        "tokens": cell.tokens,
        "plan": plan_label(named),
        **plan_fields(plan),
        "replicas": plan.replicas,
        "stages": plan.stages,
        "microbatch": plan.microbatch,
        "batch": cell.batch,
        "bandwidth_mbps": cell.bandwidth_mbps,
        "latency_ms": cell.latency_ms,
        "low_ms": low,
        "high_ms": high,
        "per_sample_ms": cell.per_sample_ms,
        "samples_per_s": cell.samples_per_s,
        "energy_j": cell.energy_j,
        "memory_mb": max(cell.memory_bytes) / 1e6,
        "compute_ms": split["compute"],
        "staging_ms": split["stage_d2h"] + split["stage_h2d"],
        "wait_ms": split["wait"],
        "wire_ms": split["wire"],
        "weights": ":".join(f"{weight:g}" for weight in plan.weights or ()),
        "tag": cell.tag,
    }


def name_of(cell: PointPrediction, parts: Sequence[str] = PARTS, habits: bool = True) -> str:
    """Name a prediction of one model by its plan, with its habits or without, and these parts."""
    words = {"bandwidth_mbps": f"{cell.bandwidth_mbps or 0:g} Mbps", "batch": f"B={cell.batch}"}
    shown = [words[part] for part in parts if cell.plan.ranks > 1 or part == "batch"]
    return " ".join([plan_label(cell.plan if habits else without_habits(cell.plan)), *shown])


def names_of(cells: Sequence[PointPrediction]) -> list[str]:
    """Name predictions without what all distributed ones share."""
    flat = [cell.flat() for cell in cells]
    values = {part: {row[part] for row in flat if row["devices"] > 1 or part == "batch"} for part in PARTS}
    habits = not shared_habits([cell.plan for cell in cells if cell.plan.ranks > 1])
    return [name_of(cell, [part for part in PARTS if len(values[part]) > 1], habits) for cell in cells]


def predictions_table(cells: Sequence[PointPrediction], title: str = "") -> Table:
    """Tabulate latency, interval, samples per second of a stream, joules, the largest rank's memory, and the split."""
    table = Table("plan", "ms", "90 %", "/s", "J", "MB", *STAGES, "tag", title=title, box=None, padding=(0, 1, 0, 0))
    for column in table.columns:
        column.no_wrap = column.header != "plan"  # the longest, which wraps on a narrow console
        column.min_width = len("2 replicas") if column.header == "plan" else None
        column.justify = "left" if column.header in ("plan", "tag") else "right"
    shown = cells[:SHOWN]
    for name, cell, flat in zip(names_of(cells), shown, prediction_rows(shown), strict=False):
        interval = "-" if cell.interval_ms is None else f"{cell.interval_ms[0]:.0f}..{cell.interval_ms[1]:.0f}"
        stages = [f"{flat[f'{stage}_ms']:.1f}" for stage in STAGES]
        figures = (f"{flat['samples_per_s']:.1f}", cell_text(cell.energy_j), f"{flat['memory_mb']:.0f}")
        table.add_row(name, f"{cell.latency_ms:.1f}", interval, *figures, *stages, cell.tag)
    if len(cells) > SHOWN:
        table.caption = f"{len(cells) - SHOWN} more; --json or --output has all"
    return table


def crossover_line(flip: PlanBreakEven) -> str:
    """Say in one line where a distributed plan becomes as fast as another one, which mostly is local."""
    ours = "distributed" if flip.against == LOCAL else plan_label(flip.plan)
    unit = " Mbps" if flip.over == "bandwidth" else ""
    span = f"over {flip.over}, {flip.values[0]:g} to {flip.values[-1]:g}{unit}"
    span += "" if flip.against == LOCAL else f", against {plan_label(flip.against)}"
    wins = f"{ours} wins in {100 * flip.p_distributed_wins:.0f} % of the draws at the point itself"
    if flip.kind != "at" or flip.value is None:
        return f"{span}: {ours} {flip.kind} wins; {wins}; {flip.tag}"
    low, high = flip.interval or (flip.value, flip.value)
    side = "from" if flip.wins == "above" else "below"
    return f"{span}: {ours} wins {side} {flip.value:.4g}{unit} (90 %: {low:.4g} to {high:.4g}); {wins}; {flip.tag}"


def sensitivity_table(influences: Sequence[Influence]) -> Table:
    """Tabulate what each term of the profile does to latency and to the lead over local."""
    table = Table("term", "value", "changed by", "latency", "lead over local", "flips", "origin", box=None)
    for influence in influences:
        table.add_row(
            influence.term,
            f"{influence.value:.3g}",
            f"{100 * influence.step:+.0f} %",
            f"{100 * influence.latency_change:+.1f} %",
            f"{100 * influence.lead_change:+.1f} %",
            "yes" if influence.flips else "",
            influence.origin,
        )
    return table


def served_facts(served: ServingReport) -> dict[str, str]:
    """Name the figures of a served scenario, and write each as people read it."""
    joules = served.joules_per_sample
    return {
        "requests": f"{served.requests} in {served.seconds:.3g} s, {served.throughput_per_s:.3g} per second",
        "latency ms": _quantiles(served.latency_ms),
        "waiting ms": _quantiles(served.waiting_ms),
        "queue": f"mean {served.queue_mean:.2f}, longest {served.queue_longest}, "
        f"backlog at the last arrival {served.backlog}",
        "batches": f"{served.batches} of {served.batch_mean:.2f} on average: {cell_text(served.modes)}",
        "energy": "no power profile" if joules is None else f"{joules:.3g} J per sample",
        "failures": "; ".join(served.failures) or "none",
    }


def _quantiles(milliseconds: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value in milliseconds.items())


def facts_view(facts: dict[str, str]) -> Table:
    """Show names and their values on the console."""
    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        table.add_row(name, value)
    return table


def served_row(served: ServingReport) -> dict[str, Any]:
    """Flatten a served scenario to one row; a cell that holds several values is their text."""
    whole = msgspec.to_builtins(served)
    return {name: str(value) if isinstance(value, (dict, list, tuple)) else value for name, value in whole.items()}


def extrapolated(reasons: Iterable[str]) -> list[str]:
    """Say in what a prediction lies outside of the profile's data, each reason once."""
    return [f"extrapolated: {reason}" for reason in dict.fromkeys(reasons)]


def study_lines(result: Result) -> list[str]:
    """Say what a study found: how many cells are feasible, the best one, and the answers to its questions."""
    lines = [f"{len(result.cells)} cells, {len(result.feasible)} keep the constraints"]
    if result.best is None:
        lines.append(result.note)
    else:
        best = result.cells[result.best]
        lines.append(f"best: {name_of(best)}, {best.latency_ms:.1f} ms, {cell_text(best.energy_j)} J, {best.tag}")
    for answer in result.answers:
        unit = " Mbps" if answer.find == "least_bandwidth" else ""
        at = "" if answer.value is None else f"{answer.value:.4g}{unit} ({answer.latency_ms:.1f} ms, {answer.tag})"
        lines.append(f"{answer.find.replace('_', ' ')}: {at or answer.note}")
    return [*lines, *(f"left out: {reason}" for reason in result.left_out[:5])]
