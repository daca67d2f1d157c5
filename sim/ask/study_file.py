"""What a study asks: the TOML file of `prism-sim what-if`, checked before anything runs."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from prism.codecs import Wire
from prism.config import load_toml
from prism.cost import load_profile
from prism.errors import ConfigError
from prism.plan import Mode
from prism.spec import Positive
from sim.ask.point import Prediction
from sim.engine.topology import Edge, Topology, graph_of

NEEDED = ("mode", "batch", "devices", "segments", "wire", "bandwidth", "latency", "jitter", "loss", "topology", "split")
Objective = Literal["latency", "energy"]
Limit = Annotated[float, msgspec.Meta(gt=0)]


class Axes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The grid: every combination of these values. segments plays a part in mode segment_means alone, and
    of local only model, tokens and batch do. split: of the tokens, evenly or by the study's speeds."""

    mode: tuple[Mode, ...] = (Mode.LOCAL, Mode.FULL, Mode.SEGMENT_MEANS)
    batch: tuple[Positive, ...] = (1,)
    devices: tuple[Positive, ...] = (2,)
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
    collective: tuple[Literal["auto", "mesh", "ring"], ...] = ()


class Constraints(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an answer must keep. max_compression: CR = N / (L P) of segment means, as a stand-in for accuracy."""

    max_latency_ms: Limit | None = None
    max_energy_j: Limit | None = None
    min_samples_per_s: Limit | None = None
    max_compression: Limit | None = None

    def conflict(self, cells: Sequence[Prediction]) -> str:
        """Which of the limits none of the cells keeps, or that they can't be kept together."""
        given = {name: value for name, value in msgspec.structs.asdict(self).items() if value is not None}
        alone = [
            f"{name} {value:g}"
            for name, value in given.items()
            if not any(Constraints(**{name: value}).holds(cell) for cell in cells)
        ]
        if alone:
            return f"no cell keeps {' or '.join(alone)}: loosen it, or widen the grid"
        return f"each of {', '.join(given)} is kept by some cell, all by none: loosen one, or widen the grid"

    def holds(self, cell: Prediction) -> bool:
        joules = math.inf if cell.energy_j is None else cell.energy_j
        limits = (
            (cell.latency_ms, self.max_latency_ms),
            (joules, self.max_energy_j),
            (compression(cell), self.max_compression),
        )
        slow = self.min_samples_per_s is not None and 1e3 / cell.per_sample_ms < self.min_samples_per_s
        return not slow and all(limit is None or value <= limit for value, limit in limits)


class Inverse(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A question backwards: the least bandwidth, the fewest devices or the largest L that keeps a latency."""

    find: Literal["least_bandwidth", "fewest_devices", "largest_segments"]
    max_latency_ms: Limit
    mode: Mode = Mode.SEGMENT_MEANS
    batch: Positive = 1
    devices: Positive = 2
    segments: Positive = 10
    bandwidth: str = "400Mbps"


class Study(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A TOML file for `prism-sim what-if`. draws: for intervals, 0 for none. links: a topology of one's own,
    which grid.topology, grid.bandwidth and grid.latency then say nothing about. speeds: of each device beside the
    profile's, the terminal first, as in [1, 0.5] for a second one half as fast; empty: all are like the profile's."""

    model: str | tuple[str, ...]
    profile: str = "orin-nano"
    objective: Objective = "latency"
    draws: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    seed: int = 0
    grid: Axes = Axes()
    constraints: Constraints = Constraints()
    inverse: tuple[Inverse, ...] = ()
    links: tuple[Edge, ...] = ()
    speeds: tuple[Limit, ...] = ()


def load_study(path: Path) -> Study:
    """Raises ConfigError in one line: unknown keys with the nearest known one, bad values, an empty grid,
    constraints that nothing can keep."""
    study = load_toml(path, Study)
    for name in NEEDED:
        if not getattr(study.grid, name):
            raise ConfigError(f"{path}: grid.{name} is empty, so there is no cell; give it at least one value")
    if not study.model:
        raise ConfigError(f"{path}: model is empty; name at least one")
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


def compression(cell: Prediction) -> float:
    """CR: 1 where every row crosses."""
    return 1.0 if cell.segments is None else cell.tokens / (cell.segments * cell.devices)
