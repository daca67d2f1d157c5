"""The options that commands of prism-sim share, in groups, and what each group stands for: a model, a plan, a link."""

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import typer

from prism.cli.option_groups import OptionGroup
from prism.cli.options import option
from prism.codecs import Wire
from prism.cost import CalibratedProfile
from prism.errors import ConfigError
from prism.link import LinkSpec
from prism.partition import segments_for_rate
from prism.plan import LOCAL, Collective, ExecutionPlan, Mode
from prism.spec import ModelSpec, load_model_spec
from prism.units import parse_rate, parse_seconds, parse_share
from sim.ask.point import Groups, with_tokens
from sim.engine.topology import Topology

USUAL_RATE = 9.9  # the published compression rate
MODEL, PLAN, LINK, OUTPUT = "Model", "Plan", "Link", "Output"  # panels of --help


Model = Annotated[str, typer.Argument(help="A timm or transformers name, a local folder, or a spec file (.json).")]
Tokens = Annotated[int | None, option("N, instead of the model's own.", MODEL, min=1)]
ImageSize = Annotated[int | None, option("Pixels of a square image's side, for a ViT.", MODEL, min=1)]
Profile = Annotated[str, option("A built-in profile (orin-nano, x86-core), or a calibrated one (.json).")]
BatchSize = Annotated[int, option("Samples per batch.", min=1)]
Draws = Annotated[int, option("Draws of the profile's terms, for intervals.", min=0, max=1000)]
Seed = Annotated[int, option("Of jitter, loss, arrivals and draws.", min=0)]
Json = Annotated[bool, option("JSON on stdout.", OUTPUT, "--json")]
Output = Annotated[Path | None, option("Also a file: .json, .csv, .parquet or .html.", OUTPUT, "--output", "-o")]
Devices = Annotated[int, option("P, the devices.", PLAN, min=1, max=64)]
Segments = Annotated[int | None, option("L, means per part; default: about 10 times fewer rows.", PLAN, min=1)]
WireOf = Annotated[Wire, option("The codec that values are sent in.", PLAN)]
Overlap = Annotated[bool | None, option("Default: as the profile's data were taken.", PLAN, "--overlap/--no-overlap")]
CollectiveOf = Annotated[Collective | None, option("Default: as the profile's data were taken.", PLAN)]
Way = Literal["full", "segment_means", "replicas", "stages"]
DistributedMode = Annotated[Way, option("The distributed plan.", PLAN)]
Against = Annotated[
    Literal["local", "full", "segment_means", "replicas", "stages"],
    option("The plan that it is compared with, on as many devices.", PLAN),
]
Replicas = Annotated[int, option("Groups of devices that share the batch.", PLAN, min=1, max=64)]
Stages = Annotated[int, option("Groups of devices that share the blocks.", PLAN, min=1, max=64)]
Parts = Annotated[int | None, option("Devices that share the tokens; --devices doesn't count then.", PLAN, min=1)]
Microbatch = Annotated[int | None, option("Samples computed together before their answer leaves.", PLAN, min=1)]
Memory = Annotated[str | None, option("Of each device, as in 8GB; plans that need more are left out.", PLAN)]
Bandwidth = Annotated[str, option("Nominal rate of the link, as in 400Mbps.", LINK)]
Latency = Annotated[str, option("Added to every message, as in 2ms.", LINK)]
Jitter = Annotated[str, option("Standard deviation of the latency.", LINK)]
Loss = Annotated[str, option("Share of frames that are sent again, as in 1%.", LINK)]
Rates = Annotated[str, option("A CSV file (time_s,mbps) that drives the rate instead.", LINK)]
Net = Annotated[Topology, option("Shared WiFi air, a switch, or cables from device to device.", LINK)]


class ModelOptions(OptionGroup, frozen=True, kw_only=True):
    """A model and its size."""

    model: Model
    tokens: Tokens = None
    image_size: ImageSize = None

    def spec(self) -> ModelSpec:
        """Find the model's shape. Raises ConfigError, InputError."""
        return model_of(self.model, self.tokens, self.image_size)


class PlanOptions(OptionGroup, frozen=True, kw_only=True):
    """A distributed plan but for its mode, with the profile's habits of exchanging."""

    devices: Devices = 2
    segments: Segments = None
    wire: WireOf = "fp32"
    replicas: Replicas = 1
    stages: Stages = 1
    parts: Parts = None
    microbatch: Microbatch = None

    @property
    def count(self) -> int:
        """Count the devices in all, as many as the replicas and stages need or more."""
        groups = self.replicas * self.stages
        return groups * self.parts if self.parts else max(self.devices, groups)

    def plan(self, profile: CalibratedProfile, model: ModelSpec, mode: Mode, least: int = 1) -> ExecutionPlan:
        """Make the plan of this mode, for `least` devices or more; parts are what replicas and stages leave of them."""
        groups = Groups(self.replicas, self.stages, self.microbatch)
        devices = groups.size if mode is Mode.LOCAL else max(self.count, least)
        segments = self.segments or segments_for_rate(model.tokens, max(1, devices // groups.size), USUAL_RATE)
        return groups.plan(profile, mode, devices, segments=segments, wire=self.wire, **self.habits())

    def way(self, profile: CalibratedProfile, model: ModelSpec, way: str) -> ExecutionPlan:
        """Make the plan of a mode or, by their names, that of as many replicas or stages as there are devices."""
        devices = max(self.count, 2)
        if way in ("replicas", "stages"):
            groups = Groups(microbatch=self.microbatch)._replace(**{way: devices})
            return groups.plan(profile, Mode.LOCAL, devices, wire=self.wire)
        return LOCAL if way == Mode.LOCAL.value else self.plan(profile, model, Mode(way), least=2)

    def habits(self) -> dict[str, Any]:
        """What of the profile's habits was overridden; None where it wasn't."""
        return {}


class ExchangeOptions(PlanOptions, frozen=True, kw_only=True):
    """A distributed plan but for its mode, and how it exchanges."""

    overlap: Overlap = None
    collective: CollectiveOf = None

    def habits(self) -> dict[str, Any]:
        """Return what overrides the habits of the profile."""
        return {"overlap": self.overlap, "collective": self.collective}


class SteadyLinkOptions(OptionGroup, frozen=True, kw_only=True):
    """A link of one rate and latency."""

    bandwidth: Bandwidth = "400Mbps"
    latency: Latency = "0ms"

    def spec(self) -> LinkSpec:
        """Parse the link. Raises ConfigError."""
        return LinkSpec(kind="testbed", rate_bps=parse_rate(self.bandwidth), latency_s=parse_seconds(self.latency))


class LinkOptions(SteadyLinkOptions, frozen=True, kw_only=True):
    """A link with jitter and loss, in a topology."""

    jitter: Jitter = "0ms"
    loss: Loss = "0%"
    topology: Net = "access-point"

    def spec(self) -> LinkSpec:
        """Return the link that the options describe."""
        steady = super().spec()
        return msgspec.structs.replace(steady, jitter_s=parse_seconds(self.jitter), loss=parse_share(self.loss))


class VaryingLinkOptions(LinkOptions, frozen=True, kw_only=True):
    """A link whose rate a file may drive."""

    rates: Rates = ""

    def spec(self) -> LinkSpec:
        """Return the link that the options describe."""
        link = super().spec()
        return msgspec.structs.replace(link, rates=self.rates, rate_bps=None) if self.rates else link


class OutputOptions(OptionGroup, frozen=True, kw_only=True):
    """Where an answer goes beside the console."""

    json: Json = False
    output: Output = None


def model_of(name: str, tokens: int | None = None, image_size: int | None = None) -> ModelSpec:
    """Find a model's shape. A spec file needs no torch; a name or a folder does, and no weights.

    Raises ConfigError, InputError.
    """
    if name.endswith(".json"):
        spec = load_model_spec(Path(name))
    else:
        from prism.nn.zoo import describe  # here: only a name needs torch

        spec = describe(name)
    if image_size is not None:
        spec = msgspec.structs.replace(spec, tokens=_image_tokens(spec, image_size))
    return spec if tokens is None else with_tokens(spec, tokens)


def _image_tokens(spec: ModelSpec, size: int) -> int:
    patch = round((spec.patch_values / 3) ** 0.5)
    if not patch or 3 * patch * patch != spec.patch_values:
        raise ConfigError(f"image size {size}: {spec.name} has no patches of three colours; use --tokens")
    if size % patch:
        raise ConfigError(f"image size {size} is no multiple of the patch, {patch}; use {size - size % patch or patch}")
    return spec.prefix_tokens + (size // patch) ** 2


def map_name(model: str, spec: ModelSpec) -> str:
    """Name a model as measured maps and accuracy tables do: as it was given, where that is no spec file."""
    return spec.name if model.endswith(".json") else model


def whole_numbers(flag: str, text: str) -> list[int]:
    """Parse whole numbers from 1 on, as in 1,2,4. Raises ConfigError."""
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or min(values) < 1:
        raise ConfigError(f"{flag} {text!r} are no whole numbers from 1 on; write them like 1,2,4")
    return values
