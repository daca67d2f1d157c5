"""Simulate the devices of a scenario, which may be lost, and their link, which may be out."""

from collections import Counter
from typing import Literal

import msgspec
import simpy

from prism.backend import Workload
from prism.errors import ConfigError
from prism.labels import mode_label
from prism.plan import ExecutionPlan
from prism.spec import ModelSpec
from prism.trace import Batch, Trace
from prism.trace.energy import modelled_energy
from sim.engine.backend import Machines, SimBackend
from sim.engine.collectives import SimProcess
from sim.engine.ranks import RankGroup
from sim.engine.script import script

NOTICED_S = 0.03  # a peer whose process dies closes its sockets
REFORMED_S = 0.03  # a new group on a fresh prefix of the store


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """A failure. device: lost for good at a time, noticed at once or, when silent, after the timeout.

    link: nothing moves from at_s until until_s.
    """

    kind: Literal["device", "link"]
    at_s: float
    device: int = 0
    until_s: float = float("inf")
    silent: bool = False


class Fleet:
    """The devices of a scenario, one batch at a time. A broken group is replaced by one of the devices left."""

    def __init__(
        self,
        env: simpy.Environment,
        machines: Machines,
        model: ModelSpec,
        faults: tuple[Fault, ...],
        timeout_s: float,
        seed: int,
    ) -> None:
        self._env, self._machines, self._model, self._seed = env, machines, model, seed
        self._timeout_ns = round(timeout_s * 1e9) if faults else 0
        self._devices = machines.devices(len(machines.costs), len(machines.costs))
        self._dead: set[int] = set()
        self._lost: set[int] = set()
        self._noticed: set[int] = set()
        self._outage_ns = 0  # when the outage that is on will end
        self._out_until = 0
        self._factor = 1.0
        self._number = 0
        self._broken: simpy.Event | None = None
        self._open: tuple[Batch, ExecutionPlan, RankGroup] | None = None
        self.batch_joules: list[float] = []
        self.busy_ns: list[tuple[int, int]] = []  # nanoseconds of each batch, and its ranks
        self.modes: Counter[str] = Counter()
        self.failures: list[str] = []
        self._group = self._formed()
        for fault in faults:
            if fault.kind == "device" and not 0 < fault.device < len(self._devices):
                raise ConfigError(
                    f"device {fault.device} can't fail: give one of 1 to {len(self._devices) - 1}; 0 is the leader"
                )
            env.process(self._happen(fault))

    @property
    def reachable(self) -> int:
        """Count the devices that the leader believes it can reach."""
        return 1 if self._env.now < self._out_until else len(self._devices) - len(self._lost | self._noticed)

    @property
    def devices(self) -> int:
        """Count the devices, lost ones included."""
        return len(self._devices)

    def run(self, plan: ExecutionPlan, batch: int) -> SimProcess:
        """Run one batch; a generator that returns why it failed, or an empty text."""
        env, number = self._env, self._number
        self._number += 1
        if self._noticed - self._lost:
            self._lost |= self._noticed
            self._group = self._formed()
        group = self._group
        start = int(env.now)
        done = env.process(group.batch(number, script(self._model, plan, batch)))
        if plan.ranks > 1 and self._timeout_ns:
            self._broken = env.event()
            yield done | self._broken | env.timeout(self._timeout_ns)
        else:
            yield done
        if not done.triggered:
            return (yield from self._recover(number))
        self.settle()
        self._open = (Batch(batch=number, size=batch, start_ns=start, end_ns=int(env.now)), plan, group)
        self.busy_ns.append((int(env.now) - start, plan.ranks))
        self.modes[mode_label(plan)] += 1
        return ""

    def settle(self) -> None:
        """Add up the joules of the last batch: by now every rank of it has ended, or never will."""
        if self._open is None:
            return
        batch, plan, group = self._open
        spans = group.records(batch.batch)
        power = self._machines.profile.power
        if power is not None:
            header = SimBackend(self._machines).header(plan, Workload(model=self._model, batch=batch.size))
            self.batch_joules.append(modelled_energy(Trace(header=header, records=(*spans, batch)), power).joules)
        self._open = None

    def _recover(self, number: int) -> SimProcess:
        named = self._dead - self._lost
        why = f"device {min(named)} was lost" if named else "the link was out"
        self.failures.append(f"batch {number} at {self._env.now / 1e9:.3f} s: {why}")
        self._lost |= self._dead
        self._out_until = self._outage_ns
        self.settle()
        self._group = self._formed()
        yield self._env.timeout(round(REFORMED_S * 1e9))
        return why

    def _formed(self) -> RankGroup:
        alive = [d for k, d in enumerate(self._devices) if k not in self._lost]
        self._network = self._machines.network(self._env, len(alive), self._seed + len(self.failures))
        self._network.scale(self._factor)
        return RankGroup(self._env, alive, self._network, record=self._machines.profile.power is not None)

    def _happen(self, fault: Fault) -> SimProcess:
        yield self._env.timeout(round(fault.at_s * 1e9))
        if fault.kind == "device":
            alive = [k for k in range(len(self._devices)) if k not in self._lost]
            self._dead.add(fault.device)
            if fault.device in alive:
                self._group.down_from[alive.index(fault.device)] = int(self._env.now)
            if not fault.silent:
                yield self._env.timeout(round(NOTICED_S * 1e9))
                self._noticed.add(fault.device)
                if self._broken is not None and not self._broken.triggered:
                    self._broken.succeed()
            return
        self._outage_ns = round(fault.until_s * 1e9)
        self._factor = 0.0
        self._network.scale(0.0)
        yield self._env.timeout(round((fault.until_s - fault.at_s) * 1e9))
        self._factor, self._outage_ns = 1.0, 0
        self._network.scale(1.0)
