"""What a study asks: the TOML file of `prism-sim what-if`, checked before anything runs."""

import math
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from prism.config import load_toml
from prism.cost import load_profile
from prism.errors import ConfigError
from prism.plan import Mode, Wire
from prism.spec import Positive
from sim.network import Topology
from sim.study import Prediction

NEEDED = (
    "mode",
    "batch",
    "devices",
    "segments",
    "wire",
    "bandwidth",
    "latency",
    "jitter",
    "loss",
    "topology",
)
Objective = Literal["latency", "energy"]
Limit = Annotated[float, msgspec.Meta(gt=0)]


class Axes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The grid: every combination of these values. segments plays a part in mode segment_means alone, and
    of local only model, tokens and batch do."""

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
    overlap: tuple[bool, ...] = ()
    collective: tuple[Literal["auto", "mesh", "ring"], ...] = ()


class Constraints(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an answer must keep. max_compression: CR = N / (L P) of segment means, as a stand-in for accuracy."""

    max_latency_ms: Limit | None = None
    max_energy_j: Limit | None = None
    min_samples_per_s: Limit | None = None
    max_compression: Limit | None = None

    def holds(self, cell: Prediction) -> bool:
        joules = math.inf if cell.energy_j is None else cell.energy_j
        limits = (
            (cell.latency_ms, self.max_latency_ms), (joules, self.max_energy_j),
            (compression(cell), self.max_compression),
        )  # fmt: skip
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
    """A TOML file for `prism-sim what-if`. draws: for intervals, 0 for none."""

    model: str | tuple[str, ...]
    profile: str = "orin-nano"
    objective: Objective = "latency"
    draws: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    seed: int = 0
    grid: Axes = Axes()
    constraints: Constraints = Constraints()
    inverse: tuple[Inverse, ...] = ()


def load_study(path: Path) -> Study:
    """Raises ConfigError in one line: unknown keys with the nearest known one, bad values, an empty grid,
    constraints that nothing can keep."""
    study = load_toml(path, Study)
    for name in NEEDED:
        if not getattr(study.grid, name):
            raise ConfigError(
                f"{path}: grid.{name} is empty, so there is no cell; give it at least one value"
            )
    if not study.model:
        raise ConfigError(f"{path}: model is empty; name at least one")
    limits = study.constraints
    if limits.max_compression is not None and limits.max_compression < 1:
        raise ConfigError(
            f"{path}: max_compression {limits.max_compression:g} is below 1, which no plan has; raise it"
        )
    if (study.objective == "energy" or limits.max_energy_j) and load_profile(study.profile).power is None:
        raise ConfigError(
            f"{path}: energy is asked for, but profile {study.profile} declares no power; use latency"
        )
    return study


def compression(cell: Prediction) -> float:
    """CR: 1 where every row crosses."""
    return 1.0 if cell.segments is None else cell.tokens / (cell.segments * cell.devices)
