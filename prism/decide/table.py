"""What every plan is expected to cost at an observation: cells of a performance map, and the lines between them.

prism/decide/interpolation.py draws the lines."""

import bisect
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from prism.config import NonNegativeNumber, Positive, PositiveNumber, Share
from prism.decide.accuracy import AccuracyTable, Answers
from prism.decide.interpolation import WIRE, BatchCosts, CellAxes, CostGrid, MixedCosts, nodes
from prism.errors import ConfigError
from prism.perfmap import Cell, PerformanceMap
from prism.plan import ExecutionPlan, Mode

LOCAL = ExecutionPlan(mode=Mode.LOCAL)
LEAST_DEVIATION = 0.01  # of a latency: no cell is known better than this
PREDICTED_DEVIATION = 0.08  # of a cell that was simulated, where its profile doesn't say another
CellSource = Literal["measured", "simulated"]


class Objective(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is minimised, and what a plan must keep. joule_ms: with "weighted", the milliseconds that a joule is worth.
    least_accuracy (the task's metric) and least_agreement (with the uncompressed model): by the accuracy table; a plan that
    it lacks keeps neither, but for one that rounds and averages nothing, which always agrees."""

    minimise: Literal["p50", "p95", "energy", "weighted"] = "p50"
    joule_ms: NonNegativeNumber = 0.0
    most_ms: PositiveNumber | None = None
    most_joules: PositiveNumber | None = None
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


class Expectation(msgspec.Struct, frozen=True, kw_only=True):
    """A plan's figures at an observation. deviation: relative, of ms. source: of the cells that they come from."""

    plan: ExecutionPlan
    ms: float
    p95_ms: float
    deviation: float
    joules: float | None
    accuracy: float | None
    agreement: float | None
    source: CellSource
    cost: float


class TableRow(msgspec.Struct, frozen=True, kw_only=True):
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
    accuracy: float | None = None
    agreement: float | None = None
    source: CellSource = "measured"


class CellPlace(NamedTuple):
    """Which cell: a plan, a batch, and the medium's rate rounded to 1 bit/s; null for a plan on one device."""

    plan: ExecutionPlan
    batch: int
    rate_bps: int | None

    @classmethod
    def at(cls, plan: ExecutionPlan, batch: int, rate_bps: float | None) -> "CellPlace":
        return cls(plan, batch, None if rate_bps is None else round(rate_bps))


class _PlanCells(NamedTuple):
    """What is known of a plan, and its cells by batch and by the seconds that a bit takes."""

    plan: ExecutionPlan
    accuracy: float | None
    agreement: float | None
    source: CellSource
    axes: CellAxes
    rows: list[TableRow]


class _PlanGroup:
    """Plans with equal axes on equally many devices: one check and one mix of cells serve them all. A walk through 25
    plans took two fifths of a decision's time."""

    def __init__(self, members: Sequence[tuple[int, _PlanCells]]) -> None:
        self.places = [place for place, _ in members]
        self.grids = [grid for _, grid in members]
        self.axes, self.ranks = self.grids[0].axes, self.grids[0].plan.ranks
        cells = np.array([[_figures(row) for row in grid.rows] for grid in self.grids])
        self.lines = CostGrid(self.axes, cells.transpose(1, 2, 0))


class View:
    """What every plan costs at one observation: worked out once for plans that share axes."""

    def __init__(self, table: "Table", observation: Observation, objective: Objective) -> None:
        self._table, self._observation, self._objective = table, observation, objective
        self._nodes = nodes(_per_bit(observation), observation.bandwidth_deviation)
        self._known: dict[int, tuple[BatchCosts, MixedCosts, list[float]]] = {}  # with the costs, by the group's id
        self._made: dict[int, Expectation] = {}  # by the plan's place: the present one is mostly one of the best

    def ranked(self) -> Iterator[Expectation]:
        """Every plan that its devices and its link allow, the best by the objective first; made one by one, for a
        decision looks at few, and their costs alone are quick."""
        costs: list[tuple[float, int]] = []
        for group in self._table.groups:
            if _able(group.ranks, self._observation):
                costs += zip(self._at(group)[2], group.places, strict=True)
        for _, place in sorted(costs):
            yield self._expected(place)

    def of(self, plan: ExecutionPlan) -> Expectation | None:
        """One plan's figures, None where it can't run; the same object as from `ranked`."""
        place = self._table.place_of(plan, self._observation)
        if place is None:
            return None
        return self._made.get(place) or self._expected(place)

    def _expected(self, place: int) -> Expectation:
        group, k = self._table.homes[place]
        line, mixed, costs = self._at(group)
        grid, joules = group.grids[k], mixed.joules[k]
        found = self._made[place] = Expectation(
            plan=grid.plan,
            ms=mixed.ms[k],
            p95_ms=mixed.p95_ms[k],
            deviation=line.deviation(k, mixed),
            joules=None if math.isnan(joules) else joules,
            accuracy=grid.accuracy,
            agreement=grid.agreement,
            source=grid.source,
            cost=costs[k],
        )
        return found

    def _at(self, group: _PlanGroup) -> tuple[BatchCosts, MixedCosts, list[float]]:
        known = self._known.get(id(group))
        if known is None:
            line = group.lines.at(self._observation.batch)
            mixed = line.at(self._nodes)
            known = self._known[id(group)] = line, mixed, _costs(mixed, self._objective)
        return known


class Table:
    """Rows of one model, arranged for decisions. Raises ConfigError where none is local."""

    def __init__(self, rows: Iterable[TableRow]) -> None:
        self.rows = tuple(rows)
        if not any(row.plan.ranks == 1 for row in self.rows):
            raise ConfigError("the table has no local row; a policy needs one to fall back to")
        by_plan: dict[ExecutionPlan, list[TableRow]] = {}
        for row in self.rows:
            by_plan.setdefault(row.plan, []).append(row)
        known: dict[CellAxes, CellAxes] = {}
        self._grids = [_grid(plan, rows, known) for plan, rows in by_plan.items()]
        self._places = {grid.plan: place for place, grid in enumerate(self._grids)}
        alike: dict[tuple[CellAxes, int], list[tuple[int, _PlanCells]]] = {}
        for place, grid in enumerate(self._grids):
            alike.setdefault((grid.axes, grid.plan.ranks), []).append((place, grid))
        self.groups = [_PlanGroup(members) for members in alike.values()]
        self.homes = {place: (group, k) for group in self.groups for k, place in enumerate(group.places)}

    @property
    def plans(self) -> list[ExecutionPlan]:
        return list(self._places)

    def at(self, observation: Observation, objective: Objective) -> View:
        return View(self, observation, objective)

    def place_of(self, plan: ExecutionPlan, observation: Observation) -> int | None:
        """Where a plan stands among `plans`, None where it doesn't or its devices or its link are missing."""
        return self._places.get(plan) if _able(plan.ranks, observation) else None

    def nearest(self, plan: ExecutionPlan, observation: Observation) -> tuple[CellPlace, float] | None:
        """A plan's nearest cell and its milliseconds, nothing between cells; None where the plan can't run."""
        place = self.place_of(plan, observation)
        if place is None:
            return None
        grid, rate = self._grids[place], observation.bandwidth_bps or 1.0
        batch = min(grid.axes.batches, key=lambda each: abs(each - observation.batch))
        alike = [row for row in grid.rows if row.batch == batch]
        row = min(alike, key=lambda each: abs(math.log(rate / (each.rate_bps or rate))))
        return CellPlace.at(plan, batch, row.rate_bps), row.ms

    def mixes(self, plan: ExecutionPlan, observation: Observation) -> bool:
        """Whether a plan's figures there are a mean of cells. Beyond them a line goes on, on which what one cell is off by
        would be multiplied."""
        axes = self._grids[self._places[plan]].axes
        slowest = min(xs[-1] for xs in axes.lines)
        return observation.batch <= axes.batches[-1] and (plan.ranks == 1 or _per_bit(observation) <= slowest)

    def rate_of(self, plan: ExecutionPlan, batch: int, wire_ms: float) -> tuple[float, float] | None:
        """The rate, in bit/s, at which a batch waits for the link as long as this one did, and its relative deviation.
        No faster than twice what the cells know. None where they don't say how the wait depends on the rate."""
        if plan not in self._places or plan.ranks == 1:
            return None
        group, k = self.homes[self._places[plan]]
        line = group.lines.at(batch)
        xs, waits = line.xs, line.figures[:, WIRE, k].tolist()
        right = min(max(bisect.bisect_left(waits, wire_ms), 1), len(xs) - 1)
        if right < 1 or waits[right] <= waits[right - 1]:
            return None
        slope = (waits[right] - waits[right - 1]) / (xs[right] - xs[right - 1])
        x = max(xs[right] + (wire_ms - waits[right]) / slope, xs[0] / 2)
        mixed = line.at(nodes(x, 0.0))
        noise_ms = line.deviation(k, mixed) * mixed.ms[k]
        return 1 / x, max(noise_ms / (slope * x), LEAST_DEVIATION)

    def corrected(self, factors: Mapping[CellPlace, float]) -> "Table":
        """The table with the latencies of some cells times a factor each."""
        replace = msgspec.structs.replace

        def of(row: TableRow) -> float:
            return factors.get(CellPlace.at(row.plan, row.batch, row.rate_bps), 1.0)

        return Table(replace(row, ms=row.ms * of(row), p95_ms=row.p95_ms * of(row)) for row in self.rows)


def table_of(maps: Sequence[PerformanceMap], model: str, accuracy: Sequence[AccuracyTable] = ()) -> Table:
    """The cells of one model, and what is known of its plans' answers. Measured cells stand before simulated ones of the
    same plan, batch and rate. Raises ConfigError where none is local, for cells of several numbers of tokens, or for
    another model's accuracy table."""
    answers = Answers(accuracy, model)
    tokens = sorted({cell.tokens for map_ in maps for cell in map_.cells if cell.model == model})
    if len(tokens) > 1:
        raise ConfigError(
            f"the map has cells of {model} with {' and '.join(map(str, tokens))} tokens; decide by a map of one number"
        )
    chosen: dict[tuple[ExecutionPlan, int, float | None], TableRow] = {}
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


def _row(cell: Cell, answers: Answers) -> TableRow:
    low, high = cell.spread_ms
    spread = (high - low) / 2 / cell.latency_ms.p50 if cell.visits > 1 else PREDICTED_DEVIATION
    known = answers.of(cell.plan)
    return TableRow(
        plan=cell.plan,
        batch=cell.batch,
        rate_bps=None if cell.plan.ranks == 1 else cell.link.rate_bps,
        ms=cell.latency_ms.p50,
        p95_ms=cell.latency_ms.p95,
        wire_ms=cell.split_ms.get("wire", 0.0) + cell.split_ms.get("wait", 0.0),
        deviation=max(spread, LEAST_DEVIATION),
        joules=_joules(cell),
        accuracy=known.accuracy,
        agreement=known.agreement,
        source=cell.source,
    )


def _joules(cell: Cell) -> float | None:
    """Measured ones; of a simulated cell, of which nothing is measured, modelled ones."""
    return cell.energy.joules if cell.source == "simulated" and cell.energy else cell.energy_j


def _grid(plan: ExecutionPlan, rows: list[TableRow], known: dict[CellAxes, CellAxes]) -> _PlanCells:
    by_batch: dict[int, dict[float, TableRow]] = {}
    for row in rows:
        by_batch.setdefault(row.batch, {})[1 / row.rate_bps if row.rate_bps else 0.0] = row
    batches = tuple(sorted(by_batch))
    equal: dict[tuple[float, ...], tuple[float, ...]] = {}
    lines = tuple(equal.setdefault(line, line) for line in (tuple(sorted(by_batch[batch])) for batch in batches))
    axes = CellAxes(batches, lines)
    ordered = [by_batch[batch][x] for batch, line in zip(batches, lines, strict=True) for x in line]
    source: CellSource = "measured" if all(row.source == "measured" for row in rows) else "simulated"
    return _PlanCells(plan, rows[0].accuracy, rows[0].agreement, source, known.setdefault(axes, axes), ordered)


def _figures(row: TableRow) -> tuple[float, ...]:
    """In the order of MS and so on."""
    return row.ms, row.p95_ms, math.nan if row.joules is None else row.joules, row.wire_ms, row.deviation


def _able(ranks: int, observation: Observation) -> bool:
    return ranks == 1 or (ranks <= observation.devices and bool(observation.bandwidth_bps))


def _per_bit(observation: Observation) -> float:
    return 1 / observation.bandwidth_bps if observation.bandwidth_bps else 0.0


def _costs(mixed: MixedCosts, objective: Objective) -> list[float]:
    """Of each plan, by the objective; infinite where joules are wanted and not known."""
    if objective.minimise == "p50":
        return mixed.ms
    if objective.minimise == "p95":
        return mixed.p95_ms
    costs = mixed.joules
    if objective.minimise == "weighted":
        costs = [ms + objective.joule_ms * joules for ms, joules in zip(mixed.ms, costs, strict=True)]
    return [math.inf if math.isnan(cost) else cost for cost in costs]
