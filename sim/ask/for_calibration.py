"""What calibration asks of the simulator: latencies of measured cells, and guesses with draws. One cell is one point."""

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

SLOWER = 1.1  # how much slower a machine is taken to be, to see what its pace does to a latency


def point_of(cell: Cell, models: Mapping[str, ModelSpec]) -> Point:
    model = msgspec.structs.replace(models[cell.model], tokens=cell.tokens)
    return Point(model=model, plan=cell.plan, batch=cell.batch, link=cell.link)


def simulator_of(models: Mapping[str, ModelSpec]) -> Simulate:
    """Milliseconds of cells under a profile, with the machine as quick as it was at each."""

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
    """A guess for each cell, spread over processes."""
    return pooled(guess_of(profile, draws, seed), [point_of(cell, models) for cell in cells], processes)


def pooled(task: Callable[[Point], Guess], points: Sequence[Point], processes: int) -> list[Guess]:
    if processes <= 1:
        return list(map(task, points))
    with ProcessPoolExecutor(processes) as pool:
        return list(pool.map(task, points, chunksize=max(1, len(points) // (4 * processes))))


def guess_of(profile: CalibratedProfile, draws: int, seed: int) -> Callable[[Point], Guess]:
    """What makes a guess of a point; it goes to other processes."""
    return partial(_guess, profile, profile.draws(draws, seed), seed)


def _guess(profile: CalibratedProfile, costs: Sequence[CostModel], seed: int, point: Point) -> Guess:
    cost = profile.model()
    found = summary(profile, cost, point)
    slower = latency_ms(profile, cost.at_speed(1 / SLOWER), point)
    drawn = latencies(profile, costs, point) * scatter(profile, len(costs), point, seed)
    outside = outside_of(profile, point)
    return Guess(
        ms=found.latency_ms.p50,
        draws=tuple(map(float, drawn)),
        split_ms=found.split_ms,
        tag="extrapolated" if outside else "calibrated",
        outside=tuple(outside),
        host_share=math.log(slower / found.latency_ms.p50) / math.log(SLOWER),
    )
