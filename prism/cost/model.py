"""Compute seconds per operation from a calibrated profile. The profile is data; nothing here was measured.

A block's step costs its kernels on the device (a roofline, one efficiency per class of operation) and its launches on
the host, which the device's queue hides in part:

    step = (launch^p + device^p)^(1/p)        p = 1: one after the other, p -> infinity: the longer one

launch = kernels * kernel.fixed_s + block.fixed_s
         + exchange.fixed_s after an exchange, which leaves the queue empty
         + bytes that the exchange moved * exchange.s_per_byte, the network's work on the host
device = sum over kernels of FLOPs * s_per_flop joined with bytes * memory.s_per_byte

A kernel's two sides are joined by the larger one, or by roofline.power as launch and device are (1: a core that
computes and fetches by turns). The device is slower while its clock is low (ClockGovernor) and beside other ranks of the same
machine (CostModel.together). Ranks that should take equally long differ (CostModel.uneven). Copies and packing cost
fixed + slope * bytes, with a break between two regimes of size.
"""

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Literal

import msgspec

from prism.workload import Kernel

CURVES = ("d2h", "pack", "unpack", "h2d")
OF_DEVICE = ("gemm", "attention", "memory", "kernel", "block", "exchange", *CURVES)  # terms that a speed divides


def normal_scores(count: int) -> list[float]:
    """Expected order statistics of `count` standard normal values, ascending (Blom, 1958)."""
    return [NormalDist().inv_cdf((place - 0.375) / (count + 0.25)) for place in range(1, count + 1)]


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


class ClockGovernor(msgspec.Struct, frozen=True):
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
        self.clock = ClockGovernor(*(values.get(f"clock.{part}", 0.0) for part in ("slowdown", "rise_s", "fall_s")))
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
