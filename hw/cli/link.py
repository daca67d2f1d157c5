"""prism-hw testbed, link and probe: imitate links, measure them, and time operations."""

import contextlib
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from hw.cli.flags import Cluster, Json
from hw.run.config import RunConfig
from prism.cli import entry
from prism.cli.options import LINK_PANEL, MEASURE_PANEL, OUTPUT_PANEL, option
from prism.cli.progress import bar
from prism.config import load_toml
from prism.errors import ConfigError, ExchangeError
from prism.files import write_file
from prism.link import LinkSpec
from prism.plan import ExecutionPlan, Mode
from prism.spec import ClusterSpec
from prism.trace import Trace, read_trace, write_trace

app = typer.Typer()
EXCHANGES = ("mesh", "ring", "pair", "echo", "bulk")  # probes between ranks


@app.command("testbed", epilog="Example: sudo prism-hw testbed --link testbed:100Mbps,2ms --devices 3")
def stations(
    link: Annotated[
        str, typer.Option(help="testbed:RATE[,LATENCY[,JITTER[,LOSS]]]; RATE may be a .csv of time_s,mbps.")
    ] = "testbed:100Mbps",
    devices: Annotated[int, typer.Option(min=2, max=64, help="Stations around the access point.")] = 2,
    as_json: Json = False,
) -> None:
    """Keep devices as network namespaces around an access point, until Ctrl-C, and say how to enter them."""
    spec = LinkSpec.parse(link)
    if spec.kind != "testbed":
        raise ConfigError(f"link {link!r} is no testbed; write testbed:RATE, as in testbed:100Mbps,2ms")
    from hw.testbed.namespaces import NamespaceTestbed

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with NamespaceTestbed(spec, devices) as bed:
        bed.play()
        rows = [
            {"device": str(number), "address": address, "netns": station.path}
            for number, (address, station) in enumerate(zip(bed.addresses, bed.stations, strict=True))
        ]
        if as_json:
            numbered = [{**row, "device": number} for number, row in enumerate(rows)]
            print(msgspec.json.encode({"link": str(spec), **bed.facts(), "stations": numbered}).decode(), flush=True)
        else:
            _show_stations(rows, f"{spec}, medium {bed.facts()['medium']}")
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)


def _show_stations(rows: Sequence[dict[str, str]], title: str) -> None:
    from rich.table import Table

    table = Table("device", "address", "enter it with", title=title, caption="up until Ctrl-C; nothing is left behind")
    for row in rows:
        table.add_row(row["device"], row["address"], f"nsenter --net={row['netns']} COMMAND")
    entry.show(table)


@app.command("link", epilog="Example: prism-hw link --link testbed:100Mbps,2ms --devices 3 --output link.html")
def measure_links(
    link: Annotated[str, option("loopback, shaper:RATE[,...] or testbed:RATE[,...].", LINK_PANEL)] = "loopback",
    devices: Annotated[int, option("Ranks on this machine.", LINK_PANEL, min=2, max=16)] = 2,
    cluster: Cluster = None,
    budget: Annotated[float, option("Seconds to measure for.", MEASURE_PANEL, min=1, max=600)] = 30.0,
    timeout: Annotated[float, option("Seconds to wait for a silent peer.", LINK_PANEL, min=1)] = 60.0,
    seed: Annotated[int, option("Seed of the order of measurements.", MEASURE_PANEL, min=0)] = 0,
    output: Annotated[Path | None, option("Write the page with plots (HTML).", OUTPUT_PANEL, "--output", "-o")] = None,
    trace: Annotated[Path | None, option("Write every raw measurement (JSON lines).", OUTPUT_PANEL)] = None,
    as_json: Json = False,
) -> None:
    """Measure the links: alpha, beta and break of each pair and collective, round trips idle and loaded, goodput."""
    config = RunConfig(link=link, plan=_between(devices), timeout_s=timeout, seed=seed)
    spec, measured = _site(config, cluster)
    from hw.link import view
    from hw.link.report import LinkConfig
    from hw.machine.scratch import scratch
    from hw.run.launch import measure
    from hw.run.messages import LinkStep

    with scratch() as folder, _status(f"measuring for about {budget:g} s", as_json):
        raw = trace or folder / "probes.jsonl"
        step = LinkStep(config=LinkConfig(budget_s=budget, seed=seed), link=measured, trace=str(raw.resolve()))
        (report,) = measure(config, [step], spec, entry.command_line(), lambda _: None)
        probes = read_trace(raw).probes
    if report is None:
        raise ExchangeError("the ranks measured no link; run again, and see prism-hw doctor")
    if output:
        write_file(output, view.link_page(report, probes).encode())
    if as_json:
        print(msgspec.json.encode(report).decode())
    else:
        entry.show(view.link_view(report))


@app.command(epilog="Example: prism-hw probe --output probe.jsonl --link testbed:400Mbps")
def probe(
    output: Annotated[Path, option("Raw measurements (JSON lines).", OUTPUT_PANEL, "--output", "-o")] = Path(
        "probe.jsonl"
    ),
    link: Annotated[
        str, option("Link of the exchanges: loopback, shaper:... or testbed:....", LINK_PANEL)
    ] = "loopback",
    devices: Annotated[int, option("Ranks on this machine; 1 leaves exchanges out.", LINK_PANEL, min=1, max=16)] = 2,
    cluster: Cluster = None,
    budget: Annotated[
        float, option("Seconds for operations; exchanges take a quarter.", MEASURE_PANEL, min=1, max=600)
    ] = 120.0,
    threads: Annotated[int, option("Threads to compute with.", MEASURE_PANEL, min=1)] = 1,
    timeout: Annotated[float, option("Seconds to wait for a silent peer.", LINK_PANEL, min=1)] = 600.0,
    seed: Annotated[int, option("Seed of values and order.", MEASURE_PANEL, min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Time operations of many shapes, copies, codecs and exchanges: raw material for models nobody ran."""
    config = RunConfig(link=link, plan=_between(devices), timeout_s=timeout, threads=threads, seed=seed)
    spec, measured = _site(config, cluster)
    traces = _probed(config, spec, measured, budget, as_json)
    probes = [record for trace in traces for record in trace.probes]
    write_trace(output, traces[0].header, probes)
    counts = Counter(record.op for record in probes if not record.warmup)
    shapes = {(record.op, record.shape, record.codec) for record in probes if record.op not in EXCHANGES}
    if as_json:
        print(msgspec.json.encode({"output": str(output), "probes": counts, "operation_cells": len(shapes)}).decode())
        return
    from rich.table import Table

    title = f"{len(shapes)} shapes of operations, one thread each: {threads}"
    table = Table("operation", "timed repeats", title=title, caption=f"raw measurements in {output}")
    for op, count in counts.items():
        table.add_row(op, str(count))
    entry.show(table)


def _probed(config: RunConfig, spec: ClusterSpec | None, link: str, budget_s: float, quiet: bool) -> list[Trace]:
    """Time the operations and, between several ranks, the exchanges: a trace each."""
    from hw.link.report import LinkConfig
    from hw.machine.scratch import scratch
    from hw.probe.cells import ProbeConfig
    from hw.run.launch import measure
    from hw.run.messages import LinkStep, ProbeStep

    operations = ProbeConfig(budget_s=budget_s, threads=config.threads, seed=config.seed)
    exchanges = LinkConfig(budget_s=max(1.0, budget_s / 4), seed=config.seed)
    with scratch() as folder, bar(quiet, "measurements") as on_progress:
        parts = [folder / "operations.jsonl", folder / "exchanges.jsonl"]
        steps: list[LinkStep | ProbeStep] = [ProbeStep(config=operations, link=link, trace=str(parts[0]))]
        if config.plan.devices > 1 or spec:
            steps.append(LinkStep(config=exchanges, link=link, trace=str(parts[1])))
        measure(config, steps, spec, entry.command_line(), on_progress)
        return [read_trace(part) for part in parts if part.exists()]


def _between(devices: int) -> ExecutionPlan:
    return ExecutionPlan(mode=Mode.FULL, devices=devices)


def _site(config: RunConfig, cluster: Path | None) -> tuple[ClusterSpec | None, str]:
    """Read the cluster, where there is one, and name the link in full. Raises ConfigError."""
    named = str(config.link_spec())
    if cluster is None:
        return None, named
    from hw.run.launch import network

    return load_toml(cluster, ClusterSpec), network(config.link)


@contextlib.contextmanager
def _status(text: str, quiet: bool) -> Iterator[None]:
    from rich.console import Console

    with contextlib.nullcontext() if quiet else Console(stderr=True).status(text):
        yield
