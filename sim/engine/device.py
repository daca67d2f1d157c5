"""Model a device: its two resources, computing and copying, and the clock that falls while it is idle."""

from typing import Any

import msgspec
import simpy

from prism.cost import CostModel
from prism.trace import Kind


class Lane:
    """A resource that serves one step at a time, first come, first served.

    Callers come in the order of virtual time, so the moment at which it is free again is its whole state.
    """

    def __init__(self) -> None:
        self.free_ns = 0

    def take(self, now: int, duration: int) -> int:
        """Serve a step of `duration` ns that asks now; returns when it ends."""
        self.free_ns = max(now, self.free_ns) + duration
        return self.free_ns


class SimulatedDevice(msgspec.Struct):
    """One machine. A rank alone on it never queues.

    Ranks that share it do, and their times are no real device's: the trace header says oversubscribed.
    """

    cost: CostModel
    staged: bool
    shared: bool = False
    compute: Lane = msgspec.field(default_factory=Lane)
    staging: Lane = msgspec.field(default_factory=Lane)
    level: float = 1.0  # of the clock, when it last computed
    busy_ns: int = 0  # until when it computed

    def compute_ns(self, start: int, launch_s: float, device_s: float) -> int:
        """Compute how long a step takes that starts at `start`, at the level to which the clock has fallen."""
        cost, clock = self.cost, self.cost.clock
        level = clock.idle(self.level, max(0, start - self.busy_ns) / 1e9)
        seconds = cost.joined(launch_s, clock.stretched(level, device_s))
        self.level = clock.busy(level, seconds)
        duration = round(seconds * 1e9)
        self.busy_ns = start + duration
        return duration

    def queued(self, env: simpy.Environment, since: int, span: Kind, duration: int) -> Any:
        """Wait for the turn of a step that is ready at `since`; a generator that returns its end."""
        if since > env.now:
            yield env.timeout(since - env.now)
        lane = self.compute if span == "compute" else self.staging
        return lane.take(int(env.now), duration)
