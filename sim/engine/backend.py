"""Run plans in simulation: the same plan and workload as hardware, the same trace back."""

import itertools
from pathlib import Path
from typing import Any

import msgspec
import simpy

from prism.backend import Workload
from prism.cost import CalibratedProfile, CostModel
from prism.errors import PlanError
from prism.link import LinkSpec
from prism.plan import ExecutionPlan
from prism.rates import read_rates
from prism.trace import Batch, Record, Trace, TraceHeader
from prism.trace.metrics import samples_per_s
from sim.engine.collectives import SimProcess
from sim.engine.device import SimulatedDevice
from sim.engine.network import Network
from sim.engine.ranks import RankGroup
from sim.engine.script import Script, script
from sim.engine.topology import Topology, known_routes, topology

EPOCH = "1970-01-01T00:00:00Z"  # virtual time begins here, so that a seed's trace is the same bytes


class Machines(msgspec.Struct, frozen=True, kw_only=True):
    """What the ranks run on.

    link: rate_bps times the profile's link.gain is the medium's rate; None is an infinite one.
    costs: of each device. A rank beyond the last device runs on device 0, 1, ... again, and ranks that share a device
    queue for it. graph: a custom topology instead of `kind`.
    """

    profile: CalibratedProfile
    costs: tuple[CostModel, ...]
    link: LinkSpec = LinkSpec()
    kind: Topology = "access-point"
    graph: Any = None

    @property
    def message_s(self) -> float:
        """Fixed seconds of a message."""
        return self.costs[0].message_s

    def network(self, env: simpy.Environment, ranks: int, seed: int) -> Network:
        """Make the network of some ranks. Raises ConfigError for a bad rate file or topology."""
        rates = read_rates(Path(self.link.rates)) if self.link.rates else ()
        nominal = rates[0].rate_bps if rates else self.link.rate_bps
        rate = float("inf") if nominal is None else nominal * self.costs[0].link_gain
        graph, routes = self.graph, None
        if graph is None:
            graph, routes = (topology(self.kind, ranks, rate, self.link.latency_s), known_routes(self.kind, ranks))
        network = Network(env, graph, ranks, self.link, seed, self.message_s, routes)
        if rates:
            env.process(network.replay([(point.at_s, point.rate_bps / rates[0].rate_bps) for point in rates]))
        return network

    def devices(self, ranks: int, together: int) -> list[SimulatedDevice]:
        """Make the devices, one entry for each rank. together: ranks that compute at the same time."""
        count = min(ranks, len(self.costs))
        costs = [cost.together() if together > 1 else cost for cost in self.costs[:count]]
        made = [
            SimulatedDevice(cost, self.profile.staged, shared=ranks > index + count) for index, cost in enumerate(costs)
        ]
        return [made[rank % count] for rank in range(ranks)]


class SimBackend:
    """prism.backend.Backend over SimPy. It keeps no state between runs: the same arguments give the same bytes.

    warmups: whether the trace holds the unmeasured batches.
    """

    def __init__(self, machines: Machines, *, warmups: bool = True) -> None:
        self._machines, self._warmups = machines, warmups

    def run(self, plan: ExecutionPlan, workload: Workload) -> Trace:
        """Simulate batches of a plan and return their trace. Raises PlanError."""
        group, batches = self._ran(plan, workload, record=True)
        records: list[Record] = []
        for batch in batches:
            if self._warmups or not batch.warmup:
                records += [*group.records(batch.batch), batch]
        return Trace(header=self.header(plan, workload), records=tuple(records))

    def times_ms(self, plan: ExecutionPlan, workload: Workload) -> list[float]:
        """Simulate the milliseconds of each measured batch, without making the trace."""
        _, batches = self._ran(plan, workload, record=False)
        return [(batch.end_ns - batch.start_ns) / 1e6 for batch in batches if batch.counts]

    def stream_per_s(self, plan: ExecutionPlan, workload: Workload) -> float:
        """Compute the samples per second of a stream: a batch begins as soon as the leader has done its own part of
        the one before, while no more are under way than there are ranks, and one.
        """
        _, batches = self._ran(plan, workload, record=False, in_turn=False)
        return samples_per_s([batch for batch in batches if not batch.warmup])

    def _ran(
        self, plan: ExecutionPlan, workload: Workload, *, record: bool, in_turn: bool = True
    ) -> tuple[RankGroup, list[Batch]]:
        """Run the batches, each when the one before is answered, or as a stream."""
        if workload.batch < 1 or workload.batches < 1:
            raise PlanError(f"{workload.batches} batches of {workload.batch}: at least 1 of 1 is needed; raise --batch")
        env = simpy.Environment()
        machines, work = self._machines, script(workload.model, plan, workload.batch)
        devices = machines.devices(plan.ranks, work.together if in_turn else work.busy)
        group = RankGroup(env, devices, machines.network(env, plan.ranks, workload.seed), record)
        batches: list[Batch] = []
        run = _batches if in_turn else _stream
        env.run(until=env.process(run(env, group, work, workload, batches)))
        return group, batches

    def header(self, plan: ExecutionPlan, workload: Workload) -> TraceHeader:
        """Make the trace's header."""
        profile, model = self._machines.profile, workload.model
        return TraceHeader(
            source="simulated",
            created=EPOCH,
            model=model.name,
            weights="none",
            plan=plan,
            batch=workload.batch,
            tokens=model.tokens,
            link=str(self._machines.link),
            seed=workload.seed,
            command="",
            oversubscribed=plan.ranks > len(self._machines.costs),
            power=profile.power,
            config={
                "profile": profile.name,
                "topology": self._machines.kind if self._machines.graph is None else "custom",
            },
            host={"device": profile.device, "power_mode": profile.power_mode},
            spec=model,
        )


def _batches(
    env: simpy.Environment, group: RankGroup, work: Script, workload: Workload, done: list[Batch]
) -> SimProcess:
    for number in range(workload.warmups + workload.batches):
        start = int(env.now)
        yield from group.batch(number, work)
        done.append(_batch(number, workload, start, int(env.now)))
    yield from group.idle()


def _stream(
    env: simpy.Environment, group: RankGroup, work: Script, workload: Workload, done: list[Batch]
) -> SimProcess:
    """Begin batch after batch, until enough are answered: those begun last keep the devices and the link busy."""
    enough, under_way = env.event(), simpy.Resource(env, len(work.phases) + 1)

    def begun() -> SimProcess:
        for number in itertools.count():
            turn = under_way.request()
            yield turn
            start = int(env.now)
            yield from group.own_part(number, work)
            env.process(answered(number, start, turn))

    def answered(number: int, start: int, turn: Any) -> SimProcess:
        yield from group.closing(number, work)
        under_way.release(turn)
        done.append(_batch(number, workload, start, int(env.now)))
        if len(done) == workload.warmups + workload.batches:
            enough.succeed()

    env.process(begun())
    yield enough


def _batch(number: int, workload: Workload, start: int, end: int) -> Batch:
    return Batch(batch=number, size=workload.batch, start_ns=start, end_ns=end, warmup=number < workload.warmups)


def identical(profile: CalibratedProfile, cost: CostModel, devices: int, link: LinkSpec, **more: Any) -> Machines:
    """Make `devices` machines of one kind."""
    return Machines(profile=profile, costs=(cost,) * max(1, devices), link=link, **more)
