"""Simulate serving: requests through a queue to devices that may fail, with the policy in the loop."""

from collections.abc import Sequence

import msgspec
import numpy as np
import simpy

from prism.decide.policy import Decision, Policy, State
from prism.decide.table import Objective, Observation, Table
from prism.plan import LOCAL, ExecutionPlan
from prism.spec import ModelSpec
from prism.trace.quantiles import quantiles
from sim.ask.point import Point, summary
from sim.engine.backend import Machines
from sim.engine.collectives import SimProcess
from sim.serving.fleet import Fault, Fleet
from sim.serving.requests import Arrivals, Batching, Queue, SimulatedRequest, arrive, serve_queue


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """A model to serve, how requests arrive, and what fails meanwhile."""

    model: ModelSpec
    arrivals: Arrivals
    batching: Batching = Batching()
    faults: tuple[Fault, ...] = ()
    timeout_s: float = 60.0
    seed: int = 0


class ServingReport(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of a served scenario.

    latency_ms: from arrival to answer. waiting_ms: from arrival to the start of the batch. queue_mean: over time.
    backlog: requests not answered when the last one arrived. modes: batches by mode. joules_per_sample: of all devices,
    idle time included and failed batches as idle; None without a declared power profile. outside: in what the scenario
    lies outside of the profile's data.
    """

    requests: int
    seconds: float
    latency_ms: dict[str, float]
    waiting_ms: dict[str, float]
    throughput_per_s: float
    joules_per_sample: float | None
    queue_mean: float
    queue_longest: int
    backlog: int
    batches: int
    batch_mean: float
    modes: dict[str, int]
    failures: tuple[str, ...]
    outside: tuple[str, ...] = ()


class PredictingPolicy:
    """Choose the plan that the simulator predicts to be fastest, among `plans` and local, for each batch."""

    def __init__(self, machines: Machines, model: ModelSpec, plans: Sequence[ExecutionPlan]) -> None:
        self._machines, self._model, self._plans = machines, model, (LOCAL, *plans)
        self._fastest: dict[tuple[int, int], ExecutionPlan] = {}

    def decide(self, observation: Observation, table: Table | None, objective: Objective, state: State) -> Decision:
        """Choose the plan that the table has as the fastest for the batch and the devices."""
        key = (observation.batch, observation.devices)
        if key not in self._fastest:
            there, batch = observation.devices, observation.batch
            possible = [plan for plan in self._plans if plan.ranks <= there and plan.least_batch <= batch]
            self._fastest[key] = min(possible, key=lambda plan: self._latency(plan, observation.batch))
        plan = self._fastest[key]
        return Decision(plan=plan, why="predicted to be fastest", state=State(plan=plan))

    def _latency(self, plan: ExecutionPlan, batch: int) -> float:
        machines = self._machines
        point = Point(model=self._model, plan=plan, batch=batch, link=machines.link, topology=machines.kind)
        return summary(machines.profile, machines.costs[0], point).latency_ms.p50


def simulate_serving(
    machines: Machines,
    scenario: Scenario,
    policy: Policy,
    table: Table | None = None,
    objective: Objective = Objective(),
) -> ServingReport:
    """Serve the scenario's requests to the end. Raises ConfigError for a fault that can't be."""
    env = simpy.Environment()
    queue = Queue(env)
    fleet = Fleet(env, machines, scenario.model, scenario.faults, scenario.timeout_s, scenario.seed)

    state = State()

    def run(batch: list[SimulatedRequest]) -> SimProcess:
        nonlocal state
        observation = Observation(
            batch=len(batch),
            devices=fleet.reachable,
            bandwidth_bps=machines.link.rate_bps,
            queued=len(queue.waiting),
            at_s=env.now / 1e9,
        )
        decision = policy.decide(observation, table, objective, state)
        state = decision.state
        return (yield from fleet.run(decision.plan, len(batch)))

    if not scenario.arrivals.closed:
        env.process(arrive(env, queue, scenario.arrivals, scenario.seed))
    env.run(until=env.process(serve_queue(env, queue, scenario.arrivals, scenario.batching, run)))
    fleet.settle()
    return _report(env, queue, fleet, machines)


def percentiles(milliseconds: Sequence[float]) -> dict[str, float]:
    """Compute mean, p50, p95, p99 and max."""
    p50, p95, p99 = quantiles(milliseconds, 50, 95, 99)
    mean, longest = float(np.mean(milliseconds)), float(np.max(milliseconds))
    return {"mean": mean, "p50": p50, "p95": p95, "p99": p99, "max": longest}


def _report(env: simpy.Environment, queue: Queue, fleet: Fleet, machines: Machines) -> ServingReport:
    requests, end = queue.all, int(env.now)
    last = max(request.arrived_ns for request in requests)
    return ServingReport(
        requests=len(requests),
        seconds=end / 1e9,
        latency_ms=percentiles([(r.ended_ns - r.arrived_ns) / 1e6 for r in requests]),
        waiting_ms=percentiles([(r.started_ns - r.arrived_ns) / 1e6 for r in requests]),
        throughput_per_s=len(requests) / (end / 1e9),
        joules_per_sample=_joules(fleet, machines, end) / len(requests) if machines.profile.power else None,
        queue_mean=queue.length_ns / end,
        queue_longest=queue.longest,
        backlog=sum(request.ended_ns > last for request in requests),
        batches=len(fleet.busy_ns),
        batch_mean=len(requests) / len(fleet.busy_ns),
        modes=dict(fleet.modes),
        failures=tuple(fleet.failures),
    )


def _joules(fleet: Fleet, machines: Machines, end: int) -> float:
    """Add up the joules of batches, and of devices that idle meanwhile."""
    power = machines.profile.power
    if power is None:
        return 0.0
    idle_ns = fleet.devices * end - sum(length * ranks for length, ranks in fleet.busy_ns)
    return sum(fleet.batch_joules) + power.idle_w * idle_ns / 1e9
