"""Score a prediction without error: the scatter of the measurements themselves bounds what any prediction reaches."""

import functools
import itertools
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from calibration.decision_scores import Guess, MeasuredPairs, break_evens_of, distances, pairs_of, rule_of

DRAWS, MEDIANS = 16, 20_000


class Perfect(msgspec.Struct, frozen=True, kw_only=True):
    """Means over draws of where the true medians may lie; the fields are those of Scores."""

    latency_mape_pct: float
    decision_accuracy_pct: float
    regret_mean_pct: float
    regret_p95_pct: float
    crossover_log2_median: float | None


def perfect(measured: MeasuredPairs, logs: Sequence[NDArray[np.float64]]) -> Perfect | None:
    """Score guesses at the true medians. None where no cell was visited twice.

    logs: of the milliseconds of each cell's visits, in order.

    A true median lies about the measured one as the measured lies about it: log-normal, with the deviation that the
    median of a cell's visits has. What moves all visits of a cell alike isn't in it.
    """
    visit = deviation(logs)
    if visit is None:
        return None
    spread = visit * np.array([_of_median(len(visits)) for visits in logs])
    rng = np.random.default_rng(0)
    scores = [_scored(measured, np.exp(spread * rng.standard_normal(len(spread)))) for _ in range(DRAWS)]
    *means, log2 = (
        float(np.mean(values)) if (values := [value for value in column if value is not None]) else None
        for column in zip(*scores, strict=True)
    )
    mape, accuracy, regret, p95 = (mean if mean is not None else float("nan") for mean in means)
    return Perfect(
        latency_mape_pct=mape,
        decision_accuracy_pct=accuracy,
        regret_mean_pct=regret,
        regret_p95_pct=p95,
        crossover_log2_median=log2,
    )


def _scored(measured: MeasuredPairs, factors: NDArray[np.float64]) -> tuple[float | None, ...]:
    guesses = [
        Guess(ms=factor * cell.latency_ms.p50, draws=(), split_ms={}, tag="calibrated", outside=())
        for factor, cell in zip(map(float, factors), measured.map.cells, strict=True)
    ]
    pairs = pairs_of(measured, guesses)
    rule = rule_of(pairs, [pair.predicted_excess < 0 for pair in pairs])
    logs = distances(break_evens_of(measured, guesses))
    return (
        100 * float(np.abs(factors - 1).mean()),
        rule.decision_accuracy_pct,
        rule.regret_mean_pct,
        rule.regret_p95_pct,
        float(np.median(logs)) if logs else None,
    )


def deviation(logs: Sequence[NDArray[np.float64]]) -> float | None:
    """Standard deviation of the logarithm of a visit, the same for all cells.

    From the mean distance of two visits of a cell (2 s / sqrt(pi) of normal ones), which a disturbed visit moves less
    than a variance.
    """
    apart = [abs(a - b) for visits in logs for a, b in itertools.combinations(visits, 2)]
    return float(np.sqrt(np.pi) / 2 * np.mean(apart)) if apart else None


@functools.cache
def _of_median(visits: int) -> float:
    """Standard deviation of the median of `visits` standard normal values."""
    drawn = np.random.default_rng(0).standard_normal((MEDIANS, visits))
    return float(np.median(drawn, axis=1).std())
