"""What the commands of prism-sim share: flags, and what is made of them."""

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import typer

from prism.cost import CalibratedProfile
from prism.errors import ConfigError
from prism.link import LinkSpec
from prism.partition import segments_for_rate
from prism.plan import Mode, Wire
from prism.spec import ModelSpec, load_model_spec
from prism.units import parse_rate, parse_seconds, parse_share
from sim.ask.point import Point, plan_of, with_tokens
from sim.engine.topology import Topology

USUAL_RATE = 9.9  # the published compression rate

Model = Annotated[str, typer.Argument(help="A timm or transformers name, a local folder, or a spec file (.json).")]
Profile = Annotated[str, typer.Option(help="A built-in profile (orin-nano, x86-core), or a calibrated one (.json).")]
BatchSize = Annotated[int, typer.Option(min=1, help="Samples per batch.")]
Devices = Annotated[int, typer.Option(min=1, max=64, help="P, the devices.")]
Segments = Annotated[int | None, typer.Option(min=1, help="L, means per part; default: about 10 times fewer rows.")]
Bandwidth = Annotated[str, typer.Option(help="Nominal rate of the link, as in 400Mbps.")]
Latency = Annotated[str, typer.Option(help="Added to every message, as in 2ms.")]
Jitter = Annotated[str, typer.Option(help="Standard deviation of the latency.")]
Loss = Annotated[str, typer.Option(help="Share of frames that are sent again, as in 1%.")]
Rates = Annotated[str, typer.Option(help="A CSV file (time_s,mbps) that drives the rate instead.")]
Net = Annotated[Topology, typer.Option(help="Shared WiFi air, a switch, or cables from device to device.")]
WireOf = Annotated[Wire, typer.Option(help="What a value is sent as.")]
Overlap = Annotated[
    bool | None, typer.Option("--overlap/--no-overlap", help="Default: as the profile's data were taken.")
]
Collective = Annotated[
    Literal["auto", "mesh", "ring"] | None, typer.Option(help="Default: as the profile's data were taken.")
]
Tokens = Annotated[int | None, typer.Option(min=1, help="N, instead of the model's own.")]
ImageSize = Annotated[int | None, typer.Option(min=1, help="Pixels of a square image's side, for a ViT.")]
Draws = Annotated[int, typer.Option(min=0, max=1000, help="Draws of the profile's terms, for intervals.")]
Seed = Annotated[int, typer.Option(min=0, help="Of jitter, loss, arrivals and draws.")]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Also a file: .json, .csv, .parquet or .html.")]


def model_of(name: str, tokens: int | None = None, image_size: int | None = None) -> ModelSpec:
    """A model's shape. A spec file needs no torch; a name or a folder does, and no weights. Raises ConfigError,
    InputError."""
    if name.endswith(".json"):
        spec = load_model_spec(Path(name))
    else:
        from importlib import import_module  # torch is imported only for a name

        spec = import_module("prism.nn.zoo").describe(name)
    if image_size is not None:
        spec = msgspec.structs.replace(spec, tokens=_image_tokens(spec, image_size))
    if tokens is not None:
        spec = with_tokens(spec, tokens)
    return spec


def map_name(model: str, spec: ModelSpec) -> str:
    """What measured maps and accuracy tables call a model: as it was given, where that is no spec file."""
    return spec.name if model.endswith(".json") else model


def _image_tokens(spec: ModelSpec, size: int) -> int:
    patch = round((spec.patch_values / 3) ** 0.5)
    if not patch or 3 * patch * patch != spec.patch_values:
        raise ConfigError(f"image size {size}: {spec.name} has no patches of three colours; use --tokens")
    if size % patch:
        raise ConfigError(f"image size {size} is no multiple of the patch, {patch}; use {size - size % patch or patch}")
    return spec.prefix_tokens + (size // patch) ** 2


def link_of(bandwidth: str, latency: str, jitter: str, loss: str, rates: str = "") -> LinkSpec:
    return LinkSpec(
        kind="testbed",
        rate_bps=None if rates else parse_rate(bandwidth),
        rates=rates,
        latency_s=parse_seconds(latency),
        jitter_s=parse_seconds(jitter),
        loss=parse_share(loss),
    )


def usual_segments(model: ModelSpec, devices: int, segments: int | None) -> int:
    return segments or segments_for_rate(model.tokens, devices, USUAL_RATE)


def points_of(
    profile: CalibratedProfile, local: Point, devices: int, segments: int | None, **fields: Any
) -> list[Point]:
    """List local, full exchange and segment means at one point; local alone for one device. fields: of the plans."""
    if devices == 1:
        return [local]
    fields["segments"] = usual_segments(local.model, devices, segments)
    plans = [plan_of(profile, mode, devices, **fields) for mode in (Mode.FULL, Mode.SEGMENT_MEANS)]
    return [local, *(msgspec.structs.replace(local, plan=plan) for plan in plans)]
