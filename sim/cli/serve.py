"""prism-sim serve-sim: requests that arrive, wait, and are answered."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
import typer
from rich.console import Console

from prism.cost import load_profile
from prism.decide.accuracy import load_accuracy
from prism.decide.policy import FixedPolicy, Policy, PrismPolicy
from prism.decide.table import Objective, Table, table_of
from prism.errors import ConfigError
from prism.perfmap import load_map
from prism.plan import LOCAL, ExecutionPlan, Mode
from prism.spec import ModelSpec
from prism.units import parse_seconds
from sim.ask.point import Point, outside_of, plan_of
from sim.cli import options
from sim.cli import output as report
from sim.cli.options import link_of, map_name, model_of, usual_segments
from sim.engine.backend import Machines, identical
from sim.serving.fleet import Fault
from sim.serving.requests import Batching, parse_arrivals
from sim.serving.scenario import PredictingPolicy, Scenario, simulate_serving


def serve_sim(
    model: options.Model,
    arrivals: Annotated[
        str,
        typer.Option(help="poisson:RATE, server:RATE, single-stream, multi-stream:SAMPLES, offline, trace:FILE.csv"),
    ] = "poisson:5",
    requests: Annotated[int, typer.Option(min=1, max=10_000_000, help="How many.")] = 500,
    max_batch: Annotated[int, typer.Option(min=1, help="Requests that go together at most.")] = 1,
    max_wait: Annotated[str, typer.Option(help="How long the first of a batch waits for others.")] = "0ms",
    mode: Annotated[
        Literal["local", "full", "segment_means", "best"],
        typer.Option(
            help="best: what is predicted to be fastest, or what the policy of prism-hw serve chooses by --map."
        ),
    ] = "best",
    map_file: Annotated[Path | None, typer.Option("--map", help="Performance map that the policy decides by.")] = None,
    accuracy: Annotated[
        Path | None, typer.Option(help="Accuracy table of prism-hw evaluate, for --least-agreement.")
    ] = None,
    least_agreement: Annotated[
        float | None, typer.Option(min=0, max=1, help="With the uncompressed model, of what the policy may choose.")
    ] = None,
    fail: Annotated[list[str] | None, typer.Option(help="A device lost: NUMBER@TIME[,silent], as in 1@2s.")] = None,
    outage: Annotated[list[str] | None, typer.Option(help="The link out: FROM-TO, as in 3s-4s.")] = None,
    timeout: Annotated[str, typer.Option(help="After it a batch without answer has failed.")] = "60s",
    profile: options.Profile = "orin-nano",
    devices: options.Devices = 2,
    segments: options.Segments = None,
    wire: options.WireOf = "fp32",
    bandwidth: options.Bandwidth = "400Mbps",
    latency: options.Latency = "0ms",
    jitter: options.Jitter = "0ms",
    loss: options.Loss = "0%",
    rates: options.Rates = "",
    topology: options.Net = "access-point",
    tokens: options.Tokens = None,
    image_size: options.ImageSize = None,
    seed: options.Seed = 0,
    json: options.Json = False,
    output: options.Output = None,
) -> None:
    """Requests that arrive, wait and are answered: percentiles, throughput, queue, joules per sample."""
    known, spec = load_profile(profile), model_of(model, tokens, image_size)
    machines = identical(known, known.model(), devices, link_of(bandwidth, latency, jitter, loss, rates), kind=topology)
    plans = (
        []
        if devices == 1
        else [
            plan_of(known, m, devices, segments=usual_segments(spec, devices, segments), wire=wire)
            for m in (Mode.FULL, Mode.SEGMENT_MEANS)
        ]
    )
    faults = [*(_lost(text) for text in fail or []), *(_out(text) for text in outage or [])]
    scenario = Scenario(
        model=spec,
        arrivals=parse_arrivals(arrivals, requests),
        batching=Batching(largest=max_batch, patience_s=parse_seconds(max_wait)),
        faults=tuple(faults),
        timeout_s=parse_seconds(timeout),
        seed=seed,
    )
    policy: Policy = PredictingPolicy(machines, spec, plans)
    table = None if map_file is None else _table(map_file, accuracy, map_name(model, spec))
    if mode == "best" and table is not None:
        policy, plans = PrismPolicy(), [plan for plan in table.plans if plan.ranks > 1]
    elif table is not None or accuracy is not None or least_agreement is not None:
        raise ConfigError(
            "--map, --accuracy and --least-agreement are the policy's: leave --mode at best, and give a --map"
        )
    elif mode != "best":
        chosen = [plan for plan in [LOCAL, *plans] if plan.mode.value == mode]
        if not chosen:
            raise ConfigError(f"mode {mode} needs at least 2 devices, there is {devices}; raise --devices")
        policy = FixedPolicy(chosen[0])
    found = msgspec.structs.replace(
        simulate_serving(machines, scenario, policy, table, Objective(least_agreement=least_agreement)),
        outside=_outside(machines, spec, mode, plans, max_batch),
    )
    if json:
        print(msgspec.json.encode(found).decode())
    else:
        Console().print(report.served_table(found))
        for line in found.outside:
            Console().print(f"extrapolated: {line}", style="yellow", soft_wrap=True)
    if output is not None:
        row = msgspec.to_builtins(found)
        lines = [
            f"arrivals {arrivals}, batches of at most {max_batch}, mode {mode}",
            *(f"extrapolated: {line}" for line in found.outside),
        ]
        flat = {k: str(v) if isinstance(v, (dict, list, tuple)) else v for k, v in row.items()}
        report.write(output, found, [flat], report.page("Serving", known.name, lines, "", [flat]))


def _table(map_file: Path, accuracy: Path | None, model: str) -> Table:
    return table_of([load_map(map_file)], model, [] if accuracy is None else [load_accuracy(accuracy)])


def _outside(
    machines: Machines, model: ModelSpec, mode: str, plans: list[ExecutionPlan], max_batch: int
) -> tuple[str, ...]:
    """In what the plans that may run lie outside of the profile's data, each reason once."""
    possible = [LOCAL, *(plan for plan in plans if mode in ("best", plan.mode.value))]
    points = [
        Point(model=model, plan=plan, batch=batch, link=machines.link, topology=machines.kind)
        for plan in possible
        for batch in (1, max_batch)
    ]
    return tuple(dict.fromkeys(line for point in points for line in outside_of(machines.profile, point)))


def _lost(text: str) -> Fault:
    device, _, rest = text.partition("@")
    moment, _, manner = rest.partition(",")
    if not device.isdigit() or not moment or manner not in ("", "silent"):
        raise ConfigError(f"fail {text!r} is unknown; write NUMBER@TIME or NUMBER@TIME,silent, as in 1@2s")
    return Fault(kind="device", device=int(device), at_s=parse_seconds(moment), silent=manner == "silent")


def _out(text: str) -> Fault:
    begin, _, end = text.partition("-")
    start, stop = parse_seconds(begin), parse_seconds(end)
    if stop <= start:
        raise ConfigError(f"outage {text!r} ends before it begins; write FROM-TO, as in 3s-4s")
    return Fault(kind="link", at_s=start, until_s=stop)
