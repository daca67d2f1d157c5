"""Compute seconds per operation from a calibrated profile. The profile is data; nothing here was measured.

A block's step costs its kernels on the device (a roofline, one efficiency per class of operation) and its launches on
the host, which the device's queue hides in part:

    step = (launch^p + device^p)^(1/p)        p = 1: one after the other, p -> infinity: the longer one

launch = kernels * kernel.fixed_s + block.fixed_s
         + exchange.fixed_s after an exchange, which leaves the queue empty
         + bytes that the exchange moved * exchange.s_per_byte, the network's work on the host
device = sum over kernels of FLOPs * s_per_flop joined with bytes * memory.s_per_byte

A kernel's two sides are joined by the larger one, or by roofline.power as launch and device are (1: a core that
computes and fetches by turns). The device is slower while its clock is low (Clock) and beside other ranks of the same
machine (CostModel.together). Ranks that should take equally long differ (CostModel.uneven). Copies and packing cost
fixed + slope * bytes, with a break between two regimes of size.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from prism.codecs import Wire
from prism.config import load_json, nearest
from prism.errors import ConfigError
from prism.plan import Collective, Embed
from prism.spec import ModelSpec, PowerProfile
from prism.workload import Kernel

PROFILES = Path(__file__).parent / "profiles"
PROFILE_SCHEMA = 1
CURVES = ("d2h", "pack", "unpack", "h2d")
OF_DEVICE = ("gemm", "attention", "memory", "kernel", "block", "exchange", *CURVES)  # terms that a speed divides
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
    """How the plans behind a profile's data were executed: the fields of ExecutionPlan of the same names, and the
    codecs that crossed the link."""

    overlap: bool = True
    embed: Embed = "terminal"
    collective: Collective = "auto"
    wires: tuple[Wire, ...] = ("fp32",)


class CalibratedProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fitted cost model of one kind of device in one power mode, and of its link.

    covariance: of the logarithms of the terms, [terms, terms]; empty where unknown.
    residual_log_sd: standard deviation of the logarithm of a latency about the model, beyond that of the terms.
    ranges: of the data, inclusive: batch, tokens, width, columns (of the widest matrix product), devices,
    message_bytes, link_mbps.
    staged: whether tensors are copied between a device and its host.
    traces: SHA-256 of each trace or table that the fit read.
    pace_ms: the machine's pace when the data were taken (prism.trace.metrics.pace_ms); None where it wasn't timed.
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


def normal_scores(count: int) -> list[float]:
    """Expected order statistics of `count` standard normal values, ascending (Blom, 1958)."""
    return [NormalDist().inv_cdf((place - 0.375) / (count + 0.25)) for place in range(1, count + 1)]


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


class Curve(msgspec.Struct, frozen=True):
    """fixed + slope * bytes, with another slope beyond the break; no bytes cost nothing."""

    fixed_s: float
    s_per_byte: float
    break_bytes: float
    large_s_per_byte: float

    def seconds(self, size: int) -> float:
        """Compute the time of `size` bytes."""
        if size <= 0:
            return 0.0
        if not self.break_bytes or size <= self.break_bytes:
            return self.fixed_s + self.s_per_byte * size
        beyond = self.large_s_per_byte * (size - self.break_bytes)
        return self.fixed_s + self.s_per_byte * self.break_bytes + beyond


class Clock(msgspec.Struct, frozen=True):
    """A frequency governor that lowers a device's clock while it is idle, as boards with power budgets have.

    The level falls from 1 to 0 in fall_s without work and rises in rise_s with it. The speed is 1 at level 1,
    1 / (1 + slowdown) at level 0, and linear in between. So a device that is busy for more than
    rise_s / (rise_s + fall_s) of its time keeps its clock, and one that mostly waits loses it.
    """

    slowdown: float
    rise_s: float
    fall_s: float

    def idle(self, level: float, seconds: float) -> float:
        """Compute the level after `seconds` without work."""
        return max(0.0, level - seconds / self.fall_s) if self.fall_s else level

    def busy(self, level: float, seconds: float) -> float:
        """Compute the level after `seconds` of work."""
        return min(1.0, level + seconds / self.rise_s) if self.rise_s else 1.0

    def stretched(self, level: float, work_s: float) -> float:
        """Compute the seconds of what takes `work_s` at the full clock: speed rises linearly until the level is 1."""
        if not self.rise_s or not self.slowdown:
            return work_s
        slowest = 1.0 / (1.0 + self.slowdown)
        speed = slowest + (1.0 - slowest) * level
        gain = (1.0 - slowest) / self.rise_s
        rising_s = (1.0 - level) * self.rise_s
        done = (speed + gain * rising_s / 2) * rising_s
        if work_s >= done:
            return rising_s + work_s - done
        return 2.0 * work_s / (speed + math.sqrt(speed * speed + 2.0 * gain * work_s))


class CostModel:
    """Seconds of operations, from the values of a profile's terms."""

    def __init__(self, values: Mapping[str, float]) -> None:
        self._values = values
        self._s_per_flop = {c: values[f"{c}.s_per_flop"] for c in ("gemm", "attention")}
        self._s_per_byte = values["memory.s_per_byte"]
        self._kernel_s, self._block_s = values["kernel.fixed_s"], values["block.fixed_s"]
        self._exchange_s = values.get("exchange.fixed_s", 0.0)
        self._moved_s_per_byte = values.get("exchange.s_per_byte", 0.0)
        self._roofline = values.get("roofline.power", 0.0)
        self._power = max(1.0, values["overlap.power"])
        parts = ("fixed_s", "s_per_byte", "break_bytes", "large_s_per_byte")
        self.curves = {c: Curve(*(values.get(f"{c}.{part}", 0.0) for part in parts)) for c in CURVES}
        self.clock = Clock(*(values.get(f"clock.{part}", 0.0) for part in ("slowdown", "rise_s", "fall_s")))
        self._spread = values.get("together.spread", 0.0)
        self.link_gain, self.message_s = values["link.gain"], values["link.message_s"]

    def together(self) -> "CostModel":
        """Model the device while others work beside it: ranks of one machine share its memory.

        A byte takes (1 + together.slowdown) times as long. Without that term, the model itself.
        """
        factor = 1.0 + self._values.get("together.slowdown", 0.0)
        if factor == 1.0:
            return self
        return CostModel({**self._values, "memory.s_per_byte": factor * self._s_per_byte})

    def uneven(self, ranks: int) -> tuple[float, ...]:
        """Compute a factor for each rank's seconds of a block, in no particular order.

        Ranks that should take equally long don't, and a rank that waits for all waits for the slowest. together.spread
        is the standard deviation of a rank's logarithm; the factors are the expected order statistics.
        """
        if ranks == 1 or not self._spread:
            return (1.0,) * ranks
        return tuple(math.exp(self._spread * value) for value in normal_scores(ranks))

    def at_speed(self, speed: float) -> "CostModel":
        """Model a device `speed` times as fast in all that it computes, launches and copies, on the same link."""
        if speed == 1.0:
            return self
        return CostModel(
            {
                name: value / speed if name.split(".")[0] in OF_DEVICE and not name.endswith("bytes") else value
                for name, value in self._values.items()
            }
        )

    def device_s(self, kernel: Kernel) -> float:
        """Compute a kernel's seconds on the device, at its full clock: the roofline.

        Norms and elementwise kernels are bound by memory.
        """
        memory_s = kernel.memory_bytes * self._s_per_byte
        slope = self._s_per_flop.get(kernel.op_class)
        if slope is None:
            return memory_s
        if not self._roofline:
            return max(memory_s, kernel.flops * slope)
        return _joined(memory_s, kernel.flops * slope, self._roofline)

    def launch_s(self, kernels: int, *, block: bool = False, exchanged: bool = False, moved: int = 0) -> float:
        """Compute the host's part of a step, in seconds.

        block: the step carries a block's fixed cost. exchanged: it needs rows of other ranks. moved: bytes of the
        exchange that the host sent and received.
        """
        fixed = kernels * self._kernel_s + block * self._block_s + exchanged * self._exchange_s
        return fixed + moved * self._moved_s_per_byte

    def joined(self, launch: float, device: float) -> float:
        """Join the two sides of a step, in seconds."""
        return _joined(launch, device, self._power)

    def copy_s(self, kind: Literal["stage_d2h", "stage_h2d"], size: int) -> float:
        """Compute the seconds of a message's copy between device and host memory, packing included."""
        first, second = ("pack", "d2h") if kind == "stage_d2h" else ("h2d", "unpack")
        return self.curves[first].seconds(size) + self.curves[second].seconds(size)


def _joined(first: float, second: float, power: float) -> float:
    """Compute (first^power + second^power)^(1/power) without overflow."""
    longer, shorter = (first, second) if first > second else (second, first)
    if shorter <= 0.0:
        return longer
    if power == 1.0:
        return longer + shorter
    return float(longer * (1.0 + (shorter / longer) ** power) ** (1.0 / power))
