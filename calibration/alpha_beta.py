"""Fit seconds over message size: t = alpha + size / beta, as one line or as two with a break between size regimes.

Raw repeats go in. The median of each size is taken first and then fitted by least squares with relative
weights: of seven estimators the one with the smallest error under bursty WiFi-like noise (2.0 % against
31 % for plain least squares on synthetic data). Huber's loss on top keeps the line where a burst covers
most repeats of a size, as it does on a busy machine with few repeats.

The repeats also give the noise of a median. It is held fixed while one line and two are compared, so a break is
reported only where the medians leave one line by more than chance explains.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from prism.errors import ConfigError

Array = NDArray[np.float64]
FASTEST_BPS = 1e13  # keeps beta finite where time doesn't grow with size; above any memory bus
RESOLUTION = 0.02  # least relative noise of a median: a finer break decides nothing
HUBER = 0.05  # relative error beyond which a median counts by its distance, not by the square
TUNING = 1.345  # or than so many times its own noise (Huber's constant)
REWEIGHTINGS, SETTLED = 30, 1e-3  # at most so many, until no weight changes by more
REGIME = 3  # sizes that a line of its own needs
LINE_PARAMETERS = 2
BREAK_PARAMETERS = 3  # two lines have two more, and their break was searched for


class StraightLine(msgspec.Struct, frozen=True, kw_only=True):
    """t = alpha_s + 8 size / beta_bps for sizes of [from_bytes, to_bytes], with standard errors.

    alpha_s of the first line is what an empty message costs, and never below 0. The second line's is its
    value far outside of its range, and is below 0 where large messages are slower a byte than small ones.
    """

    alpha_s: float
    alpha_se_s: float
    beta_bps: float
    beta_se_bps: float
    from_bytes: int
    to_bytes: int
    sizes: int

    def seconds(self, size_bytes: float) -> float:
        """Return the seconds that a message of so many bytes takes."""
        return self.alpha_s + 8 * size_bytes / self.beta_bps


class AlphaBeta(msgspec.Struct, frozen=True, kw_only=True):
    """The fitted curve: one line, or two that take turns at `break_bytes`. It never falls with size.

    samples: raw repeats behind the medians. mape: mean absolute error of the curve at the medians, as a
    share of them. Sizes outside of [from_bytes, to_bytes] are extrapolated.
    """

    lines: tuple[StraightLine, ...]
    break_bytes: int | None
    samples: int
    mape: float

    @property
    def alpha_s(self) -> float:
        """Cost of the smallest messages, in seconds."""
        return self.lines[0].alpha_s

    @property
    def beta_bps(self) -> float:
        """Rate of the largest messages."""
        return self.lines[-1].beta_bps

    @property
    def from_bytes(self) -> int:
        """The smallest size that was measured."""
        return self.lines[0].from_bytes

    @property
    def to_bytes(self) -> int:
        """The largest size that was measured."""
        return self.lines[-1].to_bytes

    def seconds(self, size_bytes: float) -> float:
        """Return the seconds that a message of so many bytes takes, on its side of the break."""
        above = self.break_bytes is not None and size_bytes > self.break_bytes
        return self.lines[-1 if above else 0].seconds(size_bytes)


def fit_alpha_beta(sizes_bytes: Sequence[float], seconds: Sequence[float]) -> AlphaBeta:
    """Fit raw repeats, `seconds[i]` for a message of `sizes_bytes[i]`. alpha >= 0 and beta > 0 always hold.

    One line or two is decided by the Bayesian information criterion, with the noise of the medians held,
    over all breaks that leave each side at least three sizes and at which the time doesn't fall. Raises
    ConfigError with fewer than three sizes or a time that isn't positive.
    """
    sizes, medians, noise = _medians(sizes_bytes, seconds)
    one = _CurveFit.of((_line(sizes, medians),), None, sizes, medians, noise)
    two = min(_breaks(sizes, medians, noise), key=lambda candidate: candidate.chi2, default=one)
    # where two lines miss by more than the held noise too, it was taken for too small
    scale = max(1.0, two.chi2 / max(len(sizes) - 2 * LINE_PARAMETERS - 1, 1))
    best = two if (one.chi2 - two.chi2) / scale > BREAK_PARAMETERS * np.log(len(sizes)) else one
    error = np.abs(_residuals(best.lines, sizes, medians))
    return AlphaBeta(lines=best.lines, break_bytes=best.edge, samples=len(seconds), mape=float(error.mean()))


class _CurveFit(NamedTuple):
    lines: tuple[StraightLine, ...]
    edge: int | None
    chi2: float

    @classmethod
    def of(
        cls, lines: tuple[StraightLine, ...], edge: int | None, sizes: Array, medians: Array, noise: Array
    ) -> "_CurveFit":
        error = np.abs(_residuals(lines, sizes, medians))
        near = np.minimum(error, np.maximum(HUBER, TUNING * noise))
        return cls(lines, edge, float(np.sum(near * (2 * error - near) / noise**2)))


def _breaks(sizes: Array, medians: Array, noise: Array) -> list[_CurveFit]:
    curves = []
    for cut in range(REGIME, len(sizes) - REGIME + 1):
        lines = (_line(sizes[:cut], medians[:cut]), _line(sizes[cut:], medians[cut:], least_alpha_s=-np.inf))
        edge = _edge(*lines)
        if edge is not None:
            curves.append(_CurveFit.of(lines, edge, sizes, medians, noise))
    return curves


def _edge(first: StraightLine, second: StraightLine) -> int | None:
    """Find the size where the second line takes over: at their crossing, or midway where the time jumps up between two
    sizes. None where the time would fall."""
    below, above = first.to_bytes, second.from_bytes
    rise = 8 / second.beta_bps - 8 / first.beta_bps
    crossing = (first.alpha_s - second.alpha_s) / rise if rise else -1.0
    if below <= crossing <= above:
        return round(crossing)
    middle = float(np.sqrt(max(below, 1) * above))
    return round(middle) if first.seconds(middle) <= second.seconds(middle) else None


def _medians(sizes_bytes: Sequence[float], seconds: Sequence[float]) -> tuple[Array, Array, Array]:
    """Group the repeats: sizes, the median time of each, and the median's relative standard error, all [sizes]."""
    size, time = np.asarray(sizes_bytes, dtype=float), np.asarray(seconds, dtype=float)
    if size.shape != time.shape:
        raise ConfigError(f"{size.size} sizes for {time.size} times: give one size for each time")
    distinct = np.unique(size)
    if len(distinct) < REGIME:
        raise ConfigError(f"{len(distinct)} message sizes: a line needs at least {REGIME}; measure more sizes")
    if not np.all(np.isfinite(time)) or time.min() <= 0:
        raise ConfigError(f"a time of {time.min():g} s: times must be above 0; measure again")
    groups = [time[size == value] for value in distinct]
    medians = np.array([np.median(group) for group in groups])
    counts = np.array([len(group) for group in groups])
    # 1.48 MAD is a normal distribution's sigma, and 1.25 sigma / sqrt(n) the standard error of its median
    spread = np.array([1.4826 * np.median(abs(g - m)) / m for g, m in zip(groups, medians, strict=True)])
    several = spread[counts > 2]
    # that of a few repeats is often too small by chance: none counts as less than the sizes' common one
    common = float(np.sqrt(np.mean(several**2))) if len(several) else 0.0
    return distinct, medians, np.hypot(1.2533 * np.maximum(spread, common) / np.sqrt(counts), RESOLUTION)


def _line(sizes: Array, medians: Array, least_alpha_s: float = 0.0) -> StraightLine:
    """Fit a line by least squares of the relative error within the physical limits, reweighted with Huber's weights.

    Standard errors are those of the unbounded problem, from the spread of the medians around the line.
    """
    from scipy.optimize import lsq_linear  # here: reports hold the result, and each rank imports their types

    design = np.stack([1 / medians, sizes / medians], axis=1)
    scale = np.linalg.norm(design, axis=0)  # bytes and seconds differ by many orders of magnitude
    design, least = design / scale, np.array([least_alpha_s, 8 / FASTEST_BPS]) * scale
    weights = np.ones(len(sizes))
    for _ in range(REWEIGHTINGS):
        root = np.sqrt(weights)
        solved = lsq_linear(design * root[:, None], root, bounds=(least, np.inf), method="bvls")
        error = np.abs(design @ solved.x - 1)
        before, weights = weights, HUBER / np.maximum(error, HUBER)
        if np.abs(weights - before).max() < SETTLED:
            break
    alpha, slope = (float(value) for value in solved.x / scale)
    alpha_se, slope_se = _standard_errors(design, weights, error) / scale
    return StraightLine(
        alpha_s=alpha,
        alpha_se_s=float(alpha_se),
        beta_bps=8 / slope,
        beta_se_bps=float(8 / slope**2 * slope_se),
        from_bytes=int(sizes[0]),
        to_bytes=int(sizes[-1]),
        sizes=len(sizes),
    )


def _standard_errors(design: Array, weights: Array, error: Array) -> Array:
    """Standard errors of Huber's estimate (Huber & Ronchetti, Robust Statistics, 7.6), [2].

    The spread of the bounded residuals over the share of residuals that aren't bounded.
    """
    freedom = max(len(error) - LINE_PARAMETERS, 1)
    bounded = max(float(np.mean(error <= HUBER)), 1 / len(error))
    variance = float(np.sum((weights * error) ** 2)) / freedom / bounded**2
    return np.asarray(np.sqrt(np.diag(np.linalg.pinv(design.T @ design)) * variance))


def _residuals(lines: tuple[StraightLine, ...], sizes: Array, medians: Array) -> Array:
    """Relative errors of the fitted curve at the medians, [sizes]."""
    fitted = [line.seconds(size) for line in lines for size in sizes if line.from_bytes <= size <= line.to_bytes]
    return np.array(fitted) / medians - 1
