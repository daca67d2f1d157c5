"""The commands of prism-hw that measure: testbed, profile."""

import contextlib
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from hw.cli.progress import bar
from hw.link.report import LinkConfig
from hw.machine.scratch import scratch
from hw.probe.cells import ProbeConfig
from hw.run.config import LinkStep, ProbeStep, RunConfig
from hw.sweep import config as sweeps
from hw.sweep.config import SweepConfig, Visit
from prism.cli.entry import command_line
from prism.config import load_toml
from prism.errors import ConfigError, ExchangeError
from prism.files import write_file
from prism.spec import ClusterSpec, LinkSpec, ModelSpec
from prism.trace import read_trace, write_trace
from prism.units import format_seconds

app = typer.Typer()
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]


@app.command("testbed", epilog="Example: sudo prism-hw testbed --link testbed:100Mbps,2ms --devices 3")
def stations(
    link: Annotated[
        str, typer.Option(help="testbed:RATE[,LATENCY[,JITTER[,LOSS]]]; RATE may be a .csv of time_s,mbps.")
    ] = "testbed:100Mbps",
    devices: Annotated[int, typer.Option(min=2, max=64, help="Stations around the access point.")] = 2,
    as_json: Json = False,
) -> None:
    """Keep devices as network namespaces around an access point, until Ctrl-C, and say how to enter them."""
    from hw.testbed.namespaces import NamespaceTestbed

    spec = LinkSpec.parse(link)
    if spec.kind != "testbed":
        raise ConfigError(f"link {link!r} is no testbed; write testbed:RATE, as in testbed:100Mbps,2ms")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with NamespaceTestbed(spec, devices) as bed:
        bed.play()
        stations = [
            {"device": number, "address": address, "netns": station.path}
            for number, (address, station) in enumerate(zip(bed.addresses, bed.stations, strict=True))
        ]
        if as_json:
            print(msgspec.json.encode({"link": str(spec), **bed.facts(), "stations": stations}).decode(), flush=True)
        else:
            table = Table("device", "address", "enter it with", title=f"{spec}, medium {bed.facts()['medium']}")
            for row in stations:
                table.add_row(str(row["device"]), str(row["address"]), f"nsenter --net={row['netns']} COMMAND")
            table.caption = "up until Ctrl-C; nothing is left behind"
            Console().print(table)
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)


@app.command("link", epilog="Example: prism-hw link --link testbed:100Mbps,2ms --devices 3 --output link.html")
def measure_links(
    link: Annotated[str, typer.Option(help="loopback, shaper:RATE[,...] or testbed:RATE[,...].")] = "loopback",
    devices: Annotated[int, typer.Option(min=2, max=16, help="Ranks on this machine.")] = 2,
    cluster: Annotated[Path | None, typer.Option(help="cluster.toml: between several machines.")] = None,
    budget: Annotated[float, typer.Option(min=1, max=600, help="Seconds to measure for.")] = 30.0,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for a silent peer.")] = 60.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order of measurements.")] = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the page with plots (HTML).")] = None,
    trace: Annotated[Path | None, typer.Option(help="Write every raw measurement (JSON lines).")] = None,
    as_json: Json = False,
) -> None:
    """Measure the links: alpha, beta and break of each pair and collective, round trips idle and loaded, goodput."""
    from hw.link import view as linkview
    from hw.run.launch import measure, network

    config = RunConfig(link=link, devices=devices, timeout_s=timeout, seed=seed)
    spec = load_toml(cluster, ClusterSpec) if cluster else None
    measured = network(link) if spec else str(config.link_spec())
    with scratch() as folder, _status(f"measuring for about {budget:g} s", as_json):
        raw = trace or folder / "probes.jsonl"
        step = LinkStep(config=LinkConfig(budget_s=budget, seed=seed), link=measured, trace=str(raw.resolve()))
        (report,) = measure(config, [step], spec, command_line(), lambda _: None)
        probes = read_trace(raw).probes
    if report is None:
        raise ExchangeError("the ranks measured no link; run again, and see prism-hw doctor")
    if output:
        write_file(output, linkview.link_page(report, probes).encode())
    if as_json:
        print(msgspec.json.encode(report).decode())
    else:
        Console().print(linkview.link_view(report))


@app.command(epilog="Example: prism-hw probe --output probe.jsonl --link testbed:400Mbps")
def probe(
    output: Annotated[Path, typer.Option("--output", "-o", help="Raw measurements (JSON lines).")] = Path(
        "probe.jsonl"
    ),
    link: Annotated[str, typer.Option(help="Link of the exchanges: loopback, shaper:... or testbed:....")] = "loopback",
    devices: Annotated[int, typer.Option(min=1, max=16, help="Ranks on this machine; 1 leaves exchanges out.")] = 2,
    cluster: Annotated[Path | None, typer.Option(help="cluster.toml: exchanges between several machines.")] = None,
    budget: Annotated[
        float, typer.Option(min=1, max=600, help="Seconds for operations; exchanges take a quarter.")
    ] = 120.0,
    threads: Annotated[int, typer.Option(min=1, help="Threads to compute with.")] = 1,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for a silent peer.")] = 600.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of values and order.")] = 0,
    as_json: Json = False,
) -> None:
    """Time operations of many shapes, copies, codecs and exchanges: raw material for models nobody ran."""
    from hw.run.launch import measure, network

    config = RunConfig(link=link, devices=devices, timeout_s=timeout, threads=threads, seed=seed)
    spec = load_toml(cluster, ClusterSpec) if cluster else None
    measured = network(link) if spec else str(config.link_spec())
    with scratch() as folder, bar(as_json, "measurements") as on_progress:
        parts = [folder / "operations.jsonl", folder / "exchanges.jsonl"]
        steps: list[LinkStep | ProbeStep] = [
            ProbeStep(
                config=ProbeConfig(budget_s=budget, threads=threads, seed=seed), link=measured, trace=str(parts[0])
            )
        ]
        if devices > 1 or spec:
            steps.append(
                LinkStep(
                    config=LinkConfig(budget_s=max(1.0, budget / 4), seed=seed), link=measured, trace=str(parts[1])
                )
            )
        measure(config, steps, spec, command_line(), on_progress)
        traces = [read_trace(part) for part in parts if part.exists()]
    header, probes = traces[0].header, [probe for trace in traces for probe in trace.probes]
    write_trace(output, header, probes)
    counts = Counter(probe.op for probe in probes if not probe.warmup)
    shapes = len(
        {
            (probe.op, probe.shape, probe.codec)
            for probe in probes
            if probe.op not in ("mesh", "ring", "pair", "echo", "bulk")
        }
    )
    if as_json:
        print(msgspec.json.encode({"output": str(output), "probes": counts, "operation_cells": shapes}).decode())
        return
    table = Table("operation", "timed repeats", title=f"{shapes} shapes of operations, one thread each: {threads}")
    for op, count in counts.items():
        table.add_row(op, str(count))
    table.caption = f"raw measurements in {output}"
    Console().print(table)


@contextlib.contextmanager
def _status(text: str, quiet: bool) -> Iterator[None]:
    with contextlib.nullcontext() if quiet else Console(stderr=True).status(text):
        yield


@app.command(
    epilog="Example: prism-hw profile --config experiments/scaled_grid/sweep.toml --output out/scaled --dry-run"
)
def profile(
    config: Annotated[Path, typer.Option(help="TOML file of the sweep: models, modes, segments, batches, rates, ...")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the traces; default: out/NAME of the file.")
    ] = None,
    cluster: Annotated[Path | None, typer.Option(help="cluster.toml: measure on several machines.")] = None,
    repeats: Annotated[int | None, typer.Option(min=1, help="Visits of each cell.")] = None,
    active: Annotated[
        bool, typer.Option("--active", help="Choose each next visit by the regret it is expected to save.")
    ] = False,
    target: Annotated[
        float, typer.Option(min=0, help="With --active: stop a model at this expected regret, in per cent.")
    ] = 1.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the cells and the estimated time.")] = False,
    as_json: Json = False,
) -> None:
    """Measure a sweep, cell by cell, repeats interleaved; killed at any point it goes on where it stopped."""
    from hw.sweep.active import chosen
    from hw.sweep.runner import pending, run_sweep

    sweep = load_toml(config, SweepConfig)
    if repeats is not None:
        sweep = msgspec.structs.replace(sweep, repeats=repeats)
    folder = output or Path("out") / config.stem
    spec = load_toml(cluster, ClusterSpec) if cluster else None
    specs = _described(sweep)
    todo, done = pending(sweep, folder)
    estimates = _estimates(todo, specs)
    if dry_run:
        _print_plan(todo, done, estimates, as_json)
        return
    expected: dict[str, float] = {}
    order = chosen(sweep, folder, specs, target, expected.__setitem__) if active else iter
    with _visit_bar(estimates, done, quiet=as_json) as on_done:
        run_sweep(sweep, folder, spec, command_line(), on_done, order)
    missing, now = pending(sweep, folder)
    result: dict[str, object] = {
        "folder": str(folder),
        "cells": len(sweeps.cells(sweep)),
        "visits": now,
        "new": now - done,
    }
    if active:
        result |= {"not_needed": len(missing), "expected_regret_pct": expected}
    if as_json:
        print(msgspec.json.encode(result).decode())
        return
    print(f"{result['cells']} cells, {result['visits']} visits ({result['new']} new) in {folder}")
    for model, regret in expected.items():
        print(f"{model}: its decisions are expected to cost {regret:.2f} % of latency")
    print(f"Next: prism-hw map {folder} --output map.json")


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
    from prism.report import map_tables as heatmap

    is_map = len(traces) == 1 and traces[0].suffix == ".json"
    built = load_map(traces[0]) if is_map else build_map(read_traces(traces), command_line())
    other = load_map(against) if against else None
    agreement = compare_maps(built, other) if other else None
    if output:
        built.save(output)
    if html:
        from prism.report.map_page import map_page

        write_file(html, map_page(built).encode())
    if as_json:
        found = {"map": built, "crossovers": crossovers(built), "comparison": agreement}
        print(msgspec.json.encode(found).decode())
        return
    Console().print(heatmap.map_view(built))
    if agreement:
        Console().print(heatmap.comparison_view(agreement))


def _described(sweep: SweepConfig) -> dict[str, ModelSpec]:
    """The shape of every model; refuses cells that none of its ranks could run."""
    from prism.nn.zoo import describe

    sweep.links()
    specs = {model: describe(model) for model in sweep.models}
    sweeps.check(sweep, specs)
    return specs


def _estimates(todo: list[Visit], specs: dict[str, ModelSpec]) -> dict[str, float]:
    """Seconds of each visit, from this machine's speed at a matrix product measured now."""
    if not todo:
        return {}
    from hw.machine.facts import flops_per_s

    speed = flops_per_s(todo[0].config.threads)
    return {visit.file: sweeps.estimate_s(visit.config, specs[visit.config.model], speed) for visit in todo}


def _print_plan(todo: list[Visit], done: int, estimates: dict[str, float], as_json: bool) -> None:
    total = sum(estimates.values())
    first = [visit for visit in todo if visit.repeat == min(v.repeat for v in todo)]
    rows = [
        {
            "model": c.model,
            "mode": c.mode.value,
            "segments": c.segments,
            "wire": c.wire,
            "devices": c.plan().devices,
            "batch": c.batch,
            "link": c.link,
            "estimated_s": estimates[visit.file],
        }
        for visit in first
        for c in [visit.config]
    ]
    if as_json:
        print(msgspec.json.encode({"cells": rows, "visits": len(todo), "done": done, "estimated_s": total}).decode())
        return
    table = Table("model", "mode", "L", "wire", "P", "batch", "link", "a visit")
    for row in rows:
        cells = [row[key] for key in ("model", "mode", "segments", "wire", "devices", "batch", "link")]
        table.add_row(
            *["" if cell is None else str(cell) for cell in cells], format_seconds(float(str(row["estimated_s"])))
        )
    table.caption = (
        f"{len(todo)} visits to go, {done} done; about {format_seconds(total)} of work by FLOPs, bytes and this "
        f"machine's speed at a matrix product, before loading models and forming groups"
    )
    Console().print(table)


@contextlib.contextmanager
def _visit_bar(estimates: dict[str, float], done: int, quiet: bool) -> Iterator[Callable[[Visit], None]]:
    """Progress on stderr; the time left goes by the visits' estimates, not by their number."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=quiet or not console.is_terminal,
    )
    with bar:
        visits = done
        total = done + len(estimates)
        task = bar.add_task(f"visit {visits} of {total}", total=sum(estimates.values()))

        def on_done(visit: Visit) -> None:
            nonlocal visits
            visits += 1
            bar.update(task, advance=estimates[visit.file], description=f"visit {visits} of {total}")

        yield on_done
