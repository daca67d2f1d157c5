"""Load a calibrated profile: its terms with their errors, how its data were taken, and the ranges it covers."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from prism.codecs import Wire
from prism.config import PositiveNumber, load_json, nearest
from prism.cost.model import CURVES, CostModel
from prism.errors import ConfigError
from prism.plan import Collective, Embed
from prism.spec import ModelSpec, PowerProfile

PROFILES = Path(__file__).parents[1] / "profiles"
PROFILE_SCHEMA = 1
REQUIRED = (
    "gemm.s_per_flop",
    "attention.s_per_flop",
    "memory.s_per_byte",
    "kernel.fixed_s",
    "block.fixed_s",
    "overlap.power",
    "link.gain",
    "link.message_s",
)
OPTIONAL = (  # 0 where a profile lacks them; a curve without a break has one slope
    "exchange.fixed_s",
    "exchange.s_per_byte",
    "together.slowdown",
    "together.spread",
    "roofline.power",
    "clock.slowdown",
    "clock.rise_s",
    "clock.fall_s",
    *(f"{c}.{part}" for c in CURVES for part in ("fixed_s", "s_per_byte", "break_bytes", "large_s_per_byte")),
)
Tag = Literal["calibrated", "extrapolated"]


class Term(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One parameter of the cost model. origin: fitted to data, or a prior that no data moved; source: of its value."""

    name: str
    value: float
    origin: Literal["fitted", "prior"]
    source: str

    def __post_init__(self) -> None:
        if self.name not in REQUIRED + OPTIONAL:
            raise ValueError(f"term {self.name!r} is unknown; {nearest(self.name, [*REQUIRED, *OPTIONAL])}")
        if not 0 <= self.value < float("inf"):
            raise ValueError(f"term {self.name} is {self.value}; it must be finite and not negative")


class Taken(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the plans behind a profile's data were executed: the fields of ExecutionPlan of the same names, the codecs
    that crossed the link, and whether the data have plans of several replicas or stages.
    """

    overlap: bool = True
    embed: Embed = "terminal"
    collective: Collective = "auto"
    wires: tuple[Wire, ...] = ("fp32",)
    replicas: bool = False
    stages: bool = False


class CalibratedProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fitted cost model of one kind of device in one power mode, and of its link.

    covariance: of the logarithms of the terms, [terms, terms]; empty where unknown.
    residual_log_sd: standard deviation of the logarithm of a latency about the model, beyond that of the terms.
    ranges: of the data, inclusive: batch, tokens, width, columns (of the widest matrix product), devices,
    message_bytes, link_mbps.
    staged: whether tensors are copied between a device and its host.
    traces: SHA-256 of each trace or table that the fit read.
    pace_ms: the machine's pace when the data were taken (prism.trace.metrics.pace_ms); None where it wasn't timed.
    memory_bytes: of a device; a plan that needs more is no candidate. None where it isn't limited.
    """

    schema: int = PROFILE_SCHEMA
    name: str
    device: str
    power_mode: str
    note: str
    staged: bool
    terms: tuple[Term, ...]
    covariance: tuple[tuple[float, ...], ...] = ()
    residual_log_sd: float = 0.0
    ranges: dict[str, tuple[float, float]]
    traces: tuple[str, ...]
    taken: Taken = Taken()
    power: PowerProfile | None = None
    pace_ms: float | None = None
    memory_bytes: PositiveNumber | None = None

    def __post_init__(self) -> None:
        if self.schema != PROFILE_SCHEMA:
            raise ValueError(f"schema {self.schema}, this version reads {PROFILE_SCHEMA}; calibrate again")
        names = [term.name for term in self.terms]
        missing = [name for name in REQUIRED if name not in names]
        if missing or len(set(names)) < len(names):
            raise ValueError(f"terms are missing ({', '.join(missing) or 'none'}) or twice there")
        if self.covariance and np.shape(self.covariance) != (len(names), len(names)):
            raise ValueError(f"covariance is {np.shape(self.covariance)}, there are {len(names)} terms")

    def values(self) -> dict[str, float]:
        """Map each term's name to its value."""
        return {term.name: term.value for term in self.terms}

    def model(self) -> "CostModel":
        """Make the cost model of the estimates."""
        return CostModel(self.values())

    def slowness(self, pace_ms: float | None) -> float:
        """Compute how many times as long the machine takes at this pace as at the profile's; 1 if either is unknown."""
        return pace_ms / self.pace_ms if pace_ms and self.pace_ms else 1.0

    def draws(self, count: int, seed: int) -> list["CostModel"]:
        """Draw `count` cost models, log-normal about the estimates."""
        if not self.covariance:
            return [self.model()] * count
        names = [term.name for term in self.terms]
        estimates = np.array([term.value for term in self.terms])
        steps = np.random.default_rng(seed).standard_normal((count, len(names))) @ _root(self.covariance).T
        drawn = estimates * np.exp(np.clip(steps, -6, 6))
        return [CostModel(dict(zip(names, map(float, row), strict=True))) for row in drawn]

    def outside(self, point: Mapping[str, float]) -> list[str]:
        """List the quantities in which a point lies outside of the data, or that the data lack."""
        outside = []
        for name, value in point.items():
            low, high = self.ranges.get(name, (float("nan"), float("nan")))
            if not low <= value <= high:
                calibrated = "never calibrated" if math.isnan(low) else f"calibrated {low:g}..{high:g}"
                outside.append(f"{name} {value:g} ({calibrated})")
        return outside


def columns(model: ModelSpec) -> int:
    """Count the columns of the widest matrix product: Q, K and V, the MLP, or the head with its vocabulary."""
    return max(model.width + 2 * model.kv_width, model.mlp_width, model.output_width)


def load_profile(name: str) -> CalibratedProfile:
    """Load a built-in profile by name, or one from a JSON file. Raises ConfigError with the names there are."""
    built_in = sorted(path.stem for path in PROFILES.glob("*.json"))
    path = PROFILES / f"{name}.json" if name in built_in else Path(name)
    if not path.is_file():
        raise ConfigError(f"profile {name!r} is neither built in nor a file; {nearest(name, built_in)}")
    return load_json(path, CalibratedProfile)


def _root(covariance: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """Compute a square root of a covariance that may be singular, where terms are tied to each other."""
    values, vectors = np.linalg.eigh(np.array(covariance, dtype=float))
    root: NDArray[np.float64] = vectors * np.sqrt(np.clip(values, 0.0, None))
    return root
