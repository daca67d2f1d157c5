"""prism-hw: run, measure and examine on real devices."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import typer
from rich.console import Console

from hw.cli import evaluate as evaluate_cli
from hw.cli import measure as measure_cli
from hw.cli import serve as serving_cli
from hw.cli.measure import Json
from hw.cli.progress import bar
from hw.machine.scratch import scratch
from hw.run import config as job
from hw.run import launch
from prism.cli import entry as command
from prism.codecs import Wire
from prism.config import convert, load_toml
from prism.errors import ConfigError
from prism.files import write_file
from prism.plan import Mode
from prism.spec import ClusterSpec
from prism.trace import perfetto, read_trace
from prism.trace.metrics import summarise

app = typer.Typer(
    name="prism-hw",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Run a Transformer across real devices, and measure where the time goes.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(measure_cli.app)
app.add_typer(serving_cli.app)
app.add_typer(evaluate_cli.app)


def main() -> None:
    """The command's entry point."""
    command.run(app, "prism-hw")


@app.command(epilog="Example: prism-hw doctor --secure 10.8.0.1")
def doctor(
    secure: Annotated[
        str | None, typer.Option(help="An address: ask instead whether what goes there is hidden from others.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what this machine has and lacks, each with the remedy."""
    from hw.machine import doctor
    from hw.machine import wireguard as security

    checks = doctor.examine() if secure is None else security.examine(secure)
    if as_json:
        print(msgspec.json.encode(checks).decode())
        return
    from hw.cli import run_tables as render

    Console().print(render.doctor_table(checks))


@app.command(
    epilog="Example: prism-hw run fashion-vit --devices 2 --mode segment_means --segments 5 --link shaper:100Mbps"
)
def run(
    model: Annotated[str | None, typer.Argument(help="fashion-vit, a timm or transformers name, or a folder.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file; flags go over it.")] = None,
    images: Annotated[str | None, typer.Option(help="Folder of images, labels in subfolder names.")] = None,
    text: Annotated[str | None, typer.Option(help="File with one text a line.")] = None,
    resize: Annotated[bool | None, typer.Option("--resize", help="Accept images of mixed sizes.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Pad or cut texts to this many tokens.")] = None,
    weights: Annotated[str | None, typer.Option(help='"random", or a .safetensors or .pt file.')] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of random weights.")] = None,
    devices: Annotated[int | None, typer.Option(help="P, the ranks; one core each here.")] = None,
    mode: Annotated[Mode | None, typer.Option(help="Where and how it runs.")] = None,
    segments: Annotated[int | None, typer.Option(help="L, means per part (mode segment_means).")] = None,
    wire: Annotated[Wire | None, typer.Option(help="What crosses the link.")] = None,
    device_weights: Annotated[str | None, typer.Option(help="Relative speeds, as in 2,1.")] = None,
    embed: Annotated[Literal["terminal", "each"] | None, typer.Option(help="Who embeds the input.")] = None,
    collective: Annotated[
        Literal["auto", "mesh", "ring"] | None, typer.Option(help="How a block's rows go round.")
    ] = None,
    overlap: Annotated[bool | None, typer.Option(help="Project the own part while the exchange is under way.")] = None,
    batch: Annotated[int | None, typer.Option(help="Samples per batch.")] = None,
    batches: Annotated[int | None, typer.Option(help="Measured batches; 0 goes once over all inputs.")] = None,
    warmups: Annotated[int | None, typer.Option(help="Batches before the measured ones.")] = None,
    link: Annotated[
        str | None, typer.Option(help="loopback, shaper:RATE[,LATENCY] or testbed:RATE[,LATENCY[,JITTER[,LOSS]]].")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Cores and threads of each rank.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds to wait for a silent peer.")] = None,
    interface: Annotated[
        str | None, typer.Option(help="Network interface; default: the route to the terminal.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port where the ranks meet; default: a free one.")] = None,
    cluster: Annotated[Path | None, typer.Option(help="cluster.toml: run over several machines.")] = None,
    meter: Annotated[
        Literal["auto", "none", "ina3221", "jtop", "rapl"] | None, typer.Option(help="Power sensor to read.")
    ] = None,
    power: Annotated[
        str | None, typer.Option(help="TOML of watts per state, for modelled energy where no sensor is.")
    ] = None,
    trace: Annotated[str | None, typer.Option(help="Write the trace (JSON lines).")] = None,
    perfetto_file: Annotated[Path | None, typer.Option("--perfetto", help="Write Chrome/Perfetto JSON.")] = None,
    as_json: Json = False,
) -> None:
    """Run a model across devices: predictions, agreement with the local model, and the latency split."""
    flags = {
        "model": model,
        "images": images,
        "text": text,
        "resize": resize,
        "tokens": tokens,
        "weights": weights,
        "seed": seed,
        "devices": devices,
        "mode": mode,
        "segments": segments,
        "wire": wire,
        "device_weights": _speeds(device_weights),
        "embed": embed,
        "collective": collective,
        "overlap": overlap,
        "batch": batch,
        "batches": batches,
        "warmups": warmups,
        "link": link,
        "threads": threads,
        "timeout_s": timeout,
        "interface": interface,
        "port": port,
        "meter": meter,
        "power": power,
        "trace": trace,
    }
    resolved = resolve(config, {key: value for key, value in flags.items() if value is not None})
    with _trace_for(resolved, perfetto_file) as (resolved, finish):
        outcome = _execute(resolved, cluster, quiet=as_json)
        finish()
    if outcome is None:
        return
    if as_json:
        print(msgspec.json.encode(outcome).decode())
        return
    from hw.cli import run_tables as render

    Console().print(render.outcome_view(outcome))


@app.command(epilog="Example: prism-hw worker --cluster cluster.toml --name kitchen")
def worker(
    cluster: Annotated[Path, typer.Option(help="The same cluster.toml as on the terminal.")],
    name: Annotated[str, typer.Option(help="This device's name in it.")],
    threads: Annotated[int, typer.Option(help="Threads to compute with.")] = 1,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the terminal.")] = 60.0,
) -> None:
    """Serve one run of a cluster as one of its devices; the terminal says what to run."""
    spec = load_toml(cluster, ClusterSpec)
    rank = spec.rank(name)
    if rank == 0:
        raise ConfigError(f"{name} is the cluster's terminal (its first device); start prism-hw run --cluster there")
    launch.run_worker(spec, rank, threads, timeout, command.command_line())


@app.command(epilog="Example: prism-hw show run.jsonl --perfetto run.json")
def show(
    trace: Annotated[Path, typer.Argument(help="A trace file.")],
    perfetto_file: Annotated[Path | None, typer.Option("--perfetto", help="Write Chrome/Perfetto JSON.")] = None,
    as_json: Json = False,
) -> None:
    """Summarise a trace file; one that was cut short is read as far as it goes."""
    loaded = read_trace(trace)
    if perfetto_file:
        write_file(perfetto_file, perfetto(loaded))
    summary = summarise(loaded)
    if as_json:
        print(msgspec.json.encode({"header": loaded.header, "summary": summary, "cut": loaded.cut}).decode())
        return
    from hw.cli import run_tables as render

    Console().print(render.trace_view(loaded, summary))


@app.command(epilog="Example: prism-hw demo --output out/demo")
def demo(
    output: Annotated[Path, typer.Option(help="Folder of the page, the traces and the figures.")] = Path("out/demo"),
) -> None:
    """The main job on an embedded default: a trained ViT on labelled images, then a ViT-Base for timing."""
    from hw.cli.demo import run_demo

    run_demo(output, command.command_line(), Console(), bar)


def resolve(path: Path | None, flags: dict[str, Any]) -> job.RunConfig:
    """The run's configuration: the file, and over it the flags. Raises ConfigError, PlanError."""
    base = msgspec.to_builtins(load_toml(path, job.RunConfig)) if path else {}
    if isinstance(flags.get("segments"), int) and "mode" not in {**base, **flags}:
        flags["mode"] = Mode.SEGMENT_MEANS.value
    resolved = convert({**base, **flags}, job.RunConfig, str(path) if path else "the flags")
    resolved.check()
    return resolved


def _speeds(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"device weights {text!r} are no numbers; give one a device, as in 2,1") from None


def _execute(config: job.RunConfig, cluster: Path | None, quiet: bool) -> job.Outcome | None:
    """On this machine, over a cluster, or as the rank that torchrun's environment names."""
    if "TORCHELASTIC_RUN_ID" in os.environ or ("RANK" in os.environ and "WORLD_SIZE" in os.environ):
        return launch.run_under_torchrun(config, command.command_line())
    with bar(quiet) as on_progress:
        if cluster is None:
            return launch.run_local(config, command.command_line(), on_progress)
        return launch.run_cluster(config, load_toml(cluster, ClusterSpec), command.command_line(), on_progress)


@contextlib.contextmanager
def _trace_for(config: job.RunConfig, target: Path | None) -> Iterator[tuple[job.RunConfig, Callable[[], None]]]:
    """The configuration, with a passing trace where only the Perfetto file is wanted, and what writes that file."""
    with scratch() as folder:
        if target is not None and config.trace is None:
            config = msgspec.structs.replace(config, trace=str(folder / "trace.jsonl"))

        def finish() -> None:
            if target is not None and config.trace is not None:
                write_file(target, perfetto(read_trace(Path(config.trace))))

        yield config, finish


if __name__ == "__main__":
    main()
