"""Predict one point: a model, a plan, a batch and a link.

Its latency and energy come from the trace of one batch, as those of a measured one; its interval from draws of the
profile's terms.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from prism.backend import Workload
from prism.codecs import payload_bytes
from prism.cost import CalibratedProfile, CostModel, Tag, columns
from prism.errors import ConfigError
from prism.link import LinkSpec
from prism.plan import LOCAL, ExecutionPlan, Mode
from prism.spec import ModelSpec
from prism.trace import Trace
from prism.trace.metrics import Summary, summarise
from prism.trace.quantiles import quantiles
from prism.workload.memory import memory_bytes
from sim.engine.backend import SimBackend, identical
from sim.engine.script import script
from sim.engine.topology import Edge, Topology, graph_of

INTERVAL = (5.0, 95.0)  # percentiles
FILLED, COUNTED = 1, 6  # batches of a stream: until it flows, and that count


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """What is simulated.

    link: rate_bps is the nominal rate, which the profile's gain turns into the medium's. edges: a custom topology,
    whose rates are used as they are. speeds: of the devices relative to the profile's, the leader first; 1 where they
    end.
    """

    model: ModelSpec
    plan: ExecutionPlan
    batch: int
    link: LinkSpec
    topology: Topology = "access-point"
    edges: tuple[Edge, ...] = ()
    speeds: tuple[float, ...] = ()
    seed: int = 0

    def features(self) -> dict[str, float]:
        """Compute the quantities that a profile's ranges are given for.

        One device uses no link. The number of blocks is none of them: blocks are alike and simulated one by one. Of a
        batch that is split, what a device computes at once counts. The message is the one of a block's exchange, or of
        replicas and stages the largest of all.
        """
        model, plan = self.model, self.plan
        at_once = max(size for samples in plan.shares(self.batch) if samples for size in plan.microbatches(samples))
        features: dict[str, float] = {
            "batch": at_once,
            "tokens": model.tokens,
            "width": model.width,
            "columns": columns(model),
            "devices": plan.ranks,
        }
        if plan.ranks > 1:
            features["link_mbps"] = (self.link.rate_bps or float("inf")) / 1e6
            features["message_bytes"] = self._message_bytes(at_once)
        return features

    def _message_bytes(self, samples: int) -> int:
        """Compute the size of the message that a profile's range is compared with."""
        model, plan = self.model, self.plan
        if plan.replicas * plan.stages > 1:
            return max((step.size for _, step in script(model, plan, self.batch).posts()), default=0)
        return payload_bytes(plan.wire, max(plan.sent_rows(model.tokens)) * samples * model.width)


class PointPrediction(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of a point.

    interval_ms: 90 %, None where no draws were given. samples_per_s: of a stream, in which replicas and stages do on
    several batches at the same time. memory_bytes: of each rank (prism.workload.memory). outside: quantities in which
    the point lies outside of the calibrated ranges; the tag is "extrapolated" where there are any.
    """

    model: str
    tokens: int
    plan: ExecutionPlan
    batch: int
    bandwidth_mbps: float | None
    latency_ms: float
    interval_ms: tuple[float, float] | None
    per_sample_ms: float
    samples_per_s: float
    energy_j: float | None
    memory_bytes: tuple[int, ...]
    split_ms: dict[str, float]
    tag: Tag
    outside: tuple[str, ...] = ()
    profile: str

    def flat(self) -> dict[str, Any]:
        """Write the prediction with the fields of its plan beside its own, as --json has it."""
        flat: dict[str, Any] = {}
        for name, value in msgspec.structs.asdict(self).items():
            flat |= plan_fields(value) if name == "plan" else {name: value}
        return {**flat, "weights": self.plan.weights}


def plan_fields(plan: ExecutionPlan) -> dict[str, Any]:
    """Name what a plan is in the rows and the JSON of prism-sim; devices that take no part don't count."""
    counts = {name: getattr(plan, name) for name in ("replicas", "stages", "microbatch")}
    new = {name: count for name, count in counts.items() if count not in (1, None)}  # other plans' rows are as before
    return {"mode": plan.mode.value, "segments": plan.segments, "wire": plan.wire, "devices": plan.ranks, **new}


def summary(profile: CalibratedProfile, cost: CostModel, point: Point) -> Summary:
    """Summarise the trace of a point."""
    return summarise(simulated(profile, cost, point))


def simulated(profile: CalibratedProfile, cost: CostModel, point: Point) -> Trace:
    """Simulate one batch of a point in its steady state."""
    backend, work = _run_of(profile, cost, point)
    return backend.run(point.plan, work)


def latency_ms(profile: CalibratedProfile, cost: CostModel, point: Point) -> float:
    """Simulate the latency of a point, without the trace behind `summary`."""
    backend, work = _run_of(profile, cost, point)
    return backend.times_ms(point.plan, work)[0]


def samples_per_s(profile: CalibratedProfile, cost: CostModel, point: Point) -> float:
    """Simulate what a stream of batches sustains; parts do on one batch together, so theirs come one after another."""
    if point.plan.replicas * point.plan.stages == 1:
        return 1e3 * point.batch / latency_ms(profile, cost, point)
    backend, work = _run_of(profile, cost, point)
    return backend.stream_per_s(point.plan, msgspec.structs.replace(work, warmups=FILLED, batches=COUNTED))


def _run_of(profile: CalibratedProfile, cost: CostModel, point: Point) -> tuple[SimBackend, Workload]:
    """Set up the backend of a point. Where clocks move, an unmeasured batch runs first."""
    ranks = point.plan.ranks
    graph = graph_of(point.edges, ranks) if point.edges else None
    machines = identical(profile, cost, ranks, point.link, kind=point.topology, graph=graph)
    if point.speeds:
        speeds = [*point.speeds, *[1.0] * ranks][:ranks]
        machines = msgspec.structs.replace(machines, costs=tuple(cost.at_speed(speed) for speed in speeds))
    work = Workload(model=point.model, batch=point.batch, warmups=int(cost.clock.slowdown > 0), seed=point.seed)
    return SimBackend(machines, warmups=False), work


def latencies(profile: CalibratedProfile, costs: Sequence[CostModel], point: Point) -> NDArray[np.float64]:
    """Simulate the milliseconds of a point for each cost model, [costs]."""
    return np.array([latency_ms(profile, cost, point) for cost in costs])


def predict(
    profile: CalibratedProfile, point: Point, costs: Sequence[CostModel] = (), seed: int = 0
) -> PointPrediction:
    """Predict a point. costs: draws of the profile's terms, for the interval. Raises PlanError."""
    nominal = summary(profile, profile.model(), point)
    plan, outside = point.plan, outside_of(profile, point)
    interval = None
    if costs:
        drawn = latencies(profile, costs, point) * scatter(profile, len(costs), point, seed)
        low, high = quantiles(drawn, *INTERVAL)
        interval = (min(low, nominal.latency_ms.p50), max(high, nominal.latency_ms.p50))
    rate = point.link.rate_bps
    return PointPrediction(
        model=point.model.name,
        tokens=point.model.tokens,
        plan=plan,
        batch=point.batch,
        bandwidth_mbps=None if rate is None or plan.ranks == 1 else rate / 1e6,
        latency_ms=nominal.latency_ms.p50,
        interval_ms=interval,
        per_sample_ms=nominal.latency_ms.p50 / point.batch,
        samples_per_s=samples_per_s(profile, profile.model(), point),
        energy_j=nominal.energy.joules if nominal.energy else None,
        memory_bytes=memory_bytes(point.model, plan, point.batch),
        split_ms=nominal.split_ms,
        tag="extrapolated" if outside else "calibrated",
        outside=tuple(outside),
        profile=profile.name,
    )


def outside_of(profile: CalibratedProfile, point: Point) -> list[str]:
    """List in what a point differs from the data behind the profile."""
    differences = profile.outside(point.features())
    if any(speed != 1.0 for speed in point.speeds[: point.plan.ranks]):
        differences.append("devices of other speeds (calibrated: one kind)")
    if point.plan.ranks > 1:
        taken, plan = profile.taken, point.plan
        if plan.wire not in taken.wires:
            differences.append(f"wire {plan.wire} (calibrated {', '.join(taken.wires)})")
        ring = script(point.model, plan, point.batch).ring
        for name in ("replicas", "stages"):
            if getattr(plan, name) > 1 and not getattr(taken, name):
                differences.append(f"{name} {getattr(plan, name)} (never calibrated)")
        if plan.parts > 1 and plan.overlap != taken.overlap:
            differences.append(f"overlap {plan.overlap} (calibrated {taken.overlap})")
        if plan.parts > 1 and ring != (taken.collective == "ring") and taken.collective != "auto":
            differences.append(f"collective {'ring' if ring else 'mesh'} (calibrated {taken.collective})")
        if point.link.latency_s or point.link.loss or point.link.jitter_s:
            differences.append("added latency, jitter or loss (never calibrated)")
        if point.topology != "access-point" or point.edges:
            kind = "custom" if point.edges else point.topology
            differences.append(f"topology {kind} (calibrated access-point)")
    return differences


def scatter(profile: CalibratedProfile, count: int, point: Point, seed: int) -> NDArray[np.float64]:
    """Draw factors for what the terms don't explain, [count]: log-normal, independent between plans."""
    spread = profile.residual_log_sd
    salt = [seed, *msgspec.json.encode(point.plan.hashed())]
    return np.exp(spread * np.random.default_rng(salt).standard_normal(count))


def plan_of(profile: CalibratedProfile, mode: Mode, devices: int, **fields: Any) -> ExecutionPlan:
    """Make a plan executed as those behind the profile's data, unless a field says otherwise."""
    if mode is Mode.LOCAL:
        return LOCAL
    taken = profile.taken
    defaults = {"overlap": taken.overlap, "embed": taken.embed, "collective": taken.collective}
    given = {name: value for name, value in fields.items() if value is not None}
    if not mode.averages:
        given.pop("segments", None)
    return ExecutionPlan(mode=mode, devices=devices, **{**defaults, **given})


class Groups(NamedTuple):
    """Groups of devices that share the batch or the blocks, and the samples that they compute together."""

    replicas: int = 1
    stages: int = 1
    microbatch: int | None = None

    @property
    def size(self) -> int:
        """Groups in all."""
        return self.replicas * self.stages

    def plan(self, profile: CalibratedProfile, mode: Mode, devices: int, **fields: Any) -> ExecutionPlan:
        """Make a plan of these groups, as `plan_of` makes one of parts alone. Raises PlanError.

        What says how parts exchange counts where there are parts, and a codec also between stages.
        """
        if self.size == 1:
            return plan_of(profile, mode, devices, **fields)
        given = {name: value for name, value in fields.items() if value is not None}
        if devices == self.size:
            counts = ("weights", "wire") if self.stages > 1 else ("weights",)
            given = {name: given[name] for name in counts if name in given}
            return ExecutionPlan(mode=Mode.LOCAL, devices=devices, **self._asdict(), **given)
        if not mode.averages:
            given.pop("segments", None)
        overlap = given.pop("overlap", profile.taken.overlap)
        return ExecutionPlan(mode=mode, devices=devices, overlap=overlap, **self._asdict(), **given)


def as_taken(profile: CalibratedProfile, plan: ExecutionPlan) -> ExecutionPlan:
    """The plan with parts that exchange as those behind the profile's data."""
    groups = Groups(plan.replicas, plan.stages, plan.microbatch)
    return groups.plan(profile, plan.mode, plan.devices, segments=plan.segments, wire=plan.wire)


PointAxis = Literal["bandwidth", "batch", "devices", "tokens", "segments"]
AXES: tuple[PointAxis, ...] = ("bandwidth", "batch", "devices", "tokens", "segments")


def with_tokens(model: ModelSpec, tokens: int) -> ModelSpec:
    """Change a model's number of tokens. Raises ConfigError where that leaves none beside the prefix tokens."""
    if tokens <= model.prefix_tokens:
        raise ConfigError(f"tokens {tokens}: {model.name} has {model.prefix_tokens} prefix tokens; use more")
    return msgspec.structs.replace(model, tokens=tokens)


def at(point: Point, axis: PointAxis, value: float) -> Point:
    """Change one quantity of a point: Mbps, samples, devices, tokens or L. A local plan keeps devices and segments."""
    replace = msgspec.structs.replace
    if axis == "bandwidth":
        return replace(point, link=replace(point.link, rate_bps=value * 1e6))
    if axis == "batch":
        return replace(point, batch=int(value))
    if axis == "tokens":
        return replace(point, model=with_tokens(point.model, int(value)))
    if point.plan.ranks == 1:
        return point
    if axis == "segments":
        return replace(point, plan=replace(point.plan, segments=int(value)))
    return replace(point, plan=on_devices(point.plan, int(value)))


def on_devices(plan: ExecutionPlan, devices: int) -> ExecutionPlan:
    """Change the number of devices. Pure replicas and stages grow with it; else the parts do. Raises PlanError."""
    fields: dict[str, Any] = {"devices": devices}
    if plan.parts == 1 and plan.stages == 1:
        fields["replicas"] = devices
    elif plan.parts == 1 and plan.replicas == 1:
        fields["stages"] = devices
    return msgspec.structs.replace(plan, **fields)
