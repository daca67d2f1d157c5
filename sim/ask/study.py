"""Solve studies: a grid of points, an objective, constraints, a Pareto front and inverse questions."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import msgspec

from prism.codecs import Wire
from prism.cost import CalibratedProfile, load_profile
from prism.errors import ConfigError, PlanError
from prism.link import LinkSpec
from prism.plan import LOCAL, Mode
from prism.spec import ModelSpec
from prism.units import parse_rate, parse_seconds, parse_share
from sim.ask.bisection import bisected
from sim.ask.memory_limit import REASONS, memory_limit, that_fit
from sim.ask.point import Groups, Point, PointAxis, PointPrediction, at, predict, with_tokens
from sim.ask.study_file import Inverse, Study, StudyGrid, StudyObjective
from sim.engine.topology import Topology

CHUNK = 64  # cells of one task: about 100 ms
RATES_MBPS = (0.1, 100_000.0)  # between which the least bandwidth is looked for
ASKED: dict[str, PointAxis] = {
    "least_bandwidth": "bandwidth",
    "fewest_devices": "devices",
    "largest_segments": "segments",
}
MOST_CELLS = 1_000_000


class InverseAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to an inverse question; value is None where nothing in the range keeps the latency."""

    find: str
    value: float | None
    latency_ms: float | None
    tag: str
    note: str = ""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """A solved study.

    cells: in the order of the grid. feasible: indices of those that keep the constraints. best: of these, by the
    objective. front: of these, those that no other beats in both latency per sample and energy.
    left_out: why other combinations can't be. note: why no cell keeps the constraints, where none does.
    """

    cells: tuple[PointPrediction, ...]
    feasible: tuple[int, ...]
    best: int | None
    front: tuple[int, ...]
    answers: tuple[InverseAnswer, ...]
    left_out: tuple[str, ...]
    note: str = ""

    def flat(self) -> dict[str, Any]:
        """Write the result as --json has it."""
        return {**msgspec.structs.asdict(self), "cells": [cell.flat() for cell in self.cells]}


class Combination(NamedTuple):
    """One combination of the values of a grid: as StudyGrid, with one value each; None leaves the default."""

    model: ModelSpec
    mode: Mode
    batch: int
    devices: int
    segments: int
    bandwidth: str
    tokens: int | None = None
    wire: Wire = "fp32"
    latency: str = "0ms"
    jitter: str = "0ms"
    loss: str = "0%"
    topology: Topology = "access-point"
    split: str = "even"
    overlap: bool | None = None
    collective: str | None = None
    replicas: int = 1
    stages: int = 1
    microbatch: int | None = None

    @property
    def groups(self) -> Groups:
        """The groups of devices. A microbatch is of several groups alone."""
        several = self.replicas * self.stages > 1
        return Groups(self.replicas, self.stages, self.microbatch if several else None)

    @property
    def misfit(self) -> str:
        """Why the counts make no plan together; other values of the grid do."""
        size = self.groups.size
        if size == 1 or (self.devices % size == 0 and (self.devices == size) == (self.mode is Mode.LOCAL)):
            return ""
        return (
            f"{self.replicas} replicas of {self.stages} stages on {self.devices} devices, mode {self.mode.value}: "
            f"their product has to divide the devices, and mode local is for one part each; change devices or mode"
        )

    def link(self) -> LinkSpec:
        """Read the link's texts. Raises ConfigError."""
        return LinkSpec(
            kind="testbed",
            rate_bps=parse_rate(self.bandwidth),
            latency_s=parse_seconds(self.latency),
            jitter_s=parse_seconds(self.jitter),
            loss=parse_share(self.loss),
        )


def points(study: Study, models: Sequence[ModelSpec], profile: CalibratedProfile) -> tuple[list[Point], list[str]]:
    """List the grid's points, each once, and why other combinations can't be.

    Raises ConfigError for a grid without points, or with too many.
    """
    axes = _axes(study.grid, models)
    size = math.prod(len(axis) for axis in axes.values())
    if size > MOST_CELLS:
        raise ConfigError(f"the grid has {size} cells, the limit is {MOST_CELLS}; give fewer values")
    chosen: dict[Point, None] = {}
    left_out: dict[str, None] = {}
    misfits: dict[str, None] = {}
    for values in itertools.product(*axes.values()):
        combination = Combination(**dict(zip(axes, values, strict=True)))
        if combination.misfit:
            misfits[combination.misfit] = None
            continue
        try:
            point = point_of(profile, combination, study.speeds, study.seed)
            if study.links and point.plan.ranks > 1:
                link = msgspec.structs.replace(point.link, rate_bps=None, latency_s=0.0)
                point = msgspec.structs.replace(point, edges=study.links, topology="switch", link=link)
            chosen[point] = None
        except PlanError as error:
            left_out[str(error)] = None
    if not chosen:
        raise ConfigError(f"no cell of the grid can be: {'; '.join([*left_out, *misfits][:REASONS])}")
    fitting, too_large = that_fit(chosen, memory_limit(study.memory, profile))
    return fitting, [*left_out, *too_large]


def _axes(grid: StudyGrid, models: Sequence[ModelSpec]) -> dict[str, Sequence[Any]]:
    """List the values of each field of Combination, in the order in which the grid is walked."""
    optional = {"tokens", "overlap", "collective", "microbatch"}
    names = ["tokens", "mode", "batch", "devices", "segments", "wire", "bandwidth", "latency", "jitter", "loss"]
    names += ["topology", "split", "overlap", "collective", "replicas", "stages", "microbatch"]
    values = {name: getattr(grid, name) or ((None,) if name in optional else ()) for name in names}
    return {"model": models, **values}


def point_of(
    profile: CalibratedProfile, combination: Combination, speeds: tuple[float, ...] = (), seed: int = 0
) -> Point:
    """Make the point of a combination. Raises PlanError, ConfigError where it can't be."""
    model, mode, batch = combination.model, combination.mode, combination.batch
    if combination.tokens is not None:
        model = with_tokens(model, combination.tokens)
    groups = combination.groups
    if mode is Mode.LOCAL and groups.size == 1:  # of all else only the leader's speed matters
        return Point(model=model, plan=LOCAL, batch=batch, link=LinkSpec(), speeds=speeds, seed=seed)
    plan = groups.plan(
        profile,
        mode,
        combination.devices,
        segments=combination.segments,
        wire=combination.wire,
        overlap=combination.overlap,
        collective=combination.collective,
        weights=speeds[: combination.devices] if combination.split == "speed" else None,
    )
    plan.check(model, batch)
    return Point(
        model=model,
        plan=plan,
        batch=batch,
        link=combination.link(),
        topology=combination.topology,
        speeds=speeds,
        seed=seed,
    )


def cells_of(profile: CalibratedProfile, draws: int, seed: int, chunk: Sequence[Point]) -> list[PointPrediction]:
    """Predict some points: one task of a pool."""
    costs = profile.draws(draws, seed) if draws else []
    return [predict(profile, point, costs, seed) for point in chunk]


Mapper = Callable[
    [Callable[[Sequence[Point]], list[PointPrediction]], list[list[Point]]], Iterator[list[PointPrediction]]
]


def over_processes(processes: int) -> Mapper:
    """Run chunks on a pool of local processes; with one process or one chunk, in this one."""

    def run(task: Any, chunks: list[list[Point]]) -> Iterator[list[PointPrediction]]:
        if processes <= 1 or len(chunks) < 2:
            yield from map(task, chunks)
            return
        with ProcessPoolExecutor(processes) as pool:
            yield from pool.map(task, chunks)

    return run


def over_ray(address: str | None = None) -> Mapper:
    """Run chunks on a Ray cluster. Raises ConfigError where Ray isn't installed."""
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "engine ray: Ray is not installed; pip install 'prism-edge[ray]', or use --engine pool"
        ) from None

    def run(task: Any, chunks: list[list[Point]]) -> Iterator[list[PointPrediction]]:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
        remote = ray.remote(task.func)
        head = [ray.put(argument) for argument in task.args]
        yield from ray.get([remote.remote(*head, chunk) for chunk in chunks])

    return run


def solve(study: Study, models: Sequence[ModelSpec], run: Mapper) -> Result:
    """Predict all cells, choose the best that keeps the constraints, and answer the inverse questions."""
    profile = load_profile(study.profile)
    todo, left_out = points(study, models, profile)
    chunks = [todo[k : k + CHUNK] for k in range(0, len(todo), CHUNK)]
    task = partial(cells_of, profile, study.draws, study.seed)
    cells = tuple(cell for chunk in run(task, chunks) for cell in chunk)
    feasible = tuple(k for k, cell in enumerate(cells) if study.constraints.holds(cell))
    best = min(feasible, key=lambda k: _rank(cells[k], study.objective), default=None)
    answers = tuple(
        answer_inverse(profile, model, question, study.speeds) for model in models for question in study.inverse
    )
    return Result(
        cells=cells,
        feasible=feasible,
        best=best,
        front=_front(cells, feasible),
        answers=answers,
        left_out=tuple(left_out),
        note="" if feasible else study.constraints.conflict(cells),
    )


def _rank(cell: PointPrediction, objective: StudyObjective) -> float:
    if objective == "latency":
        return cell.per_sample_ms
    return math.inf if cell.energy_j is None else cell.energy_j / cell.batch


def _front(cells: Sequence[PointPrediction], feasible: Sequence[int]) -> tuple[int, ...]:
    """List the cells that no other beats in both, by latency per sample; without joules only the fastest."""
    order = sorted(feasible, key=lambda k: (_rank(cells[k], "latency"), _rank(cells[k], "energy")))
    front: list[int] = []
    for k in order:
        if not front or _rank(cells[k], "energy") < _rank(cells[front[-1]], "energy"):
            front.append(k)
    return tuple(front)


def answer_inverse(
    profile: CalibratedProfile, model: ModelSpec, question: Inverse, speeds: tuple[float, ...] = ()
) -> InverseAnswer:
    """Bisect over the bandwidth, or try every number of devices or segments in turn. Raises ConfigError for local."""
    combination = Combination(
        model=model,
        mode=question.mode,
        batch=question.batch,
        devices=question.devices,
        replicas=question.replicas,
        stages=question.stages,
        segments=question.segments,
        bandwidth=question.bandwidth,
    )
    if combination.misfit:
        raise ConfigError(f"inverse {question.find}: {combination.misfit}")
    point = point_of(profile, combination, speeds)
    if point.plan.ranks == 1:
        raise ConfigError(f"inverse {question.find}: mode local uses no link and one device; ask of another mode")
    axis = ASKED[question.find]

    def quick_enough(value: float) -> PointPrediction | None:
        cell = predict(profile, at(point, axis, value))
        return cell if cell.latency_ms <= question.max_latency_ms else None

    answer = _least_rate(quick_enough) if axis == "bandwidth" else _first(quick_enough, axis, point)
    if answer is None:
        return InverseAnswer(
            find=question.find,
            value=None,
            latency_ms=None,
            tag="",
            note=f"nothing keeps {question.max_latency_ms:g} ms",
        )
    value, cell = answer
    return InverseAnswer(find=question.find, value=value, latency_ms=cell.latency_ms, tag=cell.tag)


def _least_rate(quick_enough: Callable[[float], PointPrediction | None]) -> tuple[float, PointPrediction] | None:
    """Bisect over the Mbps; None where the highest rate doesn't do."""
    low, high = RATES_MBPS
    if quick_enough(high) is None:
        return None
    rate = bisected(low, high, lambda mbps: quick_enough(mbps) is None)
    cell = quick_enough(rate)
    return None if cell is None else (rate, cell)


def _first(
    quick_enough: Callable[[float], PointPrediction | None], axis: PointAxis, point: Point
) -> tuple[float, PointPrediction] | None:
    tokens = point.model.tokens
    values: Sequence[int] = range(2, min(16, tokens) + 1)
    if axis == "segments":
        values = range(min(point.plan.partition(tokens).sizes), 0, -1)
    for value in values:
        try:
            cell = quick_enough(value)
        except PlanError:
            continue
        if cell is not None:
            return float(value), cell
    return None
