"""prism-sim compare: predictions of a profile beside measurements that it never saw."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from prism.backend import Workload
from prism.cli.entry import command_line
from prism.cost import CalibratedProfile, load_profile
from prism.errors import ConfigError
from prism.files import write_file
from prism.perfmap import Cell, PerformanceMap, build_map
from prism.perfmap.pooling import TraceSet, read_traces
from prism.spec import ModelSpec
from prism.trace import Trace, perfetto
from sim.cli import options
from sim.cli.calibrate import Specs, Traces, models_of
from sim.engine.backend import SimBackend, identical

if TYPE_CHECKING:  # scipy takes half of the time that prism-sim needs to start
    from calibration.validate import ComparisonReport


def compare_command(
    traces: Traces,
    profile: Annotated[str, typer.Option(help="A built-in profile, or a calibrated one (.json).")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The page (.html), or the report (.json).")
    ] = None,
    reference: Annotated[
        list[Path] | None, typer.Option(help="Traces of the profiled models, for the rules that learn from them.")
    ] = None,
    lanes: Annotated[
        Path | None, typer.Option(help="Measured and simulated lanes of the worst cell, for Perfetto (.json).")
    ] = None,
    model: Specs = None,
    draws: options.Draws = 48,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Compare predictions with measurements: errors, decisions, break-evens, intervals, and what simpler rules do."""
    if output and output.suffix not in (".html", ".json"):
        raise ConfigError(f"output {output}: a comparison is written as .html or .json; rename it")
    measured, learned = read_traces(traces), read_traces(reference) if reference else None
    models = models_of(measured, model) | (models_of(learned, model) if learned else {})
    used = load_profile(profile)
    report = comparison(used, build_map(measured), models, build_map(learned) if learned else None, draws, seed)
    in_fit = len({file.digest for file in measured.files} & set(used.traces))
    if output:
        write_file(output, _file_of(report, used, in_fit, output.suffix))
    if lanes:
        worst = max(report.rows, key=lambda row: abs(row.error_pct)).cell
        write_file(lanes, side_by_side(used, measured, models, worst))
    if json:
        print(msgspec.json.encode(report).decode())
    else:
        _print_report(report, in_fit)


def comparison(
    profile: CalibratedProfile,
    measured: PerformanceMap,
    models: dict[str, ModelSpec],
    reference: PerformanceMap | None,
    draws: int,
    seed: int,
) -> "ComparisonReport":
    """Predict a map's cells by a profile, and score the predictions."""
    from calibration.validate import compared
    from sim.ask.for_calibration import guesses

    predicted = guesses(profile, measured.cells, models, draws, seed, os.cpu_count() or 1)
    return compared(profile, measured, predicted, models, reference)


def _file_of(report: "ComparisonReport", profile: CalibratedProfile, in_fit: int, suffix: str) -> bytes:
    from calibration.report.comparison import comparison_page

    if suffix == ".json":
        return msgspec.json.encode(report)
    title = f"{profile.name} against measurements"
    return comparison_page(report, profile, in_fit, command_line(), title).encode()


def _print_report(report: "ComparisonReport", in_fit: int) -> None:
    from calibration.report.scores import RULE_HEADS, fact_lines, goal_heads, goal_rows, rule_rows

    console = Console()
    for heads, rows in ((goal_heads(report), goal_rows(report)), (RULE_HEADS, rule_rows(report.scores))):
        table = Table(*heads, box=None)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for line in fact_lines(report):
        console.print(line, soft_wrap=True)
    if in_fit:
        console.print(f"{in_fit} traces were part of the profile's fit: no test of it", style="yellow")


def side_by_side(profile: CalibratedProfile, traces: TraceSet, models: dict[str, ModelSpec], label: str) -> bytes:
    """Write the first visit of a cell and its simulation as Perfetto JSON."""
    from sim.ask.for_calibration import point_of

    cell: Cell = next(cell for cell in build_map(traces).cells if cell.label == label)
    name = cell.provenance.files[0][0]
    measured = next(file.trace for file in traces.files if file.name == name)
    point = point_of(cell, models)
    machines = identical(profile, profile.model(), cell.plan.ranks, cell.link)
    simulated = SimBackend(machines).run(point.plan, Workload(model=point.model, batch=point.batch))
    return perfetto(_first_batch(measured), simulated)


def _first_batch(trace: Trace) -> Trace:
    first = trace.measured[0].batch
    kept = tuple(record for record in trace.records if getattr(record, "batch", None) == first)
    return msgspec.structs.replace(trace, records=kept)
