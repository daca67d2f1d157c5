"""Compute medians and quantiles of measurements: the place that chooses how to interpolate.

Quantiles are computed nowhere else but in benchmarks/, which has quartiles of its own.
"""

import statistics
from collections.abc import Iterable

import numpy as np


def median(values: Iterable[float]) -> float:
    """The middle value, or the mean of the two middle ones. Raises StatisticsError without values."""
    return float(statistics.median(values))  # numpy's takes ten times as long on the few values of a trace


def quantile(values: Iterable[float], percent: float) -> float:
    """The value that `percent` of 100 values don't exceed, interpolated linearly between neighbours."""
    return quantiles(values, percent)[0]


def quantiles(values: Iterable[float], *percents: float) -> tuple[float, ...]:
    """A quantile for each of `percents`, from 0 to 100."""
    return tuple(float(value) for value in np.percentile(np.fromiter(values, float), percents))


def nearest_quantiles(values: Iterable[float], *percents: float) -> tuple[float, ...]:
    """As `quantiles`, but each is one of the values: nothing was measured between two visits."""
    return tuple(float(value) for value in np.percentile(np.fromiter(values, float), percents, method="nearest"))
