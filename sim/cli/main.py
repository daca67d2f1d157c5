"""prism-sim: predict before owning the hardware."""

import gc
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import typer
from rich.console import Console

from prism.backend import Workload
from prism.cli import entry as command
from prism.cost import load_profile
from prism.errors import ConfigError
from prism.plan import ExecutionPlan, Mode
from prism.spec import load_model_spec
from prism.trace import perfetto, write_trace
from prism.workload import build
from sim.ask import study as grid
from sim.ask.break_even import find_break_even, sensitivity
from sim.ask.point import Point, PointAxis, PointPrediction, outside_of, plan_of, predict
from sim.ask.study_file import load_study
from sim.cli import options, plots
from sim.cli import output as report
from sim.cli.calibrate import calibrate_command, compare_command
from sim.cli.map import map_command
from sim.cli.options import link_of, model_of, points_of, usual_segments
from sim.cli.replay import replay_command
from sim.cli.serve import serve_sim
from sim.engine.backend import SimBackend, identical

app = typer.Typer(
    name="prism-sim",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Predict where a Transformer should run, without the hardware.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(
    "serve-sim",
    epilog="Example: prism-sim serve-sim vit_base_patch16_224 --arrivals poisson:10 --max-batch 8 --mode best",
)(serve_sim)
app.command(
    "map", epilog="Example: prism-sim map vit_base_patch16_224 --profile x86-core --segments 5,10 --output map.json"
)(map_command)
app.command(
    "calibrate",
    epilog="Example: prism-sim calibrate out/calibration --probes probe.jsonl --output pair.json --html pair.html",
)(calibrate_command)
app.command("compare", epilog="Example: prism-sim compare out/held_out --profile pair.json --output report.html")(
    compare_command
)
app.command("replay", epilog="Example: prism-sim replay decisions.jsonl --profile x86-core")(replay_command)
DistributedMode = Annotated[Literal["full", "segment_means"], typer.Option(help="The distributed plan.")]


@app.callback()
def _group() -> None:
    """Predict where a Transformer should run, without the hardware."""


@app.command("predict", epilog="Example: prism-sim predict vit_base_patch16_224 --batch 8 --bandwidth 400Mbps")
def predict_command(
    model: options.Model,
    profile: options.Profile = "orin-nano",
    batch: options.BatchSize = 1,
    devices: options.Devices = 2,
    segments: options.Segments = None,
    wire: options.WireOf = "fp32",
    bandwidth: options.Bandwidth = "400Mbps",
    latency: options.Latency = "0ms",
    jitter: options.Jitter = "0ms",
    loss: options.Loss = "0%",
    rates: options.Rates = "",
    topology: options.Net = "access-point",
    overlap: options.Overlap = None,
    collective: options.Collective = None,
    tokens: options.Tokens = None,
    image_size: options.ImageSize = None,
    draws: options.Draws = 48,
    seed: options.Seed = 0,
    json: options.Json = False,
    output: options.Output = None,
) -> None:
    """Latency, its split and energy of every mode at one point, with a 90 % interval."""
    known, spec = load_profile(profile), model_of(model, tokens, image_size)
    link = link_of(bandwidth, latency, jitter, loss, rates)
    costs = known.draws(draws, seed) if draws else []
    local = Point(model=spec, plan=ExecutionPlan(mode=Mode.LOCAL), batch=batch, link=link, topology=topology, seed=seed)
    todo = points_of(known, local, devices, segments, wire=wire, overlap=overlap, collective=collective)
    cells = [predict(known, point, costs, seed) for point in todo]
    table = report.predictions_table(cells, f"{spec.name}, {spec.tokens} tokens, batch {batch}, profile {known.name}")
    _show(cells, table, json, _outside(cells))
    _save(output, "Prediction", known.name, _outside(cells), plots.split_plot, cells, cells)


@app.command("crossover", epilog="Example: prism-sim crossover vit_base_patch16_224 --over bandwidth --batch 8")
def crossover_command(
    model: options.Model,
    over: Annotated[PointAxis, typer.Option(help="The quantity that varies.")],
    mode: DistributedMode = "segment_means",
    values: Annotated[str, typer.Option(help="Its values, as in 50,100,400; Mbps for bandwidth.")] = "",
    profile: options.Profile = "orin-nano",
    batch: options.BatchSize = 1,
    devices: options.Devices = 2,
    segments: options.Segments = None,
    wire: options.WireOf = "fp32",
    bandwidth: options.Bandwidth = "400Mbps",
    latency: options.Latency = "0ms",
    jitter: options.Jitter = "0ms",
    loss: options.Loss = "0%",
    topology: options.Net = "access-point",
    overlap: options.Overlap = None,
    collective: options.Collective = None,
    tokens: options.Tokens = None,
    image_size: options.ImageSize = None,
    draws: options.Draws = 32,
    seed: options.Seed = 0,
    json: options.Json = False,
    output: options.Output = None,
) -> None:
    """Where the distributed plan becomes as fast as one device: a value with its interval, always, or never."""
    known, spec = load_profile(profile), model_of(model, tokens, image_size)
    plan = plan_of(
        known,
        Mode(mode),
        max(devices, 2),
        segments=usual_segments(spec, max(devices, 2), segments),
        wire=wire,
        overlap=overlap,
        collective=collective,
    )
    link = link_of(bandwidth, latency, jitter, loss)
    point = Point(model=spec, plan=plan, batch=batch, link=link, topology=topology, seed=seed)
    flip = find_break_even(known, point, over, _numbers(values, over), draws, seed)
    whole = {
        "over": flip.over,
        "class": flip.kind,
        "value": flip.value,
        "interval": flip.interval,
        "p_distributed_wins": flip.p_distributed_wins,
        "tag": flip.tag,
        "wins": flip.wins,
        "outside": flip.outside,
        "values": flip.values,
        "local_ms": flip.local_ms,
        "distributed_ms": flip.distributed_ms,
        "plan": flip.plan,
    }
    line = report.flip_line(flip)
    _show(whole, line, json, list(flip.outside))
    rows = [
        {over: value, "local_ms": a, "distributed_ms": b}
        for value, a, b in zip(flip.values, flip.local_ms, flip.distributed_ms, strict=True)
    ]
    _save(output, f"Crossover over {over}", known.name, [line], plots.flip_plot, flip, whole, rows)


@app.command("what-if", epilog="Example: prism-sim what-if study.toml --output study.html")
def what_if(
    study: Annotated[Path, typer.Argument(help="A study (TOML): grid, objective, constraints, inverse questions.")],
    engine: Annotated[Literal["pool", "ray"], typer.Option(help="Processes here, or a Ray cluster.")] = "pool",
    address: Annotated[str | None, typer.Option(help="Of the Ray cluster.")] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Default: one a core.")] = None,
    json: options.Json = False,
    output: options.Output = None,
) -> None:
    """A grid over everything: the best cell, the Pareto front, and questions backwards."""
    asked = load_study(study)
    names = (asked.model,) if isinstance(asked.model, str) else asked.model
    models = [model_of(str(study.parent / n) if n.endswith(".json") and not Path(n).is_file() else n) for n in names]
    run = grid.over_ray(address) if engine == "ray" else grid.over_processes(processes or os.cpu_count() or 1)
    result = grid.solve(asked, models, run)
    lines = report.answers(result)
    front = [result.cells[k] for k in result.front]
    _show(result, report.predictions_table(front, "Pareto front: latency and energy per sample"), json, lines)
    _save(
        output,
        f"Study {study.name}",
        asked.profile,
        lines,
        plots.front_plot,
        result,
        result,
        [plots.row(cell) for cell in result.cells],
        msgspec.json.format(msgspec.json.encode(asked)).decode(),
    )


@app.command("sensitivity", epilog="Example: prism-sim sensitivity vit_base_patch16_224 --batch 8")
def sensitivity_command(
    model: options.Model,
    mode: DistributedMode = "segment_means",
    profile: options.Profile = "orin-nano",
    batch: options.BatchSize = 1,
    devices: options.Devices = 2,
    segments: options.Segments = None,
    wire: options.WireOf = "fp32",
    bandwidth: options.Bandwidth = "400Mbps",
    latency: options.Latency = "0ms",
    tokens: options.Tokens = None,
    image_size: options.ImageSize = None,
    json: options.Json = False,
    output: options.Output = None,
) -> None:
    """Which of the profile's terms the answer hangs on: each moved by its own standard deviation."""
    known, spec = load_profile(profile), model_of(model, tokens, image_size)
    plan = plan_of(
        known, Mode(mode), max(devices, 2), segments=usual_segments(spec, max(devices, 2), segments), wire=wire
    )
    point = Point(model=spec, plan=plan, batch=batch, link=link_of(bandwidth, latency, "0ms", "0%"))
    found = sensitivity(known, point)
    flips = [influence.term for influence in found if influence.flips]
    line = f"the winner hangs on {', '.join(flips)}" if flips else "no term alone changes the winner"
    outside = [f"extrapolated: {reason}" for reason in outside_of(known, point)]
    _show(found, report.sensitivity_table(found), json, [line, *outside])
    rows = [msgspec.structs.asdict(influence) for influence in found]
    _save(output, "Sensitivity", known.name, [line, *outside], lambda _: "", None, found, rows)


@app.command("trace", epilog="Example: prism-sim trace vit_base_patch16_224 --mode full --perfetto run.json")
def trace_command(
    model: options.Model,
    mode: Annotated[Mode, typer.Option(help="The plan.")] = Mode.SEGMENT_MEANS,
    file: Annotated[Path | None, typer.Option("--trace", help="The trace, as JSON lines.")] = None,
    perfetto_file: Annotated[Path | None, typer.Option("--perfetto", help="For ui.perfetto.dev.")] = None,
    batches: Annotated[int, typer.Option(min=1, help="Measured batches.")] = 2,
    profile: options.Profile = "orin-nano",
    batch: options.BatchSize = 1,
    devices: options.Devices = 2,
    segments: options.Segments = None,
    wire: options.WireOf = "fp32",
    bandwidth: options.Bandwidth = "400Mbps",
    latency: options.Latency = "0ms",
    jitter: options.Jitter = "0ms",
    loss: options.Loss = "0%",
    rates: options.Rates = "",
    topology: options.Net = "access-point",
    overlap: options.Overlap = None,
    collective: options.Collective = None,
    tokens: options.Tokens = None,
    image_size: options.ImageSize = None,
    seed: options.Seed = 0,
) -> None:
    """Simulate batches and write their trace: the file that prism-hw show and map read, or a Perfetto one."""
    if file is None and perfetto_file is None:
        raise ConfigError("nothing to write: give --trace FILE or --perfetto FILE")
    known, spec = load_profile(profile), model_of(model, tokens, image_size)
    plan = plan_of(
        known,
        mode,
        devices,
        segments=usual_segments(spec, devices, segments),
        wire=wire,
        overlap=overlap,
        collective=collective,
    )
    link = link_of(bandwidth, latency, jitter, loss, rates)
    for reason in outside_of(known, Point(model=spec, plan=plan, batch=batch, link=link, topology=topology)):
        print(f"extrapolated: {reason}", file=sys.stderr)
    machines = identical(known, known.model(), devices, link, kind=topology)
    trace = SimBackend(machines).run(plan, Workload(model=spec, batch=batch, batches=batches, warmups=1, seed=seed))
    if file is not None:
        write_trace(file, trace.header, trace.records)
    if perfetto_file is not None:
        try:
            perfetto_file.write_bytes(perfetto(trace))
        except OSError as error:
            raise ConfigError(f"{perfetto_file} can't be written ({error}); choose another place") from None


@app.command(epilog="Example: prism-sim workload vit-base.json --devices 2 --segments 10")
def workload(
    spec: Annotated[Path, typer.Argument(help="A model specification (JSON).")],
    devices: options.Devices = 2,
    segments: Annotated[int | None, typer.Option(help="L, means per part; without it full exchange.")] = None,
    batch: options.BatchSize = 1,
) -> None:
    """The work of each device, in GFLOPs, and the bytes that all of them exchange per block."""
    model = load_model_spec(spec)
    mode = Mode.LOCAL if devices == 1 else Mode.SEGMENT_MEANS if segments else Mode.FULL
    graph = build(model, ExecutionPlan(mode=mode, devices=devices, segments=segments), batch)
    gflops = [graph.flops(rank) / 1e9 for rank in range(devices)]
    print(msgspec.json.encode({"gflops": gflops, "block_bytes": graph.block_bytes()}).decode())


def _numbers(text: str, over: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ConfigError(f"values {text!r} are no numbers; write them like 50,100,400") from None
    if values and (len(set(values)) < 2 or not all(0 < value < float("inf") for value in values)):
        raise ConfigError(
            f"values {text!r}: at least two different, finite ones above 0 are needed to cross over {over}"
        )
    if over != "bandwidth" and any(value != int(value) for value in values):
        raise ConfigError(f"values {text!r}: {over} takes whole numbers alone; write them like 1,2,4")
    return values


def _outside(cells: list[PointPrediction]) -> list[str]:
    """Why cells are tagged extrapolated, each reason once."""
    return [f"extrapolated: {line}" for line in dict.fromkeys(line for cell in cells for line in cell.outside)]


def _show(whole: Any, view: Any, json: bool, lines: list[str]) -> None:
    if json:
        print(msgspec.json.encode(whole).decode())
        return
    console = Console()
    console.print(view, soft_wrap=isinstance(view, str))
    for line in lines:
        console.print(line, style="yellow" if line.startswith("extrapolated") else "", soft_wrap=True)


def _save(
    output: Path | None,
    title: str,
    profile: str,
    lines: list[str],
    plot: Any,
    plotted: Any,
    whole: Any,
    rows: list[dict[str, Any]] | None = None,
    config: str = "",
) -> None:
    """The file of --output, if there is one; its plot is drawn for a page only."""
    if output is None:
        return
    rows = [plots.row(cell) for cell in whole] if rows is None else rows
    drawn = plot(plotted) if output.suffix == ".html" else ""
    report.write(output, whole, rows, report.page(title, profile, lines, drawn, rows, config))


def main() -> None:
    """The command's entry point."""
    gc.freeze()  # what was imported is never garbage: collections need not look at it
    command.run(app, "prism-sim")
