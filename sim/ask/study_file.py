"""Read a study: the TOML file of `prism-sim what-if`, checked before anything runs."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from prism.codecs import Wire
from prism.config import Positive, PositiveNumber, load_toml
from prism.cost import load_profile
from prism.errors import ConfigError
from prism.partition import compression_rate
from prism.plan import Collective, Mode
from prism.units import parse_bytes
from sim.ask.point import PointPrediction
from sim.engine.topology import Edge, Topology, graph_of

NEEDED = ("mode", "batch", "devices", "replicas", "stages", "segments", "wire", "topology", "split")
NEEDED_OF_LINK = ("bandwidth", "latency", "jitter", "loss")
StudyObjective = Literal["latency", "energy"]


class StudyGrid(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The grid: every combination of these values.

    replicas, stages: their products that divide the devices, with as many parts as that leaves: in mode local where it
    leaves one, in the other modes where it leaves more. segments counts in modes that average alone; of local only
    model, tokens and batch count. split: evenly or by the study's speeds.
    """

    mode: tuple[Mode, ...] = (Mode.LOCAL, Mode.FULL, Mode.SEGMENT_MEANS)
    batch: tuple[Positive, ...] = (1,)
    devices: tuple[Positive, ...] = (2,)
    replicas: tuple[Positive, ...] = (1,)
    stages: tuple[Positive, ...] = (1,)
    microbatch: tuple[Positive, ...] = ()
    segments: tuple[Positive, ...] = (10,)
    wire: tuple[Wire, ...] = ("fp32",)
    tokens: tuple[Positive, ...] = ()
    bandwidth: tuple[str, ...] = ("400Mbps",)
    latency: tuple[str, ...] = ("0ms",)
    jitter: tuple[str, ...] = ("0ms",)
    loss: tuple[str, ...] = ("0%",)
    topology: tuple[Topology, ...] = ("access-point",)
    split: tuple[Literal["even", "speed"], ...] = ("even",)
    overlap: tuple[bool, ...] = ()
    collective: tuple[Collective, ...] = ()


class Constraints(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of an answer. max_compression: CR = N / (L P) of segment means, as a stand-in for accuracy."""

    max_latency_ms: PositiveNumber | None = None
    max_energy_j: PositiveNumber | None = None
    min_samples_per_s: PositiveNumber | None = None
    max_compression: PositiveNumber | None = None

    def conflict(self, cells: Sequence[PointPrediction]) -> str:
        """Say which of the limits no cell keeps, or that they can't be kept together."""
        given = {name: value for name, value in msgspec.structs.asdict(self).items() if value is not None}
        alone = [
            f"{name} {value:g}"
            for name, value in given.items()
            if not any(Constraints(**{name: value}).holds(cell) for cell in cells)
        ]
        if alone:
            return f"no cell keeps {' or '.join(alone)}: loosen it, or widen the grid"
        return f"each of {', '.join(given)} is kept by some cell, all by none: loosen one, or widen the grid"

    def holds(self, cell: PointPrediction) -> bool:
        """Say whether a cell keeps all limits."""
        joules = math.inf if cell.energy_j is None else cell.energy_j
        limits = (
            (cell.latency_ms, self.max_latency_ms),
            (joules, self.max_energy_j),
            (compression(cell), self.max_compression),
        )
        slow = self.min_samples_per_s is not None and cell.samples_per_s < self.min_samples_per_s
        return not slow and all(limit is None or value <= limit for value, limit in limits)


class Inverse(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An inverse question: the least bandwidth, the fewest devices or the largest L that keeps a latency.

    The fewest devices of replicas or stages alone are that many replicas or stages.
    """

    find: Literal["least_bandwidth", "fewest_devices", "largest_segments"]
    max_latency_ms: PositiveNumber
    mode: Mode = Mode.SEGMENT_MEANS
    batch: Positive = 1
    devices: Positive = 2
    replicas: Positive = 1
    stages: Positive = 1
    segments: Positive = 10
    bandwidth: str = "400Mbps"


class Study(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A TOML file for `prism-sim what-if`.

    draws: for intervals, 0 for none. links: a custom topology, in place of the grid's topology, bandwidth and latency.
    speeds: of each device relative to the profile's, the leader first, as in [1, 0.5] for a second one half as fast;
    empty: all are like the profile's. memory: of each device, as in "8GB", or the profile's; plans that are
    predicted to need more are left out.
    """

    model: str | tuple[str, ...]
    profile: str = "orin-nano"
    objective: StudyObjective = "latency"
    draws: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    seed: int = 0
    grid: StudyGrid = StudyGrid()
    constraints: Constraints = Constraints()
    inverse: tuple[Inverse, ...] = ()
    links: tuple[Edge, ...] = ()
    speeds: tuple[PositiveNumber, ...] = ()
    memory: str | None = None


def load_study(path: Path) -> Study:
    """Read and check a study.

    Raises ConfigError for unknown keys (with the nearest one), bad values, an empty grid, or limits that nothing keeps.
    """
    study = load_toml(path, Study)
    for name in (*NEEDED, *NEEDED_OF_LINK):
        if not getattr(study.grid, name):
            raise ConfigError(f"{path}: grid.{name} is empty, so there is no cell; give it at least one value")
    if not study.model:
        raise ConfigError(f"{path}: model is empty; name at least one")
    if study.memory is not None:
        parse_bytes(study.memory)
    limits = study.constraints
    if limits.max_compression is not None and limits.max_compression < 1:
        raise ConfigError(f"{path}: max_compression {limits.max_compression:g} is below 1, which no plan has; raise it")
    if (study.objective == "energy" or limits.max_energy_j) and load_profile(study.profile).power is None:
        raise ConfigError(f"{path}: energy is asked for, but profile {study.profile} declares no power; use latency")
    most = max(study.grid.devices)
    if (study.speeds or "speed" in study.grid.split) and len(study.speeds) < most:
        raise ConfigError(
            f"{path}: {len(study.speeds)} speeds for {most} devices: give one for each, as in speeds = [1, 0.5]"
        )
    for name in [name for link in study.links for name in link.between]:
        if name.isdigit() and int(name) >= most:
            raise ConfigError(
                f"{path}: a link leads to device {name}, the grid's last one is {most - 1}; mend links or devices"
            )
    if study.links:
        graph_of(study.links, most)
    return study


def compression(cell: PointPrediction) -> float:
    """Compute CR; 1 where every row crosses the link."""
    return 1.0 if cell.plan.segments is None else compression_rate(cell.tokens, cell.plan.parts, cell.plan.segments)
