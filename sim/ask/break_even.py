"""Find where a plan breaks even with one device or with another plan, and which terms the answer depends on."""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from prism.cost import CalibratedProfile, CostModel, Tag
from prism.errors import ConfigError, PlanError
from prism.perfmap.crossover import crossing
from prism.plan import LOCAL, ExecutionPlan
from prism.trace.quantiles import quantiles
from sim.ask.bisection import bisected
from sim.ask.point import INTERVAL, Point, PointAxis, at, latencies, latency_ms, outside_of, scatter

Class = Literal["at", "always", "never"]
RATES_MBPS = tuple(float(round(10 ** (1 + k / 8), 3)) for k in range(25))  # 10 Mbps to 10 Gbps
WHOLE: dict[str, tuple[float, ...]] = {"batch": (1, 2, 3, 4, 6, 8, 12, 16, 24, 32), "devices": (2, 3, 4, 6, 8, 12, 16)}


class PlanBreakEven(msgspec.Struct, frozen=True, kw_only=True):
    """Break-even of a distributed plan with another one, which mostly is local, along `over`.

    kind: "at" a value, or distributed "always" or "never" wins over all of `values`.
    value: the first whole number at which the winner has changed, or the Mbps of the break-even. wins: on which side
    of it distributed wins. interval: 90 % of the draws; a draw that breaks even outside of `values` counts as their
    end.
    p_distributed_wins: over the draws, at the point itself.
    """

    over: PointAxis
    kind: Class
    value: float | None
    wins: Literal["above", "below", "everywhere", "nowhere"]
    interval: tuple[float, float] | None
    p_distributed_wins: float
    tag: Tag
    outside: tuple[str, ...]
    values: tuple[float, ...]
    local_ms: tuple[float, ...]
    distributed_ms: tuple[float, ...]
    plan: ExecutionPlan
    against: ExecutionPlan = LOCAL


def grid_of(axis: PointAxis, point: Point) -> tuple[float, ...]:
    """Choose the default values of an axis. Raises ConfigError where the plan has none."""
    if axis == "bandwidth":
        return RATES_MBPS
    if axis == "segments":
        if not point.plan.mode.averages:
            raise ConfigError("--over segments needs --mode segment_means; full exchange has no segments")
        most = min(point.plan.partition(point.model.tokens).sizes)
        return tuple(sorted({float(round(v)) for v in np.geomspace(1, most, 12)}))
    if axis == "tokens":
        least = max(16, (point.plan.segments or 1) * point.plan.devices)
        return tuple(sorted({float(round(v)) for v in np.geomspace(least, max(4096, 2 * least), 12)}))
    return WHOLE[axis]


def find_break_even(
    profile: CalibratedProfile,
    point: Point,
    axis: PointAxis,
    values: Sequence[float] = (),
    draws: int = 32,
    seed: int = 0,
    against: ExecutionPlan = LOCAL,
) -> PlanBreakEven:
    """Find where point.plan becomes as fast as another plan. Raises PlanError, ConfigError."""
    if point.plan.ranks == 1:
        raise PlanError("a crossover compares a distributed plan with another; use --devices 2 or more")
    if point.plan == against:
        raise PlanError("a crossover compares two plans, and both are the same; choose another with --against")
    grid = tuple(sorted(values or _possible(grid_of(axis, point), axis, (point.plan, against))))
    pair = _Pair(point, msgspec.structs.replace(point, plan=against))
    nominal = profile.model()
    ours, theirs = _curves(profile, [nominal], pair, axis, grid)
    kind, place, _ = crossing(grid, list(ours[0] / theirs[0] - 1.0))

    def excess(value: float) -> float:
        distributed, local = _curves(profile, [nominal], pair, axis, [value])
        return float(distributed[0, 0] / local[0, 0]) - 1.0

    value = None if place is None else _refined(excess, axis, grid, ours[0] / theirs[0] - 1.0, place)
    places, wins_here = _drawn(profile, pair, axis, grid, draws, seed)
    covered = grid if value is None else [value]  # always and never hold for the whole grid
    outside = {line: None for v in covered for plan in pair for line in outside_of(profile, at(plan, axis, v))}
    return PlanBreakEven(
        over=axis,
        kind=kind,
        value=value,
        wins=_side(kind, ours[0] / theirs[0]),
        interval=_interval(places, value) if kind == "at" else None,
        p_distributed_wins=wins_here,
        tag="extrapolated" if outside else "calibrated",
        outside=tuple(outside),
        values=grid,
        local_ms=tuple(map(float, theirs[0])),
        distributed_ms=tuple(map(float, ours[0])),
        plan=point.plan,
        against=against,
    )


class _Pair(NamedTuple):
    """A plan's point, and that of the plan that it is compared with."""

    ours: Point
    theirs: Point


def _possible(grid: Sequence[float], axis: PointAxis, plans: Sequence[ExecutionPlan]) -> tuple[float, ...]:
    """The values at which both plans can run: a batch needs a sample for each replica."""
    least = max(plan.replicas for plan in plans) if axis == "batch" else 0
    return tuple(value for value in grid if value >= least)


def _curves(
    profile: CalibratedProfile, costs: Sequence[CostModel], pair: _Pair, axis: PointAxis, grid: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Simulate both plans: milliseconds, each [costs, values]. What the axis leaves alone is simulated once."""
    ours = np.array([latencies(profile, costs, at(pair.ours, axis, value)) for value in grid]).T
    if axis in ("bandwidth", "devices", "segments") and pair.theirs.plan.ranks == 1:
        theirs = np.repeat(latencies(profile, costs, pair.theirs)[:, None], len(grid), axis=1)
    else:
        theirs = np.array([latencies(profile, costs, at(pair.theirs, axis, value)) for value in grid]).T
    return ours, theirs


def _refined(
    excess: Callable[[float], float],
    axis: PointAxis,
    grid: Sequence[float],
    measured: NDArray[np.float64],
    place: float,
) -> float:
    """Narrow down the change between the grid's neighbours of `place`. measured: excess at the grid, [values]."""
    upper = next(k for k, value in enumerate(grid) if value >= place and k > 0)
    wins_low = bool(measured[upper - 1] < 0)
    return bisected(
        grid[upper - 1], grid[upper], lambda value: (excess(value) < 0) == wins_low, whole=axis != "bandwidth"
    )


def _drawn(
    profile: CalibratedProfile, pair: _Pair, axis: PointAxis, grid: Sequence[float], draws: int, seed: int
) -> tuple[list[float], float]:
    """Find break-evens over draws of the terms, and the share of draws in which the plan wins at the point.

    The same draws serve both plans, so that what they share cancels out.
    """
    costs = profile.draws(draws, seed)
    ours, theirs = _curves(profile, costs, pair, axis, grid)
    noise = scatter(profile, draws, pair.ours, seed) / scatter(profile, draws, pair.theirs, seed)
    ratios = ours / theirs * noise[:, None]
    places: list[float] = []
    for row in ratios:
        kind, place, _ = crossing(grid, list(row - 1.0))
        places.append(place if place is not None else grid[0] if kind == "always" else grid[-1])
    here = latencies(profile, costs, pair.ours) / latencies(profile, costs, pair.theirs) * noise
    return places, float(np.mean(here < 1.0))


def _interval(places: Sequence[float], value: float | None) -> tuple[float, float] | None:
    if value is None:
        return None
    low, high = quantiles(places, *INTERVAL)
    return min(low, value), max(high, value)


def _side(kind: Class, ratio: NDArray[np.float64]) -> Literal["above", "below", "everywhere", "nowhere"]:
    if kind == "at":
        return "above" if ratio[-1] < 1 else "below"
    return "everywhere" if kind == "always" else "nowhere"


class Influence(msgspec.Struct, frozen=True, kw_only=True):
    """The influence of one term on a point: the change of latency, and of the lead over local, per standard deviation.

    step: that deviation, of the logarithm; 0.1 where the profile has none. flips: whether it changes the winner.
    """

    term: str
    value: float
    step: float
    origin: str
    latency_change: float
    lead_change: float
    flips: bool


def sensitivity(profile: CalibratedProfile, point: Point) -> tuple[Influence, ...]:
    """Compute every term's influence on point.plan, the largest on the lead over local first."""
    local = msgspec.structs.replace(point, plan=LOCAL)
    values = profile.values()

    def pair(changed: dict[str, float]) -> tuple[float, float]:
        cost = CostModel(changed)
        return tuple(latency_ms(profile, cost, p) for p in (point, local))  # type: ignore[return-value]

    ours, theirs = pair(values)
    influences = []
    for index, term in enumerate(profile.terms):
        step = math.sqrt(profile.covariance[index][index]) if profile.covariance else 0.1
        moved, moved_local = pair({**values, term.name: term.value * math.exp(step)})
        lead, moved_lead = ours / theirs, moved / moved_local
        influences.append(
            Influence(
                term=term.name,
                value=term.value,
                step=step,
                origin=term.origin,
                latency_change=moved / ours - 1.0,
                lead_change=moved_lead / lead - 1.0,
                flips=(lead < 1) != (moved_lead < 1),
            )
        )
    return tuple(sorted(influences, key=lambda influence: -abs(influence.lead_change)))
