"""prism-hw: run, measure and examine on real devices."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from hw.cli import demo, doctor, evaluate, link, serve, sweep
from hw.cli.flags import RUN, Cluster, Config, Json, PerfettoFile
from hw.run.config import RunConfig
from prism.cli import entry, logs
from prism.cli.options import takes
from prism.cli.progress import bar
from prism.config import load_toml, merged
from prism.errors import ConfigError
from prism.files import write_file
from prism.spec import ClusterSpec

if TYPE_CHECKING:
    from hw.run.messages import Outcome

app = typer.Typer(
    name="prism-hw",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for commands in (doctor.app, demo.app, link.app, sweep.app, serve.app, evaluate.app):
    app.add_typer(commands)


@app.callback()
def group(version: entry.Version = False) -> None:
    """Run a Transformer across real devices, and measure where the time goes."""


def main() -> None:
    """Run the command line and exit."""
    entry.run(app, "prism-hw")


@app.command(
    epilog="Example: prism-hw run fashion-vit --devices 2 --mode segment_means --segments 5 --link shaper:100Mbps"
)
@takes(RUN, RunConfig().flat())
def run(
    flags: dict[str, Any],
    config: Config = None,
    cluster: Cluster = None,
    perfetto_file: PerfettoFile = None,
    as_json: Json = False,
    verbose: entry.Verbose = 0,
) -> None:
    """Run a model across devices: predictions, agreement with the local model, and the latency split."""
    logs.configure(verbose)
    resolved = resolve(config, flags)
    with _trace_for(resolved, perfetto_file) as (traced, finish):
        outcome = _execute(traced, cluster, quiet=as_json)
        finish()
    if outcome is None:
        return
    if as_json:
        print(msgspec.json.encode(outcome.flat()).decode())
        return
    from hw.cli import run_tables

    entry.show(run_tables.outcome_view(outcome))


@app.command(epilog="Example: prism-hw worker --cluster cluster.toml --name kitchen")
def worker(
    cluster: Annotated[Path, typer.Option(help="The same cluster.toml as on the first device.")],
    name: Annotated[str, typer.Option(help="This device's name in it.")],
    threads: Annotated[int, typer.Option(help="Threads to compute with.")] = 1,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the first device.")] = 60.0,
    verbose: entry.Verbose = 0,
) -> None:
    """Serve one run of a cluster as one of its devices; the first device says what to run."""
    logs.configure(verbose)
    spec = load_toml(cluster, ClusterSpec)
    rank = spec.rank(name)
    if rank == 0:
        raise ConfigError(f"{name} leads the cluster as its first device; start prism-hw run --cluster there")
    from hw.run import launch

    launch.run_worker(spec, rank, threads, timeout, entry.command_line())


@app.command(epilog="Example: prism-hw show run.jsonl --perfetto run.json")
def show(
    trace: Annotated[Path, typer.Argument(help="A trace file.")],
    perfetto_file: PerfettoFile = None,
    as_json: Json = False,
) -> None:
    """Summarise a trace file; one that was cut short is read as far as it goes."""
    from prism.trace import perfetto, read_trace
    from prism.trace.metrics import summarise

    loaded = read_trace(trace)
    if perfetto_file:
        write_file(perfetto_file, perfetto(loaded))
    summary = summarise(loaded)
    if as_json:
        print(msgspec.json.encode({"header": loaded.header, "summary": summary, "cut": loaded.cut}).decode())
        return
    from hw.cli import run_tables

    entry.show(run_tables.trace_view(loaded, summary))


def resolve(path: Path | None, flags: dict[str, Any]) -> RunConfig:
    """Read the run's configuration: the file, and over it the flags. Raises ConfigError, PlanError."""
    resolved = merged(path, flags, RunConfig)
    resolved.check()
    return resolved


def _execute(config: RunConfig, cluster: Path | None, quiet: bool) -> "Outcome | None":
    """Run on this machine, over a cluster, or as the rank that torchrun's environment names."""
    from hw.run import launch

    if "TORCHELASTIC_RUN_ID" in os.environ or ("RANK" in os.environ and "WORLD_SIZE" in os.environ):
        return launch.run_under_torchrun(config, entry.command_line())
    with bar(quiet) as on_progress:
        if cluster is None:
            return launch.run_local(config, entry.command_line(), on_progress)
        return launch.run_cluster(config, load_toml(cluster, ClusterSpec), entry.command_line(), on_progress)


@contextlib.contextmanager
def _trace_for(config: RunConfig, target: Path | None) -> Iterator[tuple[RunConfig, Callable[[], None]]]:
    """Keep a trace for the time of a run where only the Perfetto file is wanted; yield also what writes that file."""
    from hw.machine.scratch import scratch
    from prism.trace import perfetto, read_trace

    with scratch() as folder:
        if target is not None and config.trace is None:
            config = msgspec.structs.replace(config, trace=str(folder / "trace.jsonl"))

        def finish() -> None:
            if target is not None and config.trace is not None:
                write_file(target, perfetto(read_trace(Path(config.trace))))

        yield config, finish


if __name__ == "__main__":
    main()
