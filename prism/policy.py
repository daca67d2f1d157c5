"""Which plan a batch runs with: pure functions of what is known, shared by simulator, hardware and replay.

Nothing here keeps anything, reads a clock or knows where an observation comes from: the state goes in and comes out
with the decision, so that the same observations give the same decisions anywhere.

Latency between cells is linear in the batch and in the seconds a bit takes (1 / rate): what crosses the link is bytes
over the rate on top of work. Beyond the cells the nearest ends go on, with a wider deviation.
"""

import bisect
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

import msgspec

from prism.errors import ConfigError
from prism.perfmap import PerformanceMap
from prism.plan import ExecutionPlan, Mode
from prism.spec import Positive

LOCAL = ExecutionPlan(mode=Mode.LOCAL)
LEAST_DEVIATION = 0.01  # of a latency: no cell is known better than this
BEYOND = 0.3  # deviation added per factor e outside of the cells
PREDICTED_DEVIATION = 0.08  # of a cell that was simulated, where its profile doesn't say another
Share = float


class Objective(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is minimised, and what a plan must keep. joule_ms: with "weighted", the milliseconds that a joule is worth.
    least_accuracy: of a plan, by the accuracy table; a plan that the table lacks doesn't keep it."""

    minimise: Literal["p50", "p95", "energy", "weighted"] = "p50"
    joule_ms: float = 0.0
    most_ms: float | None = None
    most_joules: float | None = None
    least_accuracy: Share | None = None


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """What may be known before a batch: its size, the devices that can be reached, the link's rate with the relative
    deviation of that estimate, how many requests wait behind it, and what is left of its first one's deadline."""

    batch: Positive
    devices: Positive
    bandwidth_bps: float | None
    bandwidth_deviation: float = 0.0
    queued: int = 0
    left_ms: float | None = None
    at_s: float


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What a policy remembers: the plan of the last batch, and since when it has been this one."""

    plan: ExecutionPlan | None = None
    since_s: float = 0.0


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """A plan's figures at an observation. deviation: relative, of ms. source: of the cells that they come from."""

    plan: ExecutionPlan
    ms: float
    p95_ms: float
    deviation: float
    joules: float | None
    accuracy: float | None
    source: Literal["measured", "simulated"]
    cost: float


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """The plan, why, what is expected of it and of the next best one, and the state for the next decision."""

    plan: ExecutionPlan
    why: str
    expected: Expected | None = None
    runner_up: Expected | None = None
    state: State = State()


class _Grid(NamedTuple):
    """Cells of one plan: rows by batch, each with its rates' seconds a bit ascending."""

    plan: ExecutionPlan
    accuracy: float | None
    source: Literal["measured", "simulated"]
    batches: list[int]
    rows: list[tuple[list[float], list["_Point"]]]


class _Point(NamedTuple):
    ms: float
    p95_ms: float
    deviation: float
    joules: float | None


class Table:
    """Cells of one model, arranged for decisions. Measured cells stand before simulated ones of the same plan, batch
    and rate. accuracy: of a plan, as a share; a plan that exchanges everything in fp32 has local's."""

    def __init__(
        self,
        maps: Sequence[PerformanceMap],
        model: str,
        accuracy: Mapping[ExecutionPlan, Share] | None = None,
    ) -> None:
        chosen: dict[tuple[ExecutionPlan, int, float], tuple[str, _Point]] = {}
        for map_ in maps:
            for cell in map_.cells:
                if cell.model != model:
                    continue
                if cell.plan.ranks > 1 and not cell.link.rate_bps:
                    continue
                key = (
                    cell.plan,
                    cell.batch,
                    0.0 if cell.plan.ranks == 1 else 1 / (cell.link.rate_bps or 1.0),
                )
                if cell.source == "measured" or chosen.get(key, ("simulated",))[0] == "simulated":
                    low, high = cell.spread_ms
                    spread = (
                        (high - low) / 2 / cell.latency_ms.p50 if cell.visits > 1 else PREDICTED_DEVIATION
                    )
                    point = _Point(
                        cell.latency_ms.p50, cell.latency_ms.p95, max(spread, LEAST_DEVIATION), cell.energy_j
                    )
                    chosen[key] = (cell.source, point)
        if not any(plan.ranks == 1 for plan, _, _ in chosen):
            raise ConfigError(f"the map has no local cell of {model}; a policy needs one to fall back to")
        by_plan: dict[ExecutionPlan, dict[tuple[int, float], tuple[str, _Point]]] = {}
        for (plan, batch, per_bit), found in chosen.items():
            by_plan.setdefault(plan, {})[batch, per_bit] = found
        axes: dict[
            tuple[float, ...], list[float]
        ] = {}  # equal ones are one, so that a place is looked up once
        sizes: dict[tuple[int, ...], list[int]] = {}
        self.grids = [_grid(plan, cells, accuracy, axes, sizes) for plan, cells in by_plan.items()]
        self._by_plan = {grid.plan: grid for grid in self.grids}

    def expected(self, observation: Observation, objective: Objective) -> list[Expected]:
        """Every plan that its devices and its link allow, the best by the objective first."""
        return list(self.ranked(observation, objective))

    def ranked(self, observation: Observation, objective: Objective) -> Iterator[Expected]:
        """As expected(), made one by one: a decision looks at few, and their costs alone are quick."""
        rate = observation.bandwidth_bps
        per_bit = 1 / rate if rate else 0.0
        places: dict[int, tuple[int, float, float]] = {}
        able = [
            grid
            for grid in self.grids
            if grid.plan.ranks <= observation.devices and (rate or grid.plan.ranks == 1)
        ]
        costs = [_quick_cost(grid, observation.batch, per_bit, objective, places) for grid in able]
        for place in sorted(range(len(able)), key=costs.__getitem__):
            yield _expected(able[place], observation, objective, per_bit)

    def of(self, plan: ExecutionPlan, observation: Observation, objective: Objective) -> Expected | None:
        """One plan's figures, None where it can't run."""
        rate = observation.bandwidth_bps
        grid = self._by_plan.get(plan)
        if grid is None or plan.ranks > observation.devices or (plan.ranks > 1 and not rate):
            return None
        return _expected(grid, observation, objective, 1 / rate if rate else 0.0)


def _grid(
    plan: ExecutionPlan, cells: Mapping[tuple[int, float], tuple[str, _Point]],
    accuracy: Mapping[ExecutionPlan, Share] | None, axes: dict[tuple[float, ...], list[float]],
    sizes: dict[tuple[int, ...], list[int]],
) -> _Grid:  # fmt: skip
    rows: dict[int, list[tuple[float, _Point]]] = {}
    for (batch, per_bit), (_, point) in sorted(cells.items(), key=lambda item: item[0]):
        rows.setdefault(batch, []).append((per_bit, point))
    lines = []
    for row in rows.values():
        xs = tuple(x for x, _ in row)
        lines.append((axes.setdefault(xs, list(xs)), [point for _, point in row]))
    exact = plan.mode is not Mode.SEGMENT_MEANS and plan.wire == "fp32"
    known = None if accuracy is None else accuracy.get(plan, accuracy.get(LOCAL) if exact else None)
    measured = all(source == "measured" for source, _ in cells.values())
    batches = sizes.setdefault(tuple(rows), list(rows))
    return _Grid(plan, known, "measured" if measured else "simulated", batches, lines)


def _expected(grid: _Grid, seen: Observation, objective: Objective, per_bit: float) -> Expected:
    place, share, beyond = _between(grid.batches, float(seen.batch))
    low = _along(grid.rows[place], per_bit)
    point, outside = low
    if share:
        high, further = _along(grid.rows[place + 1], per_bit)
        point, outside = _mixed(point, high, share), max(outside, further)
    if beyond and len(grid.batches) == 1:  # one batch alone was measured: latency grows with it
        point = point._replace(
            ms=point.ms * seen.batch / grid.batches[0], p95_ms=point.p95_ms * seen.batch / grid.batches[0]
        )
    deviation = math.hypot(point.deviation, BEYOND * (beyond + outside))
    if grid.plan.ranks > 1 and seen.bandwidth_deviation:
        slower, _ = _along(grid.rows[place], per_bit * (1 + seen.bandwidth_deviation))
        deviation = math.hypot(deviation, abs(slower.ms / low[0].ms - 1))
    return Expected(
        plan=grid.plan, ms=point.ms, p95_ms=point.p95_ms, deviation=deviation, joules=point.joules,
        accuracy=grid.accuracy, source=grid.source, cost=_cost(point, objective),
    )  # fmt: skip


def _quick_cost(
    grid: _Grid, batch: int, per_bit: float, objective: Objective, places: dict[int, tuple[int, float, float]]
) -> float:
    """The cost that _expected() has, and nothing else. places: by axis; plans of one map share theirs."""
    key = id(grid.batches)
    if key not in places:
        places[key] = _between(grid.batches, float(batch))
    place, share, beyond = places[key]
    scale = batch / grid.batches[0] if beyond and len(grid.batches) == 1 else 1.0
    if objective.minimise in ("p50", "p95"):
        field = int(objective.minimise == "p95")
        return max(scale * _value(grid, place, share, per_bit, field, places), 1e-6)
    joules = _value(grid, place, share, per_bit, 3, places)
    if objective.minimise == "energy":
        return joules
    return scale * _value(grid, place, share, per_bit, 0, places) + objective.joule_ms * joules


def _value(
    grid: _Grid,
    place: int,
    share: float,
    per_bit: float,
    field: int,
    places: dict[int, tuple[int, float, float]],
) -> float:
    """A field of the four cells around an observation, mixed; infinite where one lacks it."""
    low = _on_row(grid.rows[place], per_bit, field, places)
    if not share:
        return low
    return low + share * (_on_row(grid.rows[place + 1], per_bit, field, places) - low)


def _on_row(
    row: tuple[list[float], list["_Point"]],
    per_bit: float,
    field: int,
    places: dict[int, tuple[int, float, float]],
) -> float:
    xs, points = row
    found = places.get(id(xs))
    if found is None:
        found = places[id(xs)] = _between(xs, per_bit)
    left, part, _ = found
    first = points[left][field]
    if first is None or not part:
        return math.inf if first is None else first
    last = points[left + 1][field]
    return math.inf if last is None else first + part * (last - first)


def _along(row: tuple[list[float], list[_Point]], per_bit: float) -> tuple[_Point, float]:
    """A row's figures at a rate, and how far outside of it, in factors e."""
    xs, points = row
    place, share, beyond = _between(xs, per_bit)
    return (points[place] if not share else _mixed(points[place], points[place + 1], share)), beyond


def _between(xs: Sequence[float], x: float) -> tuple[int, float, float]:
    """Left neighbour, share of the way to the right one, and how far outside. Beyond the last the line through the last
    two goes on; before the first it would fall below what was ever seen, so the first stands."""
    if x <= xs[0] or len(xs) == 1:  # local's one place is 0: it uses no link
        return 0, 0.0, abs(math.log(x / xs[0])) if x > 0 and xs[0] > 0 else 0.0
    right = min(bisect.bisect_left(xs, x), len(xs) - 1)
    share = (x - xs[right - 1]) / (xs[right] - xs[right - 1])
    return right - 1, share, math.log(x / xs[-1]) if x > xs[-1] else 0.0


def _mixed(a: _Point, b: _Point, share: float) -> _Point:
    joules = None if a.joules is None or b.joules is None else a.joules + share * (b.joules - a.joules)
    return _Point(
        max(a.ms + share * (b.ms - a.ms), 1e-6), max(a.p95_ms + share * (b.p95_ms - a.p95_ms), 1e-6),
        max(a.deviation, b.deviation), joules,
    )  # fmt: skip


def _cost(point: _Point, objective: Objective) -> float:
    if objective.minimise == "p95":
        return point.p95_ms
    if objective.minimise == "p50":
        return point.ms
    if point.joules is None:
        return math.inf
    return point.joules if objective.minimise == "energy" else point.ms + objective.joule_ms * point.joules


def kept(each: Expected, objective: Objective, observation: Observation) -> bool:
    """Whether a plan keeps the constraints, and the deadline of the batch's first request."""
    limits = [limit for limit in (objective.most_ms, observation.left_ms) if limit is not None]
    if limits and each.ms > min(limits):
        return False
    if objective.most_joules is not None and (each.joules is None or each.joules > objective.most_joules):
        return False
    least = objective.least_accuracy
    return least is None or (each.accuracy is not None and each.accuracy >= least)


def _given(table: Table | None) -> Table:
    if table is None:
        raise ConfigError("this policy chooses from a table of measured or simulated cells; give it a map")
    return table


class Policy(Protocol):
    """Pure: the same arguments give the same decision. Raises ConfigError where it needs a table and has none."""

    def decide(
        self, observation: Observation, table: Table | None, objective: Objective, state: State
    ) -> Decision: ...


class FixedPolicy:
    """One plan as long as its devices are there; local otherwise."""

    def __init__(self, plan: ExecutionPlan) -> None:
        self._plan = plan

    def decide(
        self, observation: Observation, table: Table | None, objective: Objective, state: State
    ) -> Decision:
        plan = self._plan if observation.devices >= self._plan.ranks else LOCAL
        return Decision(
            plan=plan, why="fixed" if plan == self._plan else "devices missing", state=State(plan=plan)
        )


class LookupPolicy:
    """The published rule: the fastest plan of the nearest measured batch and rate, with no memory."""

    def decide(
        self, observation: Observation, table: Table | None, objective: Objective, state: State
    ) -> Decision:
        table = _given(table)
        rate = observation.bandwidth_bps
        found: list[tuple[float, ExecutionPlan]] = []
        for grid in table.grids:
            if grid.plan.ranks > observation.devices or (grid.plan.ranks > 1 and not rate):
                continue
            place = min(range(len(grid.batches)), key=lambda k: abs(grid.batches[k] - observation.batch))
            xs, points = grid.rows[place]
            near = min(range(len(xs)), key=lambda k: abs(math.log((xs[k] or 1.0) * (rate or 1.0))))
            found.append((points[near].ms, grid.plan))
        plan = min(found, key=lambda each: each[0])[1]
        return Decision(plan=plan, why="nearest cell", state=State(plan=plan))


def _best_two(
    table: Table, observation: Observation, objective: Objective
) -> tuple[Expected, Expected | None, bool]:
    """The two best plans that keep the constraints, or of all where none does, and whether one does."""
    good: list[Expected] = []
    every: list[Expected] = []
    for each in table.ranked(observation, objective):
        every.append(each)
        if kept(each, objective, observation):
            good.append(each)
            if len(good) == 2:
                break
    chosen = good or every
    return chosen[0], chosen[1] if len(chosen) > 1 else None, bool(good)


class PrismPolicy:
    """The best plan that keeps the constraints, but no change that isn't worth it.

    A change must be expected to gain more than `hysteresis` of the present plan's cost, and more than `doubt` deviations
    of the difference: within them it may as well lose. It also waits until the last change is `dwell_s` old, unless
    the gain is `urgent` times what it would have to be. A plan that can't run, or that breaks a constraint while
    another keeps it, is left at once.
    """

    def __init__(
        self, hysteresis: float = 0.03, doubt: float = 0.5, dwell_s: float = 1.0, urgent: float = 3.0
    ) -> None:
        self._hysteresis, self._doubt, self._dwell_s, self._urgent = hysteresis, doubt, dwell_s, urgent

    def decide(
        self, observation: Observation, table: Table | None, objective: Objective, state: State
    ) -> Decision:
        table = _given(table)
        best, runner_up, able = _best_two(table, observation, objective)
        present = None if state.plan is None else table.of(state.plan, observation, objective)
        if present is not None and able and not kept(present, objective, observation):
            present = None

        def decided(chosen: Expected, why: str) -> Decision:
            moved = chosen.plan != state.plan
            since = observation.at_s if moved else state.since_s
            other = best if chosen is not best else runner_up
            note = "" if able else "; no plan keeps the constraints"
            return Decision(
                plan=chosen.plan, why=why + note, expected=chosen, runner_up=other,
                state=State(plan=chosen.plan, since_s=since),
            )  # fmt: skip

        if present is None:
            return decided(
                best, "the first decision" if state.plan is None else "the plan before can't be kept"
            )
        if best.plan == present.plan:
            return decided(present, "still the best")
        gain = present.cost - best.cost
        doubt = self._doubt * math.hypot(present.deviation * present.cost, best.deviation * best.cost)
        needed = max(self._hysteresis * present.cost, doubt)
        if not gain > needed:
            return decided(present, "the gain is within its doubt")
        if observation.at_s - state.since_s < self._dwell_s and gain < self._urgent * needed:
            return decided(present, "the last change is too young")
        return decided(best, "the gain is worth it")


class OraclePolicy:
    """For scoring: what is truly the fastest, by latencies that no policy may know. truth: milliseconds of each plan
    at an observation."""

    def __init__(self, truth: Mapping[float, Mapping[ExecutionPlan, float]]) -> None:
        self._truth = truth  # by the time of the observation

    def decide(
        self, observation: Observation, table: Table | None, objective: Objective, state: State
    ) -> Decision:
        known = self._truth[observation.at_s]
        plan = min((p for p in known if p.ranks <= observation.devices), key=lambda p: known[p])
        return Decision(plan=plan, why="the truth", state=State(plan=plan))
