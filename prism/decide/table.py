"""Look up what every plan is expected to cost at an observation, from the cells of performance maps."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from prism.config import NonNegativeNumber, Positive, PositiveNumber, Share
from prism.decide.accuracy import AccuracyTable, Answers
from prism.decide.interpolation import BatchCosts, CellAxes, CostGrid, MixedCosts, full_batch, quadrature
from prism.errors import ConfigError
from prism.perfmap import Cell, PerformanceMap
from prism.plan import ExecutionPlan
from prism.trace import TraceSource

LEAST_DEVIATION = 0.01  # of a latency: no cell counts as better known than this
PREDICTED_DEVIATION = 0.08  # of the latency of a cell with one visit, as all simulated cells have


class Objective(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to minimise, and the limits that a plan must keep.

    joule_ms: with "weighted", the milliseconds that a joule is worth.
    least_accuracy: of the task's metric. least_agreement: share of answers that are the uncompressed model's. Both are
    looked up in the accuracy table. A plan that it lacks keeps neither, but an exact plan always agrees.
    """

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
    """What is known before a batch runs.

    batch: its samples. devices: that can be reached. bandwidth_bps: estimate of the link's rate, None without one;
    bandwidth_deviation: its relative standard deviation. queued: requests that wait behind this batch.
    left_ms: until the deadline of its first request. at_s: now.
    """

    batch: Positive
    devices: Positive
    bandwidth_bps: float | None
    bandwidth_deviation: float = 0.0
    queued: int = 0
    left_ms: float | None = None
    at_s: float


class Expectation(msgspec.Struct, frozen=True, kw_only=True):
    """A plan's figures at an observation.

    deviation: relative, of ms. source: of the cells behind the figures. cost: by the objective; infinite where joules
    are wanted and unknown.
    """

    plan: ExecutionPlan
    ms: float
    p95_ms: float
    deviation: float
    joules: float | None
    accuracy: float | None
    agreement: float | None
    source: TraceSource
    cost: float


class TableRow(msgspec.Struct, frozen=True, kw_only=True):
    """One cell, reduced to what policies read.

    rate_bps: of the medium; None for a plan on one device. deviation: relative, of ms. wire_ms: the part of ms in which
    the leader waits for others, link or rank: a serving leader can't tell them apart.
    """

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
    source: TraceSource = "measured"


class CellPlace(NamedTuple):
    """The key of a cell: plan, batch, and the medium's rate rounded to 1 bit/s; None for a plan on one device."""

    plan: ExecutionPlan
    batch: int
    rate_bps: int | None

    @classmethod
    def at(cls, plan: ExecutionPlan, batch: int, rate_bps: float | None) -> "CellPlace":
        """Round the rate."""
        return cls(plan, batch, None if rate_bps is None else round(rate_bps))


class _PlanCells(NamedTuple):
    """A plan with its cells, in the order of the axes."""

    plan: ExecutionPlan
    accuracy: float | None
    agreement: float | None
    source: TraceSource
    axes: CellAxes
    rows: list[TableRow]


class _PlanGroup:
    """Plans with equal axes and equal replicas on equally many devices: one check and one interpolation serve them all.

    Plan by plan, 25 plans took two fifths of a decision's time.
    """

    def __init__(self, members: Sequence[tuple[int, _PlanCells]]) -> None:
        self.indices = [index for index, _ in members]
        self.plans = [cells for _, cells in members]
        self.plan = self.plans[0].plan  # which of the devices and the batch asks what all of them ask
        figures = np.array([[_figures(row) for row in cells.rows] for cells in self.plans])
        self._grid = CostGrid(self.plans[0].axes, figures.transpose(1, 2, 0))

    def costs(self, batch: int) -> BatchCosts:
        """Interpolate the costs of a batch. Where it wasn't measured, replicas take as long as the fullest of them."""
        measured = batch in self.plans[0].axes.batches
        return self._grid.at(batch, batch if measured else full_batch(self.plan, batch))


class _GroupCosts(NamedTuple):
    """Figures of a group's plans at one observation, and their costs by the objective."""

    line: BatchCosts
    mixed: MixedCosts
    costs: list[float]


class View:
    """Expectations of all plans at one observation, computed once for plans that share axes."""

    def __init__(self, table: "Table", observation: Observation, objective: Objective) -> None:
        self._table, self._observation, self._objective = table, observation, objective
        self._nodes = quadrature(_per_bit(observation), observation.bandwidth_deviation)
        self._group_costs: dict[int, _GroupCosts] = {}  # by id of the group
        self._expected: dict[int, Expectation] = {}  # by index of the plan; the present plan is mostly one of the best

    def ranked(self) -> Iterator[Expectation]:
        """Yield every plan that can run, the cheapest first.

        Made one by one: a decision reads few expectations, and sorting needs the costs alone.
        """
        costs: list[tuple[float, int]] = []
        for group in self._table.groups:
            if can_run(group.plan, self._observation):
                costs += zip(self._costs_of(group).costs, group.indices, strict=True)
        for _, index in sorted(costs):
            yield self._made(index)

    def of(self, plan: ExecutionPlan) -> Expectation | None:
        """Look up one plan, None where it can't run. The same object as from `ranked`."""
        index = self._table.index_of(plan, self._observation)
        if index is None:
            return None
        return self._expected.get(index) or self._made(index)

    def _made(self, index: int) -> Expectation:
        group, member = self._table.homes[index]
        line, mixed, costs = self._costs_of(group)
        cells, joules = group.plans[member], mixed.joules[member]
        expectation = self._expected[index] = Expectation(
            plan=cells.plan,
            ms=mixed.ms[member],
            p95_ms=mixed.p95_ms[member],
            deviation=line.deviation(member, mixed),
            joules=None if math.isnan(joules) else joules,
            accuracy=cells.accuracy,
            agreement=cells.agreement,
            source=cells.source,
            cost=costs[member],
        )
        return expectation

    def _costs_of(self, group: _PlanGroup) -> _GroupCosts:
        costs = self._group_costs.get(id(group))
        if costs is None:
            line = group.costs(self._observation.batch)
            mixed = line.at(self._nodes)
            costs = self._group_costs[id(group)] = _GroupCosts(line, mixed, _costs(mixed, self._objective))
        return costs


def can_run(plan: ExecutionPlan, observation: Observation) -> bool:
    """Say whether there are the devices, a known link, and a sample for each replica."""
    if plan.ranks == 1:
        return True
    enough = plan.ranks <= observation.devices and plan.least_batch <= observation.batch
    return enough and bool(observation.bandwidth_bps)


class Table:
    """Cells of one model, arranged for decisions. Raises ConfigError where none is local.

    groups: plans that are interpolated together. homes: of each plan's index, its group and its place in there.
    """

    def __init__(self, rows: Iterable[TableRow]) -> None:
        self.rows = tuple(rows)
        if not any(row.plan.ranks == 1 for row in self.rows):
            raise ConfigError("the table has no local row; a policy needs one to fall back to")
        by_plan: dict[ExecutionPlan, list[TableRow]] = {}
        for row in self.rows:
            by_plan.setdefault(row.plan, []).append(row)
        shared_axes: dict[CellAxes, CellAxes] = {}
        self._cells = [_plan_cells(plan, rows, shared_axes) for plan, rows in by_plan.items()]
        self._indices = {cells.plan: index for index, cells in enumerate(self._cells)}
        alike: dict[tuple[CellAxes, int, tuple[float, ...]], list[tuple[int, _PlanCells]]] = {}
        for index, cells in enumerate(self._cells):
            alike.setdefault((cells.axes, cells.plan.ranks, cells.plan.replica_weights), []).append((index, cells))
        self.groups = [_PlanGroup(members) for members in alike.values()]
        self.homes = {index: (group, member) for group in self.groups for member, index in enumerate(group.indices)}

    @property
    def plans(self) -> list[ExecutionPlan]:
        """List the plans, each once, in the order of the rows."""
        return list(self._indices)

    def at(self, observation: Observation, objective: Objective) -> View:
        """Look at all plans from an observation."""
        return View(self, observation, objective)

    def index_of(self, plan: ExecutionPlan, observation: Observation) -> int | None:
        """Find a plan in `plans`, None where it isn't, or where its devices, its link or its samples are missing."""
        return self._indices.get(plan) if can_run(plan, observation) else None

    def batch_costs(self, plan: ExecutionPlan, batch: int) -> tuple[BatchCosts, int] | None:
        """Find a batch's costs over the rate, and the plan's index in their last axis. None for an unknown plan."""
        if plan not in self._indices:
            return None
        group, member = self.homes[self._indices[plan]]
        return group.costs(batch), member

    def nearest(self, plan: ExecutionPlan, observation: Observation) -> tuple[CellPlace, float] | None:
        """Find a plan's nearest cell and its milliseconds, without interpolation. None where the plan can't run."""
        index = self.index_of(plan, observation)
        if index is None:
            return None
        cells, rate = self._cells[index], observation.bandwidth_bps or 1.0
        batch = min(cells.axes.batches, key=lambda measured: abs(measured - observation.batch))
        alike = [row for row in cells.rows if row.batch == batch]
        row = min(alike, key=lambda row: abs(math.log(rate / (row.rate_bps or rate))))
        return CellPlace.at(plan, batch, row.rate_bps), row.ms

    def mixes(self, plan: ExecutionPlan, observation: Observation) -> bool:
        """Say whether a plan's figures are a mean of cells there. Beyond the last cell a straight line goes on, along
        which the error of one cell would be multiplied."""
        axes = self._cells[self._indices[plan]].axes
        slowest = min(per_bit[-1] for per_bit in axes.per_bit)
        return observation.batch <= axes.batches[-1] and (plan.ranks == 1 or _per_bit(observation) <= slowest)

    def corrected(self, factors: Mapping[CellPlace, float]) -> "Table":
        """Copy the table with the latencies of some cells multiplied by a factor each."""
        replace = msgspec.structs.replace

        def factor_of(row: TableRow) -> float:
            return factors.get(CellPlace.at(row.plan, row.batch, row.rate_bps), 1.0)

        rows = ((row, factor_of(row)) for row in self.rows)
        return Table(replace(row, ms=row.ms * factor, p95_ms=row.p95_ms * factor) for row, factor in rows)


def table_of(maps: Sequence[PerformanceMap], model: str, accuracy: Sequence[AccuracyTable] = ()) -> Table:
    """Build the table of one model. A measured cell replaces a simulated one of the same plan, batch and rate.

    Raises ConfigError where none is local, for cells of several numbers of tokens, or for another model's accuracy
    table.
    """
    answers = Answers(accuracy, model)
    cells = [cell for map_ in maps for cell in map_.cells if cell.model == model]
    tokens = sorted({cell.tokens for cell in cells})
    if len(tokens) > 1:
        raise ConfigError(
            f"the map has cells of {model} with {' and '.join(map(str, tokens))} tokens; decide by a map of one number"
        )
    chosen: dict[tuple[ExecutionPlan, int, float | None], TableRow] = {}
    for cell in cells:
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
    quality = answers.of(cell.plan)
    return TableRow(
        plan=cell.plan,
        batch=cell.batch,
        rate_bps=None if cell.plan.ranks == 1 else cell.link.rate_bps,
        ms=cell.latency_ms.p50,
        p95_ms=cell.latency_ms.p95,
        wire_ms=cell.split_ms.get("wire", 0.0) + cell.split_ms.get("wait", 0.0),
        deviation=max(spread, LEAST_DEVIATION),
        joules=_joules(cell),
        accuracy=quality.accuracy,
        agreement=quality.agreement,
        source=cell.source,
    )


def _joules(cell: Cell) -> float | None:
    """Take measured joules; of a simulated cell, of which nothing is measured, modelled ones."""
    return cell.energy.joules if cell.source == "simulated" and cell.energy else cell.energy_j


def _plan_cells(plan: ExecutionPlan, rows: list[TableRow], shared_axes: dict[CellAxes, CellAxes]) -> _PlanCells:
    by_batch: dict[int, dict[float, TableRow]] = {}
    for row in rows:
        by_batch.setdefault(row.batch, {})[1 / row.rate_bps if row.rate_bps else 0.0] = row
    batches = tuple(sorted(by_batch))
    equal: dict[tuple[float, ...], tuple[float, ...]] = {}
    lines = tuple(equal.setdefault(line, line) for line in (tuple(sorted(by_batch[batch])) for batch in batches))
    axes = CellAxes(batches, lines)
    ordered = [by_batch[batch][per_bit] for batch, line in zip(batches, lines, strict=True) for per_bit in line]
    source: TraceSource = "measured" if all(row.source == "measured" for row in rows) else "simulated"
    return _PlanCells(plan, rows[0].accuracy, rows[0].agreement, source, shared_axes.setdefault(axes, axes), ordered)


def _figures(row: TableRow) -> tuple[float, ...]:
    """List a cell's figures in the order of prism.decide.interpolation: MS, P95, JOULES, WIRE, DEVIATION."""
    return row.ms, row.p95_ms, math.nan if row.joules is None else row.joules, row.wire_ms, row.deviation


def _per_bit(observation: Observation) -> float:
    """Seconds that a bit takes; 0 for an unknown rate."""
    return 1 / observation.bandwidth_bps if observation.bandwidth_bps else 0.0


def _costs(mixed: MixedCosts, objective: Objective) -> list[float]:
    """Compute each plan's cost by the objective; infinite where joules are wanted and unknown."""
    if objective.minimise == "p50":
        return mixed.ms
    if objective.minimise == "p95":
        return mixed.p95_ms
    costs = mixed.joules
    if objective.minimise == "weighted":
        costs = [ms + objective.joule_ms * joules for ms, joules in zip(mixed.ms, costs, strict=True)]
    return [math.inf if math.isnan(cost) else cost for cost in costs]
