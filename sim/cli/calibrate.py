"""prism-sim calibrate and compare: from traces to a profile, and a profile held against other traces."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from prism.cli.entry import command_line
from prism.cost import CalibratedProfile, load_profile
from prism.errors import ConfigError, InputError
from prism.files import write_file
from prism.perfmap import Cell, PerformanceMap, build_map
from prism.perfmap.pooling import TraceSet, read_traces
from prism.spec import ModelSpec
from prism.trace import Probe, Trace, perfetto, read_trace
from sim.cli import options
from sim.cli.options import model_of
from sim.engine.backend import SimBackend, identical

if TYPE_CHECKING:  # scipy takes half of the time that prism-sim needs to start
    from calibration.fit import Calibration

Traces = Annotated[list[Path], typer.Argument(help="Trace files, or folders of them.")]
Specs = Annotated[
    list[str] | None,
    typer.Option("--model", help="NAME=SPEC.json: the shape of a model that is not to be found by its name."),
]
Html = Annotated[Path | None, typer.Option("--html", help="Also write the page.")]


def calibrate_command(
    traces: Traces,
    output: Annotated[Path, typer.Option("--output", "-o", help="The profile (JSON).")] = Path("profile.json"),
    probes: Annotated[list[Path] | None, typer.Option(help="Files of prism-hw probe, for shapes nobody ran.")] = None,
    model: Specs = None,
    html: Html = None,
    json: options.Json = False,
) -> None:
    """Fit a profile to measured traces: terms with their errors, residuals, and each model from the others alone."""
    from calibration.fit import calibrate
    from calibration.report import page as pages
    from sim.ask.for_calibration import simulator_of

    known = read_traces(traces)
    models = _models(known, model)
    probed = [record for path in probes or [] for record in _probes(path)]
    found = calibrate(known, models, simulator_of(models), output.stem, probed, command_line())
    write_file(output, msgspec.json.format(msgspec.json.encode(found.profile), indent=1) + b"\n")
    if html:
        write_file(html, pages.fit_page(found, command_line()).encode())
    if json:
        print(msgspec.json.encode(found).decode())
        return
    _print_fit(found, output)


def _print_fit(found: "Calibration", output: Path) -> None:
    from calibration.report import page as pages

    console = Console()
    table = Table("term", "value", "error", "", box=None)
    for row in pages.terms(found):
        table.add_row(*row)
    console.print(table)
    exchanges = Table("exchange", "messages", "cells", "mean error", box=None)
    for row in pages.regimes(found):
        exchanges.add_row(*row)
    console.print(exchanges)
    for name, error in found.left_out_mape_pct.items():
        console.print(f"{name} from the other models alone: mean absolute error {error:.1f} %")
    for message in found.messages:
        console.print(message, style="yellow", soft_wrap=True)
    console.print(f"{pages.fit_line(found)}; profile in {output}", soft_wrap=True)


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
    """Simulated against measured: errors, decisions, break-evens, intervals, and what simpler rules would do."""
    from calibration.report import page as pages

    if output and output.suffix not in (".html", ".json"):
        raise ConfigError(f"output {output}: a comparison is written as .html or .json; rename it")
    known = read_traces(traces)
    learned = read_traces(reference) if reference else None
    models = _models(known, model) | (_models(learned, model) if learned else {})
    used = load_profile(profile)
    report = compare(used, build_map(known), models, build_map(learned) if learned else None, draws, seed)
    in_fit = len({file.digest for file in known.files} & set(used.traces))
    if output:
        page = pages.comparison_page(report, used, in_fit, command_line(), f"{used.name} against measurements")
        write_file(output, page.encode() if output.suffix == ".html" else msgspec.json.encode(report))
    if lanes:
        worst = max(report.rows, key=lambda row: abs(row.error_pct)).cell
        write_file(lanes, side_by_side(used, known, models, worst))
    if json:
        print(msgspec.json.encode(report).decode())
        return
    console = Console()
    table = Table(*pages.goal_heads(report), box=None)
    for row in pages.goal_rows(report):
        table.add_row(*row)
    console.print(table)
    rules = Table("", "decisions right", "mean regret", "P95 regret", box=None)
    for row in pages.rules(report.scores):
        rules.add_row(*row)
    console.print(rules)
    for line in pages.facts(report):
        console.print(line, soft_wrap=True)
    if in_fit:
        console.print(f"{in_fit} traces were part of the profile's fit: no test of it", style="yellow")


def compare(
    profile: CalibratedProfile,
    measured: PerformanceMap,
    models: dict[str, ModelSpec],
    reference: PerformanceMap | None,
    draws: int,
    seed: int,
) -> Any:
    """A Report of a map's cells under a profile."""
    from calibration.validate import compared
    from sim.ask.for_calibration import guesses

    found = guesses(profile, measured.cells, models, draws, seed, os.cpu_count() or 1)
    return compared(profile, measured, found, models, reference)


def side_by_side(profile: CalibratedProfile, traces: TraceSet, models: dict[str, ModelSpec], label: str) -> bytes:
    """The first visit of a cell and the same simulated, as Perfetto JSON."""
    from prism.backend import Workload
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


def _models(traces: TraceSet, given: list[str] | None) -> dict[str, ModelSpec]:
    """The shape of each model of some traces: from --model, else as they say, else by its name."""
    found = traces.shapes()
    for text in given or []:
        name, _, path = text.partition("=")
        if not path:
            raise ConfigError(f"model {text!r}: write NAME=SPEC.json")
        found[name] = model_of(path)
    for name in sorted(set(traces.models()) - set(found)):
        try:
            found[name] = model_of(name)
        except InputError as error:
            raise InputError(
                f"{error}; or give the shape of this model of the traces: --model {name}=SPEC.json"
            ) from None
    return found


def _probes(path: Path) -> Iterable[Probe]:
    probes = read_trace(path).probes
    if not probes:
        raise ConfigError(f"{path} holds no probes; give the file that prism-hw probe wrote")
    return probes
