"""prism-sim map: a performance map of a model that nobody measured, in the format of measured ones."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import typer
from rich.console import Console
from rich.progress import track

from prism.cli.entry import command_line
from prism.codecs import WIRES, Wire
from prism.cost import load_profile
from prism.errors import ConfigError
from prism.link import LinkSpec
from prism.perfmap import build_map
from prism.perfmap.pooling import TraceFile, TraceSet
from prism.plan import LOCAL, Mode, combinations
from prism.units import parse_rate
from sim.ask.point import Point, outside_of, plan_of, simulated
from sim.cli import options
from sim.cli.options import map_name, model_of

MODES = [mode for mode in Mode if mode is not Mode.LOCAL]
Name = TypeVar("Name", Mode, Wire)


def map_command(
    model: options.Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="The map (JSON), for prism-hw serve and evaluate.")],
    batches: Annotated[str, typer.Option(help="Samples per batch, as in 1,2,4,8.")] = "1,2,4,8",
    bandwidths: Annotated[str, typer.Option(help="Rates of the medium.")] = "50Mbps,100Mbps,200Mbps,400Mbps,1Gbps",
    devices: Annotated[str, typer.Option(help="Numbers of devices, as in 2,3.")] = "2",
    modes: Annotated[str, typer.Option(help="As in full,segment_means,first_and_means.")] = "full,segment_means",
    segments: Annotated[str, typer.Option(help="Means per part, as in 5,10,20.")] = "10",
    wires: Annotated[str, typer.Option(help=f"Of {', '.join(WIRES)}.")] = "fp32",
    profile: options.Profile = "orin-nano",
    tokens: options.Tokens = None,
    image_size: options.ImageSize = None,
    seed: options.Seed = 0,
) -> None:
    """Simulate a whole performance map: every plan, batch and rate, each cell marked as simulated."""
    known = load_profile(profile)
    spec = model_of(model, tokens, image_size)
    spec = msgspec.structs.replace(spec, name=map_name(model, spec))
    rates = [parse_rate(text.strip()) for text in bandwidths.split(",")]
    sizes = _numbers("batches", batches)
    found, misfits = combinations(
        spec.tokens,
        _numbers("devices", devices),
        _named("wire", wires, WIRES),
        _named("mode", modes, MODES),
        _numbers("segments", segments),
    )
    plans = [plan_of(known, plan.mode, plan.ranks, segments=plan.segments, wire=plan.wire) for plan in found]
    cells = [
        (plan, batch, rate)
        for plan, batch in itertools.product([LOCAL, *plans], sizes)
        for rate in (rates if plan.ranks > 1 else rates[:1])
    ]
    console = Console(stderr=True)
    files: list[TraceFile] = []
    outside: Counter[str] = Counter()
    for plan, batch, rate in track(cells, description="cells", console=console, transient=True):
        point = Point(model=spec, plan=plan, batch=batch, link=LinkSpec(kind="testbed", rate_bps=rate), seed=seed)
        trace = simulated(known, known.model(), point)
        digest = hashlib.blake2b(msgspec.json.encode(trace.header) + msgspec.json.encode(trace.records), digest_size=8)
        files.append(TraceFile(name=f"simulated-{len(files)}", digest=digest.hexdigest(), trace=trace))
        outside.update(outside_of(known, point))
    build_map(TraceSet(files=tuple(files)), command=command_line()).save(output)
    for line in (*(f"left out: {text}" for text in misfits), *_extrapolated(outside)):
        console.print(line, style="yellow", soft_wrap=True)
    Console().print(f"{len(cells)} cells, simulated with profile {known.name}: {output}")


def _extrapolated(outside: Counter[str]) -> list[str]:
    """A line for each quantity that lies outside of the profile's data, with one of its values."""
    by_name: dict[str, list[str]] = {}
    for text in outside:
        by_name.setdefault(text.partition(" ")[0], []).append(text)
    return [
        f"extrapolated: {texts[0]}{', as are others' if len(texts) > 1 else ''}, in {sum(outside[t] for t in texts)} cells"
        for texts in by_name.values()
    ]


def _named(what: str, text: str, known: Sequence[Name]) -> list[Name]:
    """Raises ConfigError for a name that none of these has."""
    names = [str(getattr(each, "value", each)) for each in known]
    for name in text.split(","):
        if name not in names:
            raise ConfigError(f"{what} {name!r} is unknown; use {', '.join(names)}")
    return [known[names.index(name)] for name in text.split(",")]


def _numbers(flag: str, text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise ConfigError(f"{flag} {text!r} are no whole numbers from 1 on; write them like 1,2,4")
    return found
