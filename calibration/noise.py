"""How far the measurements' own scatter keeps even a perfect prediction from what was measured."""

import functools
import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

DRAWS = 20_000


def floor_mape_pct(logs: Sequence[NDArray[np.float64]]) -> float | None:
    """Mean absolute error, in per cent, of a prediction that knows every cell's true median; None where no cell was visited
    twice. logs: of the milliseconds of each cell's visits.

    A visit's logarithm is taken to be normal with one deviation for all cells, from the mean distance of two visits of a cell
    (2 s / sqrt(pi)), which a disturbed visit moves less than a variance. What moves all visits of a cell alike isn't in it.
    """
    apart = [abs(a - b) for each in logs for a, b in itertools.combinations(each, 2)]
    if not apart:
        return None
    deviation = np.sqrt(np.pi) / 2 * float(np.mean(apart))
    return float(100 * deviation * np.mean([_distance(len(each)) for each in logs]))


@functools.cache
def _distance(visits: int) -> float:
    """Mean distance of the median of so many standard normal values from 0."""
    drawn = np.random.default_rng(0).standard_normal((DRAWS, visits))
    return float(np.abs(np.median(drawn, axis=1)).mean())
