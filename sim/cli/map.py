"""prism-sim map: a performance map of a model that nobody measured, in the format of measured ones."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
from rich.console import Console
from rich.progress import track

from prism.cli.entry import command_line
from prism.cli.option_groups import OptionGroup
from prism.cli.options import option
from prism.codecs import WIRES, Wire
from prism.cost import CalibratedProfile, load_profile
from prism.errors import ConfigError
from prism.files import write_file
from prism.link import LinkSpec
from prism.perfmap import PerformanceMap, build_map
from prism.perfmap.pooling import TraceFile, TraceSet
from prism.plan import LOCAL, Choices, ExecutionPlan, Mode, combinations
from prism.spec import ModelSpec
from prism.units import parse_rate
from sim.ask.memory_limit import memory_limit, that_fit
from sim.ask.point import Point, as_taken, outside_of, simulated
from sim.cli import options
from sim.cli.options import OUTPUT, whole_numbers

MODES = [mode for mode in Mode if mode is not Mode.LOCAL]
CELLS = "Cells"  # a panel of --help
Name = TypeVar("Name", Mode, Wire)


class CellOptions(OptionGroup, frozen=True, kw_only=True):
    """Which cells the map has: all combinations."""

    batches: Annotated[str, option("Samples per batch, as in 1,2,4,8.", CELLS)] = "1,2,4,8"
    bandwidths: Annotated[str, option("Rates of the medium.", CELLS)] = "50Mbps,100Mbps,200Mbps,400Mbps,1Gbps"
    devices: Annotated[str, option("Numbers of devices, as in 2,3.", CELLS)] = "2"
    modes: Annotated[str, option("As in full,segment_means,first_and_means.", CELLS)] = "full,segment_means"
    segments: Annotated[str, option("Means per part, as in 5,10,20.", CELLS)] = "10"
    wires: Annotated[str, option(f"Of {', '.join(WIRES)}.", CELLS)] = "fp32"
    replicas: Annotated[str, option("Groups that share the batch, as in 2,4.", CELLS)] = ""
    stages: Annotated[str, option("Groups that share the blocks, as in 2,4.", CELLS)] = ""
    microbatches: Annotated[str, option("Samples computed together there, as in 1,2.", CELLS)] = ""

    def plans(self, profile: CalibratedProfile, model: ModelSpec) -> tuple[list[ExecutionPlan], list[str]]:
        """Make local and every distributed plan, and a line for each combination that the model can't run."""
        counts = {
            name: tuple(whole_numbers(name, text)) if (text := getattr(self, name)) else ()
            for name in ("devices", "segments", "replicas", "stages", "microbatches")
        }
        wires, modes = tuple(_named("wire", self.wires, WIRES)), tuple(_named("mode", self.modes, MODES))
        fitting, misfits = combinations(model.tokens, Choices(modes=modes, wires=wires, **counts))
        return [LOCAL, *(as_taken(profile, plan) for plan in fitting)], misfits

    def points(self, model: ModelSpec, plans: Sequence[ExecutionPlan], seed: int) -> list[Point]:
        """Place every plan at every batch and rate; a local plan has no rate. Raises ConfigError."""
        rates = [parse_rate(text.strip()) for text in self.bandwidths.split(",")]
        return [
            Point(model=model, plan=plan, batch=batch, link=LinkSpec(kind="testbed", rate_bps=rate), seed=seed)
            for plan, batch in itertools.product(plans, whole_numbers("batches", self.batches))
            if plan.least_batch <= batch
            for rate in (rates if plan.ranks > 1 else rates[:1])
        ]


def map_command(
    model: options.ModelOptions,
    cells: CellOptions,
    output: Annotated[Path, option("The map (JSON), for prism-hw serve and evaluate.", OUTPUT, "--output", "-o")],
    html: Annotated[Path | None, option("Write the page with heat maps.", OUTPUT, "--html")] = None,
    profile: options.Profile = "orin-nano",
    memory: options.Memory = None,
    seed: options.Seed = 0,
) -> None:
    """Simulate a whole performance map: every plan, batch and rate, each cell marked as simulated."""
    costs, spec = load_profile(profile), model.spec()
    spec = msgspec.structs.replace(spec, name=options.map_name(model.model, spec))
    plans, misfits = cells.plans(costs, spec)
    points, too_large = that_fit(cells.points(spec, plans, seed), memory_limit(memory, costs))
    console = Console(stderr=True)
    simulated_map = _simulated_map(costs, points, console)
    simulated_map.save(output)
    if html:
        from prism.report.map_page import map_page

        write_file(html, map_page(simulated_map).encode())
    outside = Counter(reason for point in points for reason in outside_of(costs, point))
    for line in (*(f"left out: {text}" for text in (*misfits, *too_large)), *_extrapolated(outside)):
        console.print(line, style="yellow", soft_wrap=True)
    Console().print(f"{len(points)} cells, simulated with profile {costs.name}: {output}")


def _simulated_map(profile: CalibratedProfile, points: Sequence[Point], console: Console) -> PerformanceMap:
    """Simulate every point, with a bar of progress, and build the map as of measured traces."""
    tracked = track(points, description="cells", console=console, transient=True)
    files = [_simulated_file(profile, point, number) for number, point in enumerate(tracked)]
    return build_map(TraceSet(files=tuple(files)), command=command_line())


def _simulated_file(profile: CalibratedProfile, point: Point, number: int) -> TraceFile:
    """Simulate a point, and name its trace as if it were a file."""
    trace = simulated(profile, profile.model(), point)
    digest = hashlib.blake2b(msgspec.json.encode(trace.header) + msgspec.json.encode(trace.records), digest_size=8)
    return TraceFile(name=f"simulated-{number}", digest=digest.hexdigest(), trace=trace)


def _extrapolated(outside: Counter[str]) -> list[str]:
    """Write a line for each quantity that lies outside of the profile's data, with one of its values."""
    by_name: dict[str, list[str]] = {}
    for reason in outside:
        by_name.setdefault(reason.partition(" ")[0], []).append(reason)
    return [
        f"extrapolated: {reasons[0]}{', as are others' if len(reasons) > 1 else ''}, "
        f"in {sum(outside[reason] for reason in reasons)} cells"
        for reasons in by_name.values()
    ]


def _named(what: str, text: str, choices: Sequence[Name]) -> list[Name]:
    """Parse names of these choices. Raises ConfigError."""
    names = {str(getattr(choice, "value", choice)): choice for choice in choices}
    for name in text.split(","):
        if name not in names:
            raise ConfigError(f"{what} {name!r} is unknown; use {', '.join(names)}")
    return [names[name] for name in text.split(",")]
