"""prism-hw profile and map: measure a sweep, and make a performance map of its traces."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from hw.cli.flags import Cluster, Json
from prism.cli import entry
from prism.cli.options import MEASURE_PANEL, OUTPUT_PANEL, option
from prism.config import load_toml
from prism.files import write_file
from prism.labels import plan_label
from prism.spec import ClusterSpec, ModelSpec
from prism.units import format_seconds

if TYPE_CHECKING:
    from hw.run.config import RunConfig
    from hw.sweep.config import SweepConfig, Visit

app = typer.Typer()


@app.command(epilog="Example: prism-hw profile --config experiments/scaled_grid.toml --output out/scaled --dry-run")
def profile(
    config: Annotated[
        Path, option("TOML file of the sweep: models, modes, segments, batches, rates, ...", MEASURE_PANEL)
    ],
    output: Annotated[
        Path | None, option("Folder of the traces; default: out/NAME of the file.", OUTPUT_PANEL, "--output", "-o")
    ] = None,
    cluster: Cluster = None,
    repeats: Annotated[int | None, option("Visits of each cell; default: the file's.", MEASURE_PANEL, min=1)] = None,
    active: Annotated[
        bool, option("Choose each next visit by the regret it is expected to save.", MEASURE_PANEL, "--active")
    ] = False,
    target: Annotated[
        float, option("With --active: stop a model at this expected regret, in per cent.", MEASURE_PANEL, min=0)
    ] = 1.0,
    dry_run: Annotated[bool, option("Print the cells and the estimated time.", MEASURE_PANEL, "--dry-run")] = False,
    as_json: Json = False,
) -> None:
    """Measure a sweep, cell by cell, repeats interleaved; killed at any point it goes on where it stopped."""
    from hw.sweep.config import SweepConfig, cells

    sweep = load_toml(config, SweepConfig)
    sweep.links()  # what a misspelt rate needs no model for
    if repeats is not None:
        sweep = msgspec.structs.replace(sweep, repeats=repeats)
    folder = output or Path("out") / config.stem
    spec = load_toml(cluster, ClusterSpec) if cluster else None
    specs = _described(sweep, spec)
    from hw.sweep.active import chosen
    from hw.sweep.runner import pending, run_sweep

    missing, done = pending(sweep, folder)
    estimates = _estimates(missing, specs)
    if dry_run:
        _print_plan(missing, done, estimates, as_json)
        return
    regrets: dict[str, float] = {}
    order = chosen(sweep, folder, specs, target, regrets.__setitem__) if active else iter
    with _visit_bar(estimates, done, quiet=as_json) as on_done:
        run_sweep(sweep, folder, spec, entry.command_line(), on_done, order)
    left, now = pending(sweep, folder)
    result = {"folder": str(folder), "cells": len(cells(sweep)), "visits": now, "new": now - done}
    _print_result({**result, "not_needed": len(left), "expected_regret_pct": regrets} if active else result, as_json)


def _print_result(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(msgspec.json.encode(result).decode())
        return
    print(f"{result['cells']} cells, {result['visits']} visits ({result['new']} new) in {result['folder']}")
    for model, regret in result.get("expected_regret_pct", {}).items():
        print(f"{model}: its decisions are expected to cost {regret:.2f} % of latency")
    print(f"Next: prism-hw map {result['folder']} --output map.json")


@app.command("map", epilog="Example: prism-hw map out/scaled_grid --output map.json --html map.html")
def performance_map(
    traces: Annotated[list[Path], typer.Argument(help="Trace files, or folders of them; or one map (.json) to show.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the map (JSON).")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write the page with heat maps.")] = None,
    against: Annotated[Path | None, typer.Option(help="Another map: do the medians agree?")] = None,
    as_json: Json = False,
) -> None:
    """Show latency, split and joules of every plan, batch and bandwidth, and where distributing pays."""
    from prism.perfmap import build_map, load_map
    from prism.perfmap.crossover import compare_maps, crossovers
    from prism.perfmap.pooling import read_traces

    is_map = len(traces) == 1 and traces[0].suffix == ".json"
    built = load_map(traces[0]) if is_map else build_map(read_traces(traces), entry.command_line())
    other = load_map(against) if against else None
    agreement = compare_maps(built, other) if other else None
    if output:
        built.save(output)
    if html:
        from prism.report.map_page import map_page

        write_file(html, map_page(built).encode())
    if as_json:
        result = {"map": built, "crossovers": crossovers(built), "comparison": agreement}
        print(msgspec.json.encode(result).decode())
        return
    from prism.report import map_tables

    entry.show(map_tables.map_view(built))
    if agreement:
        entry.show(map_tables.comparison_view(agreement))


def _described(sweep: "SweepConfig", cluster: ClusterSpec | None) -> dict[str, ModelSpec]:
    """Look up the shape of every model, and say what is no cell. Raises ConfigError, PlanError for cells that no rank
    could run."""
    from hw.sweep.config import check, left_out
    from prism.nn.zoo import describe

    specs = {model: describe(model) for model in sweep.models}
    check(sweep, specs, [device.memory_limit() for device in cluster.devices] if cluster else ())
    for line in left_out(sweep):
        print(f"left out: {line}", file=sys.stderr)
    return specs


def _estimates(visits: "list[Visit]", specs: dict[str, ModelSpec]) -> dict[str, float]:
    """Estimate the seconds of each visit from this machine's speed at a matrix product, measured now."""
    if not visits:
        return {}
    from hw.machine.facts import flops_per_s
    from hw.sweep.config import estimate_s

    speed = flops_per_s(visits[0].config.threads)
    return {visit.file: estimate_s(visit.config, specs[visit.config.model], speed) for visit in visits}


def _print_plan(missing: "list[Visit]", done: int, estimates: dict[str, float], as_json: bool) -> None:
    total, first = sum(estimates.values()), min((visit.repeat for visit in missing), default=0)
    cells = [(visit.config, estimates[visit.file]) for visit in missing if visit.repeat == first]
    if as_json:
        rows = [_planned(config, seconds) for config, seconds in cells]
        plan = {"cells": rows, "visits": len(missing), "done": done, "estimated_s": total}
        print(msgspec.json.encode(plan).decode())
        return
    from rich.table import Table

    table = Table("model", "plan", "batch", "link", "a visit")
    for config, seconds in cells:
        table.add_row(config.model, plan_label(config.plan), str(config.batch), config.link, format_seconds(seconds))
    table.caption = (
        f"{len(missing)} visits to go, {done} done; about {format_seconds(total)} of work by FLOPs, bytes and this "
        f"machine's speed at a matrix product, before loading models and forming groups"
    )
    entry.show(table)


def _planned(config: "RunConfig", seconds: float) -> dict[str, Any]:
    """A cell as `--dry-run --json` prints it."""
    fields = {**config.flat(), "devices": config.plan.devices}
    shown = ("model", "mode", "segments", "wire", "devices", "batch", "link")
    return {**{name: fields[name] for name in shown}, "estimated_s": seconds}


@contextlib.contextmanager
def _visit_bar(estimates: dict[str, float], done: int, quiet: bool) -> "Iterator[Callable[[Visit], None]]":
    """Show progress on stderr; the time left goes by the visits' estimates, not by their number."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal)
    with bar:
        visits, total = done, done + len(estimates)
        task = bar.add_task(f"visit {visits} of {total}", total=sum(estimates.values()))

        def on_done(visit: "Visit") -> None:
            nonlocal visits
            visits += 1
            bar.update(task, advance=estimates[visit.file], description=f"visit {visits} of {total}")

        yield on_done
