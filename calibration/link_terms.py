"""Fit the link's terms to whole latencies, through a simulator that the caller hands in."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

Array = NDArray[np.float64]
START = {"link.gain": 0.97, "link.message_s": 5e-4}  # of the configured rate; seconds per message
LINK = tuple(START)
OUTLIER = 0.05  # misfit of a logarithm from which on a cell counts by its distance, not by the square
STEP = 1e-2  # of a logarithm, for numerical slopes: a simulated latency is rounded to nanoseconds
MOST_EVALUATIONS = 200
GROSS = 5.0  # robust standard deviations above its cell's median beyond which a visit was disturbed


class LinkFit(NamedTuple):
    """Values of the link's terms, and the covariance of their logarithms in the order of LINK, [LINK, LINK].

    converged: whether the search ended at a minimum. message: of the search.
    """

    values: dict[str, float]
    covariance: Array
    converged: bool
    message: str


def fit_link_terms(whole_ms: Callable[[Array], Array], measured_ms: Array) -> LinkFit:
    """Fit LINK by robust least squares of the logarithms of latencies.

    whole_ms: maps the logarithms of the terms, [LINK], to the cells' milliseconds, [cells]. measured_ms: [cells].
    """

    def misfit(logs: Array) -> Array:
        return np.log(whole_ms(logs) / measured_ms)

    start = np.log(list(START.values()))
    found = least_squares(misfit, start, loss="soft_l1", f_scale=OUTLIER, diff_step=STEP, max_nfev=MOST_EVALUATIONS)
    noise = float(np.var(misfit(found.x)))
    return LinkFit(
        values={name: float(value) for name, value in zip(LINK, np.exp(found.x), strict=True)},
        covariance=noise * np.linalg.pinv(found.jac.T @ found.jac),
        converged=bool(found.success),
        message=str(found.message).rstrip("."),
    )


def undisturbed_ms(visits_ms: Sequence[Sequence[float]]) -> Array:
    """Take each cell's median over the visits that nothing disturbed grossly, [cells].

    Interference only slows visits down, so the median of all visits is biased upwards in every cell, and more cells do
    not help.
    """
    logs = [np.log(visits) - np.log(np.median(visits)) for visits in visits_ms]
    gross = GROSS * 1.4826 * float(np.median(np.abs(np.concatenate(logs))))
    return np.array([np.median(np.asarray(ms)[log <= gross]) for ms, log in zip(visits_ms, logs, strict=True)])
