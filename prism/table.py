"""What every plan is expected to cost at an observation: cells of a performance map, and the lines between them.

prism/corners.py says between which cells an observation lies."""

import bisect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from prism.accuracy import AccuracyTable, Answers
from prism.corners import Axes, Corners, between
from prism.errors import ConfigError
from prism.perfmap import Cell, PerformanceMap
from prism.plan import ExecutionPlan, Mode
from prism.spec import Positive

LOCAL = ExecutionPlan(mode=Mode.LOCAL)
LEAST_DEVIATION = 0.01  # of a latency: no cell is known better than this
LEAST = 1e-6  # of a figure, where a line falls to nothing
BEYOND = 0.3  # deviation added per factor e outside of the cells
PREDICTED_DEVIATION = 0.08  # of a cell that was simulated, where its profile doesn't say another
Share = float
Source = Literal["measured", "simulated"]
Figure = TypeVar("Figure", float, NDArray[np.float64])  # of one plan, or of each of several


class Objective(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is minimised, and what a plan must keep. joule_ms: with "weighted", the milliseconds that a joule is worth.
    least_accuracy (the task's metric) and least_agreement (with the uncompressed model): by the accuracy table; a plan that
    it lacks keeps neither, but for one that rounds and averages nothing, which always agrees."""

    minimise: Literal["p50", "p95", "energy", "weighted"] = "p50"
    joule_ms: float = 0.0
    most_ms: float | None = None
    most_joules: float | None = None
    least_accuracy: Share | None = None
    least_agreement: Share | None = None

    def __post_init__(self) -> None:
        if self.minimise == "weighted" and not 0 < self.joule_ms < math.inf:
            raise ValueError(f"joule_ms is {self.joule_ms:g}; weighted needs what a joule is worth, a number above 0")


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


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """A plan's figures at an observation. deviation: relative, of ms. source: of the cells that they come from."""

    plan: ExecutionPlan
    ms: float
    p95_ms: float
    deviation: float
    joules: float | None
    accuracy: float | None
    agreement: float | None
    source: Source
    cost: float


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One cell as a policy needs it. rate_bps: of the medium; null for a plan on one device. deviation: relative, of
    ms. wire_ms: what of ms the terminal waits for others, link or rank: who serves can't tell them apart at once."""

    plan: ExecutionPlan
    batch: Positive
    rate_bps: float | None
    ms: float
    p95_ms: float
    wire_ms: float
    deviation: float
    joules: float | None = None
    accuracy: Share | None = None
    agreement: Share | None = None
    source: Source = "measured"


class Place(NamedTuple):
    """Which cell: a plan, a batch, and the medium's rate rounded to 1 bit/s; null for a plan on one device."""

    plan: ExecutionPlan
    batch: int
    rate_bps: int | None

    @classmethod
    def at(cls, plan: ExecutionPlan, batch: int, rate_bps: float | None) -> "Place":
        return cls(plan, batch, None if rate_bps is None else round(rate_bps))


MS, P95, JOULES, WIRE, DEVIATION = range(5)  # of a cell


class _Grid(NamedTuple):
    """A plan's cells in the order of its axes: what MS and so on name."""

    plan: ExecutionPlan
    accuracy: float | None
    agreement: float | None
    source: Source
    axes: Axes
    cells: list[tuple[float, ...]]


class _Group:
    """Plans with equal axes on equally many devices: one check and one mix of cells serve them all. What a plan's own
    lists hold lies together here, a row for each cell: a walk through 25 lists took two fifths of a decision's time."""

    def __init__(self, members: Sequence[tuple[int, _Grid]]) -> None:
        self.places = [place for place, _ in members]
        self._first = members[0][1]
        self.axes, self.ranks = self._first.axes, self._first.plan.ranks
        cells = np.array([grid.cells for _, grid in members])
        self._columns = [cells[:, :, field].T.copy() for field in range(cells.shape[2])]
        self._whole = [bool(np.isfinite(column).all()) for column in self._columns]

    def costs(self, corners: Corners, objective: Objective) -> list[float]:
        """`_cost` of each plan, to the bit."""
        if len(self.places) == 1:  # as local is: an array of one is slower
            return [_cost(self._first, corners, objective)]
        costs: list[float] = _by_objective(lambda field: self._figures(field, corners), objective).tolist()
        return costs

    def _figures(self, field: int, corners: Corners) -> NDArray[np.float64]:
        """`_figure` of each plan: rows are added in their order, which a product of matrices needn't do."""
        places, weights = zip(*corners.weights, strict=True)
        rows, shares = self._columns[field].take(places, axis=0), np.array(weights)[:, None]
        if self._whole[field]:
            return np.maximum((rows * shares).sum(axis=0) * corners.scale, LEAST)
        with np.errstate(invalid="ignore"):  # infinite less infinite
            mixed = (rows * shares).sum(axis=0)
        return np.where(np.isfinite(mixed), np.maximum(mixed * corners.scale, LEAST), np.inf)


class View:
    """What every plan costs at one observation: the corners are worked out once for plans that share axes."""

    def __init__(self, table: "Table", observation: Observation, objective: Objective) -> None:
        self._table, self._observation, self._objective = table, observation, objective
        self._corners: dict[int, Corners] = {}
        self._made: dict[int, Expected] = {}  # by the grid's id: the present plan is mostly one of the best

    def ranked(self) -> Iterator[Expected]:
        """Every plan that its devices and its link allow, the best by the objective first; made one by one, for a
        decision looks at few, and their costs alone are quick."""
        costs: list[tuple[float, int]] = []
        for group in self._table.groups:
            if _able(group.ranks, self._observation):
                found = group.costs(self._at(group.axes), self._objective)
                costs += zip(found, group.places, strict=True)
        for cost, place in sorted(costs):
            yield self._expected(self._table.grids[place], cost)

    def of(self, plan: ExecutionPlan) -> Expected | None:
        """One plan's figures, None where it can't run; the same object as from `ranked`."""
        grid = self._table.able(plan, self._observation)
        if grid is None:
            return None
        known = self._made.get(id(grid))
        return known or self._expected(grid, _cost(grid, self._at(grid.axes), self._objective))

    def _expected(self, grid: _Grid, cost: float) -> Expected:
        found = self._made[id(grid)] = _expected(grid, self._at(grid.axes), cost)
        return found

    def _at(self, axes: Axes) -> Corners:
        known = self._corners.get(id(axes))
        if known is None:
            seen = self._observation
            known = axes.expected(seen.batch, _per_bit(seen), seen.bandwidth_deviation)
            self._corners[id(axes)] = known
        return known


class Table:
    """Rows of one model, arranged for decisions. Raises ConfigError where none is local."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = tuple(rows)
        if not any(row.plan.ranks == 1 for row in self.rows):
            raise ConfigError("the table has no local row; a policy needs one to fall back to")
        by_plan: dict[ExecutionPlan, list[Row]] = {}
        for row in self.rows:
            by_plan.setdefault(row.plan, []).append(row)
        known: dict[Axes, Axes] = {}
        self.grids = [_grid(plan, rows, known) for plan, rows in by_plan.items()]
        self._by_plan = {grid.plan: grid for grid in self.grids}
        alike: dict[tuple[Axes, int], list[tuple[int, _Grid]]] = {}
        for place, grid in enumerate(self.grids):
            alike.setdefault((grid.axes, grid.plan.ranks), []).append((place, grid))
        self.groups = [_Group(members) for members in alike.values()]

    @property
    def plans(self) -> list[ExecutionPlan]:
        return list(self._by_plan)

    def at(self, observation: Observation, objective: Objective) -> View:
        return View(self, observation, objective)

    def able(self, plan: ExecutionPlan, observation: Observation) -> _Grid | None:
        """A plan's cells, None where there are none or its devices or its link are missing."""
        grid = self._by_plan.get(plan)
        return grid if grid is not None and _able(plan.ranks, observation) else None

    def nearest(self, plan: ExecutionPlan, observation: Observation) -> tuple[Place, float] | None:
        """A plan's nearest cell and its milliseconds, nothing between cells; None where the plan can't run."""
        grid = self.able(plan, observation)
        if grid is None:
            return None
        batches, rate = grid.axes.batches, observation.bandwidth_bps or 1.0
        line = min(range(len(batches)), key=lambda k: abs(batches[k] - observation.batch))
        xs = grid.axes.lines[line]
        near = min(range(len(xs)), key=lambda k: abs(math.log((xs[k] or 1.0) * rate)))
        place = Place.at(plan, batches[line], 1 / xs[near] if xs[near] else None)
        return place, grid.cells[grid.axes.starts[line] + near][MS]

    def mixes(self, plan: ExecutionPlan, observation: Observation) -> bool:
        """Whether a plan's figures there are a mean of cells. Beyond them a line goes on, on which what one cell is off by
        would be multiplied."""
        corners = self._by_plan[plan].axes.corners(observation.batch, _per_bit(observation))
        return all(weight >= 0 for _, weight in corners.weights)

    def rate_of(self, plan: ExecutionPlan, batch: int, wire_ms: float) -> tuple[float, float] | None:
        """The rate, in bit/s, at which a batch waits for the link as long as this one did, and its relative deviation.
        No faster than twice what the cells know. None where they don't say how the wait depends on the rate."""
        grid = self._by_plan.get(plan)
        if grid is None or plan.ranks == 1:
            return None
        xs = grid.axes.lines[between(grid.axes.batches, batch)[0]]
        waits = [_figure(grid, WIRE, grid.axes.corners(batch, x)) for x in xs]
        right = min(max(bisect.bisect_left(waits, wire_ms), 1), len(xs) - 1)
        if right < 1 or waits[right] <= waits[right - 1]:
            return None
        slope = (waits[right] - waits[right - 1]) / (xs[right] - xs[right - 1])
        x = max(xs[right] + (wire_ms - waits[right]) / slope, xs[0] / 2)
        corners = grid.axes.corners(batch, x)
        deviation = max(grid.cells[place][DEVIATION] for place, _ in corners.weights)
        noise_ms = deviation * _figure(grid, MS, corners)
        return 1 / x, max(noise_ms / (slope * x), LEAST_DEVIATION)

    def corrected(self, factors: Mapping[Place, float]) -> "Table":
        """The table with the latencies of some cells times a factor each."""
        replace = msgspec.structs.replace

        def of(row: Row) -> float:
            return factors.get(Place.at(row.plan, row.batch, row.rate_bps), 1.0)

        return Table(replace(row, ms=row.ms * of(row), p95_ms=row.p95_ms * of(row)) for row in self.rows)


def table_of(
    maps: Sequence[PerformanceMap], model: str, accuracy: Sequence[AccuracyTable] = ()
) -> Table:
    """The cells of one model, and what is known of its plans' answers. Measured cells stand before simulated ones of the
    same plan, batch and rate. Raises ConfigError where none is local, for cells of several numbers of tokens, or for
    another model's accuracy table."""
    answers = Answers(accuracy, model)
    tokens = sorted({cell.tokens for map_ in maps for cell in map_.cells if cell.model == model})
    if len(tokens) > 1:
        raise ConfigError(
            f"the map has cells of {model} with {' and '.join(map(str, tokens))} tokens; decide by a map of one number"
        )
    chosen: dict[tuple[ExecutionPlan, int, float | None], Row] = {}
    for cell in (cell for map_ in maps for cell in map_.cells if cell.model == model):
        if cell.plan.ranks > 1 and not cell.link.rate_bps:
            continue
        row = _row(cell, answers)
        key = (row.plan, row.batch, row.rate_bps)
        if row.source == "measured" or key not in chosen or chosen[key].source == "simulated":
            chosen[key] = row
    if not any(plan.ranks == 1 for plan, _, _ in chosen):
        raise ConfigError(f"the map has no local cell of {model}; a policy needs one to fall back to")
    return Table(chosen.values())


def _row(cell: Cell, answers: Answers) -> Row:
    low, high = cell.spread_ms
    spread = (high - low) / 2 / cell.latency_ms.p50 if cell.visits > 1 else PREDICTED_DEVIATION
    known = answers.of(cell.plan)
    return Row(
        plan=cell.plan, batch=cell.batch, rate_bps=None if cell.plan.ranks == 1 else cell.link.rate_bps,
        ms=cell.latency_ms.p50, p95_ms=cell.latency_ms.p95, wire_ms=cell.split_ms.get("wire", 0.0) + cell.split_ms.get("wait", 0.0),
        deviation=max(spread, LEAST_DEVIATION), joules=_joules(cell), accuracy=known.accuracy,
        agreement=known.agreement, source=cell.source,
    )  # fmt: skip


def _joules(cell: Cell) -> float | None:
    """Measured ones; of a simulated cell, of which nothing is measured, modelled ones."""
    return cell.energy.joules if cell.source == "simulated" and cell.energy else cell.energy_j


def _grid(plan: ExecutionPlan, rows: list[Row], known: dict[Axes, Axes]) -> _Grid:
    by_batch: dict[int, dict[float, Row]] = {}
    for row in rows:
        by_batch.setdefault(row.batch, {})[1 / row.rate_bps if row.rate_bps else 0.0] = row
    batches = tuple(sorted(by_batch))
    equal: dict[tuple[float, ...], tuple[float, ...]] = {}
    lines = tuple(equal.setdefault(line, line) for line in (tuple(sorted(by_batch[batch])) for batch in batches))
    starts = tuple(sum(map(len, lines[:k])) for k in range(len(lines)))
    ordered = [by_batch[batch][x] for batch, line in zip(batches, lines, strict=True) for x in line]
    cells: list[tuple[float, ...]] = [
        (row.ms, row.p95_ms, math.inf if row.joules is None else row.joules, row.wire_ms, row.deviation)
        for row in ordered
    ]
    axes = Axes(batches, lines, starts)
    source: Source = "measured" if all(row.source == "measured" for row in rows) else "simulated"
    return _Grid(plan, rows[0].accuracy, rows[0].agreement, source, known.setdefault(axes, axes), cells)


def _able(ranks: int, observation: Observation) -> bool:
    return ranks == 1 or (ranks <= observation.devices and bool(observation.bandwidth_bps))


def _per_bit(observation: Observation) -> float:
    return 1 / observation.bandwidth_bps if observation.bandwidth_bps else 0.0


def _expected(grid: _Grid, corners: Corners, cost: float) -> Expected:
    ms = p95 = joules = deviation = 0.0
    for place, weight in corners.weights:
        cell_ms, cell_p95, cell_joules, _, doubt = grid.cells[place]
        ms += weight * cell_ms
        p95 += weight * cell_p95
        joules += weight * cell_joules
        if doubt > deviation:
            deviation = doubt
    joules = _within(joules, corners)
    return Expected(
        plan=grid.plan, ms=_within(ms, corners), p95_ms=_within(p95, corners),
        deviation=math.hypot(deviation, BEYOND * corners.outside),
        joules=None if joules == math.inf else joules, accuracy=grid.accuracy, agreement=grid.agreement,
        source=grid.source, cost=cost,
    )  # fmt: skip


def _cost(grid: _Grid, corners: Corners, objective: Objective) -> float:
    """By the objective; infinite where a figure it needs was not measured."""
    return _by_objective(lambda field: _figure(grid, field, corners), objective)


def _by_objective(figure: Callable[[int], Figure], objective: Objective) -> Figure:
    if objective.minimise == "p50":
        return figure(MS)
    if objective.minimise == "p95":
        return figure(P95)
    joules = figure(JOULES)
    if objective.minimise == "energy":
        return joules
    return figure(MS) + objective.joule_ms * joules


def _figure(grid: _Grid, field: int, corners: Corners) -> float:
    """Cells mixed by the corners' weights; infinite where one of them lacks it."""
    value = 0.0
    for place, weight in corners.weights:
        value += weight * grid.cells[place][field]
    return _within(value, corners)


def _within(value: float, corners: Corners) -> float:
    if not -math.inf < value < math.inf:  # also where a negative weight made it no number, or minus infinity
        return math.inf
    return max(value * corners.scale, LEAST)
