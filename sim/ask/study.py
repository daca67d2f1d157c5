"""Studies: a grid over everything, an objective, constraints, a Pareto front and inverse questions."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import msgspec

from prism.codecs import Wire
from prism.cost import CalibratedProfile, load_profile
from prism.errors import ConfigError, PlanError
from prism.plan import ExecutionPlan, Mode
from prism.spec import LinkSpec, ModelSpec
from prism.units import parse_rate, parse_seconds, parse_share
from sim.ask.point import Axis, Point, Prediction, at, plan_of, predict, with_tokens
from sim.ask.study_file import Inverse, Objective, Study
from sim.engine.topology import Topology

CHUNK = 64  # cells of one task: about 100 ms
MOST_CELLS = 1_000_000


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """An inverse question with its answer; value is null where nothing in the range keeps the latency."""

    find: str
    value: float | None
    latency_ms: float | None
    tag: str
    note: str = ""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Cells in the order of the grid; indices of those that keep the constraints, of the best of them by the
    objective, and of the front: those that no other beats in latency per sample and energy both.
    left_out: combinations that can't be, with the reason. note: why no cell keeps the constraints, where none does."""

    cells: tuple[Prediction, ...]
    feasible: tuple[int, ...]
    best: int | None
    front: tuple[int, ...]
    answers: tuple[Answer, ...]
    left_out: tuple[str, ...]
    note: str = ""


def points(study: Study, models: Sequence[ModelSpec], profile: CalibratedProfile) -> tuple[list[Point], list[str]]:
    """The grid's points, each once, and what can't be. Raises ConfigError for an empty or endless grid."""
    grid = study.grid
    axes: tuple[Sequence[Any], ...] = (
        models,
        grid.tokens or (None,),
        grid.mode,
        grid.batch,
        grid.devices,
        grid.segments,
        grid.wire,
        grid.bandwidth,
        grid.latency,
        grid.jitter,
        grid.loss,
        grid.topology,
        grid.split,
        grid.overlap or (None,),
        grid.collective or (None,),
    )
    size = math.prod(len(axis) for axis in axes)
    if size > MOST_CELLS:
        raise ConfigError(f"the grid has {size} cells, the limit is {MOST_CELLS}; give fewer values")
    found: dict[Point, None] = {}
    left_out: dict[str, None] = {}
    for values in itertools.product(*axes):
        try:
            point = _point(profile, study.seed, study.speeds, *values)
            if study.links and point.plan.ranks > 1:
                link = msgspec.structs.replace(point.link, rate_bps=None, latency_s=0.0)
                point = msgspec.structs.replace(point, edges=study.links, topology="switch", link=link)
            found[point] = None
        except PlanError as error:
            left_out[str(error)] = None
    if not found:
        raise ConfigError(f"no cell of the grid can be: {next(iter(left_out))}")
    return list(found), list(left_out)


def _point(
    profile: CalibratedProfile,
    seed: int,
    speeds: tuple[float, ...],
    model: ModelSpec,
    tokens: int | None,
    mode: Mode,
    batch: int,
    devices: int,
    segments: int,
    wire: Wire,
    bandwidth: str,
    latency: str,
    jitter: str,
    loss: str,
    topology: Topology,
    split: str,
    overlap: bool | None,
    collective: Any,
) -> Point:
    if tokens is not None:
        model = with_tokens(model, tokens)
    if mode is Mode.LOCAL:  # of all else only the terminal's speed plays a part
        plan = ExecutionPlan(mode=mode)
        return Point(model=model, plan=plan, batch=batch, link=LinkSpec(), speeds=speeds, seed=seed)
    plan = plan_of(
        profile,
        mode,
        devices,
        segments=segments,
        wire=wire,
        overlap=overlap,
        collective=collective,
        weights=speeds[:devices] if split == "speed" else None,
    )
    plan.partition(model.tokens)
    link = LinkSpec(
        kind="testbed",
        rate_bps=parse_rate(bandwidth),
        latency_s=parse_seconds(latency),
        jitter_s=parse_seconds(jitter),
        loss=parse_share(loss),
    )
    return Point(model=model, plan=plan, batch=batch, link=link, topology=topology, speeds=speeds, seed=seed)


def cells_of(profile: CalibratedProfile, draws: int, seed: int, chunk: Sequence[Point]) -> list[Prediction]:
    """Predictions of some points: one task of a pool."""
    costs = profile.draws(draws, seed) if draws else []
    return [predict(profile, point, costs, seed) for point in chunk]


Mapper = Callable[[Callable[[Sequence[Point]], list[Prediction]], list[list[Point]]], Iterator[list[Prediction]]]


def over_processes(processes: int) -> Mapper:
    """Chunks on a pool of processes of this machine; few chunks or one process stay in this one."""

    def run(task: Any, chunks: list[list[Point]]) -> Iterator[list[Prediction]]:
        if processes <= 1 or len(chunks) < 2:
            yield from map(task, chunks)
            return
        with ProcessPoolExecutor(processes) as pool:
            yield from pool.map(task, chunks)

    return run


def over_ray(address: str | None = None) -> Mapper:
    """Chunks on a Ray cluster. Raises ConfigError where Ray isn't installed."""
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "engine ray: Ray is not installed; pip install 'prism-edge[ray]', or use --engine pool"
        ) from None

    def run(task: Any, chunks: list[list[Point]]) -> Iterator[list[Prediction]]:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
        remote = ray.remote(task.func)
        head = [ray.put(argument) for argument in task.args]
        yield from ray.get([remote.remote(*head, chunk) for chunk in chunks])

    return run


def solve(study: Study, models: Sequence[ModelSpec], run: Mapper) -> Result:
    """All cells, what is best among those that keep the constraints, and the inverse questions."""
    profile = load_profile(study.profile)
    todo, left_out = points(study, models, profile)
    chunks = [todo[k : k + CHUNK] for k in range(0, len(todo), CHUNK)]
    task = partial(cells_of, profile, study.draws, study.seed)
    cells = tuple(cell for chunk in run(task, chunks) for cell in chunk)
    feasible = tuple(k for k, cell in enumerate(cells) if study.constraints.holds(cell))
    best = min(feasible, key=lambda k: _rank(cells[k], study.objective), default=None)
    answers = tuple(answer(profile, model, question, study.speeds) for model in models for question in study.inverse)
    return Result(
        cells=cells,
        feasible=feasible,
        best=best,
        front=_front(cells, feasible),
        answers=answers,
        left_out=tuple(left_out),
        note="" if feasible else study.constraints.conflict(cells),
    )


def _rank(cell: Prediction, objective: Objective) -> float:
    if objective == "latency":
        return cell.per_sample_ms
    return math.inf if cell.energy_j is None else cell.energy_j / cell.batch


def _front(cells: Sequence[Prediction], feasible: Sequence[int]) -> tuple[int, ...]:
    """Indices of cells that no other beats in both, by latency per sample; without joules only the fastest."""
    order = sorted(feasible, key=lambda k: (_rank(cells[k], "latency"), _rank(cells[k], "energy")))
    front: list[int] = []
    for k in order:
        if not front or _rank(cells[k], "energy") < _rank(cells[front[-1]], "energy"):
            front.append(k)
    return tuple(front)


def answer(profile: CalibratedProfile, model: ModelSpec, question: Inverse, speeds: tuple[float, ...] = ()) -> Answer:
    """By bisection over the bandwidth, or by trying every number of devices or segments in turn."""
    point = _point(
        profile,
        0,
        speeds,
        model,
        None,
        question.mode,
        question.batch,
        question.devices,
        question.segments,
        "fp32",
        question.bandwidth,
        "0ms",
        "0ms",
        "0%",
        "access-point",
        "even",
        None,
        None,
    )
    if point.plan.ranks == 1:
        raise ConfigError(f"inverse {question.find}: mode local uses no link and one device; ask of another mode")
    axis: Axis = {"least_bandwidth": "bandwidth", "fewest_devices": "devices", "largest_segments": "segments"}[
        question.find
    ]  # type: ignore[assignment]

    def kept(value: float) -> Prediction | None:
        cell = predict(profile, at(point, axis, value))
        return cell if cell.latency_ms <= question.max_latency_ms else None

    found = _least_rate(kept) if axis == "bandwidth" else _first(kept, axis, point)
    if found is None:
        return Answer(
            find=question.find,
            value=None,
            latency_ms=None,
            tag="",
            note=f"nothing keeps {question.max_latency_ms:g} ms",
        )
    value, cell = found
    return Answer(find=question.find, value=value, latency_ms=cell.latency_ms, tag=cell.tag)


def _least_rate(kept: Callable[[float], Prediction | None]) -> tuple[float, Prediction] | None:
    low, high = 0.1, 100_000.0  # Mbps
    best = kept(high)
    if best is None:
        return None
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        cell = kept(middle)
        if cell is None:
            low = middle
        else:
            high, best = middle, cell
    return high, best


def _first(kept: Callable[[float], Prediction | None], axis: Axis, point: Point) -> tuple[float, Prediction] | None:
    tokens = point.model.tokens
    values: Sequence[int] = range(2, min(16, tokens) + 1)
    if axis == "segments":
        values = range(min(point.plan.partition(tokens).sizes), 0, -1)
    for value in values:
        try:
            cell = kept(value)
        except PlanError:
            continue
        if cell is not None:
            return float(value), cell
    return None
