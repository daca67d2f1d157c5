"""Simulate measured cells for calibration and comparison: latencies, and guesses with draws. A cell is a point."""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import msgspec
import numpy as np

from calibration.decision_scores import Guess
from calibration.fit import Simulate
from prism.cost import CalibratedProfile, CostModel
from prism.perfmap import Cell
from prism.spec import ModelSpec
from sim.ask.point import Point, latencies, latency_ms, outside_of, scatter, summary

SLOWER = 1.1  # factor by which a machine is slowed down, to find how its pace changes a latency


def point_of(cell: Cell, models: Mapping[str, ModelSpec]) -> Point:
    """Make the point of a cell."""
    model = msgspec.structs.replace(models[cell.model], tokens=cell.tokens)
    return Point(model=model, plan=cell.plan, batch=cell.batch, link=cell.link)


def simulator_of(models: Mapping[str, ModelSpec]) -> Simulate:
    """Make the simulator of cells under a profile: milliseconds, [cells], at the pace that the machine had at each."""

    def run(profile: CalibratedProfile, cells: Sequence[Cell]) -> Any:
        cost = profile.model()
        return np.array(
            [
                latency_ms(profile, cost.at_speed(1 / profile.slowness(cell.pace_ms)), point_of(cell, models))
                for cell in cells
            ]
        )

    return run


def guesses(
    profile: CalibratedProfile,
    cells: Sequence[Cell],
    models: Mapping[str, ModelSpec],
    draws: int,
    seed: int,
    processes: int,
) -> list[Guess]:
    """Guess each cell, spread over processes."""
    return pooled(guess_of(profile, draws, seed), [point_of(cell, models) for cell in cells], processes)


def pooled(task: Callable[[Point], Guess], points: Sequence[Point], processes: int) -> list[Guess]:
    """Guess points on a pool of processes."""
    if processes <= 1:
        return list(map(task, points))
    with ProcessPoolExecutor(processes) as pool:
        return list(pool.map(task, points, chunksize=max(1, len(points) // (4 * processes))))


def guess_of(profile: CalibratedProfile, draws: int, seed: int) -> Callable[[Point], Guess]:
    """Make the function that guesses a point; it can be sent to other processes."""
    return partial(_guess, profile, profile.draws(draws, seed), seed)


def _guess(profile: CalibratedProfile, costs: Sequence[CostModel], seed: int, point: Point) -> Guess:
    cost = profile.model()
    nominal = summary(profile, cost, point)
    slower = latency_ms(profile, cost.at_speed(1 / SLOWER), point)
    drawn = latencies(profile, costs, point) * scatter(profile, len(costs), point, seed)
    outside = outside_of(profile, point)
    return Guess(
        ms=nominal.latency_ms.p50,
        draws=tuple(map(float, drawn)),
        split_ms=nominal.split_ms,
        tag="extrapolated" if outside else "calibrated",
        outside=tuple(outside),
        host_share=math.log(slower / nominal.latency_ms.p50) / math.log(SLOWER),
    )
