"""Choose the cell of a sweep to visit next: the one whose visit is expected to save the most regret.

Latencies are a few physical terms (work, bytes over the rate, bytes, exchanges) fitted to the visits so far, and a
Gaussian process on the logarithm of what they miss, with the visits' own noise. From its posterior follows, for each
pair of a distributed cell and its local one, how much latency the now better-looking plan is expected to lose:

    E[regret] = s (phi(z) - z (1 - Phi(z))),  z = |m| / s,  m, s: mean and deviation of log(distributed / local)

A visit of a cell shrinks s; the drop in E[regret], summed over the pairs of the cell, is what the visit is worth.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.stats import norm

from prism.link import LinkSpec
from prism.plan import ExecutionPlan
from prism.spec import ModelSpec
from prism.workload import build

Array = NDArray[np.float64]
MISS = 0.15  # prior standard deviation of the logarithm by which the physical terms miss
NEAR_BATCH, NEAR_RATE = 0.7, 0.5  # length scales of the Gaussian process, in logarithms
NOISE = 0.08  # prior standard deviation of the logarithm of a visit
NOISE_WEIGHT = 4  # visits that this prior counts as


class Candidate(NamedTuple):
    """A cell that may be visited. work: features of its latency, as `candidate` computes them."""

    plan: ExecutionPlan
    batch: int
    mbps: float  # 0 for local
    work: tuple[float, ...]


class Pick(NamedTuple):
    """A choice. place: of the candidate to visit next, None when no visit would help.

    regret_pct: expected now, the mean of the pairs.
    """

    place: int | None
    regret_pct: float


def candidate(model: ModelSpec, plan: ExecutionPlan, batch: int, link: LinkSpec, tokens: int | None) -> Candidate:
    """Describe a cell by its features: FLOPs of the busiest rank, seconds on the air, bytes, exchanges, and 1."""
    graph = build(model, plan, batch, tokens)
    shared = plan.ranks > 1
    size = graph.block_bytes() * model.blocks
    rate = link.rate_bps if shared else None
    work = (
        float(max(graph.flops(rank) for rank in range(plan.ranks))),
        8 * size / rate if rate else 0.0,
        float(size),
        float(model.blocks * shared),
        1.0,
    )
    return Candidate(plan=plan, batch=batch, mbps=rate / 1e6 if rate else 0.0, work=work)


def pick(candidates: Sequence[Candidate], visits: Sequence[Sequence[float]], most: int) -> Pick:
    """Choose the next cell of one model to visit.

    Starts with local cells and the corners of the grid, without which nothing is known.
    visits: milliseconds of each candidate's visits so far. most: visits of a cell at most.
    """
    counts = np.array([len(times) for times in visits])
    first = _unknown(candidates, counts)
    if first is not None:
        return Pick(first, float("inf"))
    mean, covariance, noise = _posterior(candidates, visits)
    pairs = _pairs(candidates)
    now = np.array([_regret(mean, covariance, a, b) for a, b in pairs])
    worth = np.zeros(len(candidates))
    for place in range(len(candidates)):
        if counts[place] < most:
            after = _after(covariance, place, noise)
            mine = [k for k, pair in enumerate(pairs) if place in pair]
            worth[place] = sum(now[k] - _regret(mean, after, *pairs[k]) for k in mine)
    best = int(np.argmax(worth))
    return Pick(best if worth[best] > 0 else None, 100 * float(now.mean()))


def expected(candidates: Sequence[Candidate], visits: Sequence[Sequence[float]]) -> Array:
    """Expected milliseconds of every candidate of one model, [candidates], visited or not. Needs one visit."""
    return np.asarray(np.exp(_posterior(candidates, visits)[0]))


def _unknown(candidates: Sequence[Candidate], counts: NDArray[np.int_]) -> int | None:
    """Find an unvisited local cell, or an unvisited corner of a plan's batches and rates."""
    for place, cell in enumerate(candidates):
        if cell.plan.ranks == 1 and not counts[place]:
            return place
    for place, cell in enumerate(candidates):
        alike = [c for c in candidates if c.plan == cell.plan]
        corner = cell.batch in (min(c.batch for c in alike), max(c.batch for c in alike)) and cell.mbps in (
            min(c.mbps for c in alike),
            max(c.mbps for c in alike),
        )
        if corner and not counts[place]:
            return place
    return None


def _pairs(candidates: Sequence[Candidate]) -> list[tuple[int, int]]:
    local = {cell.batch: place for place, cell in enumerate(candidates) if cell.plan.ranks == 1}
    return [(place, local[cell.batch]) for place, cell in enumerate(candidates) if cell.plan.ranks > 1]


def _posterior(candidates: Sequence[Candidate], visits: Sequence[Sequence[float]]) -> tuple[Array, Array, float]:
    """Compute the posterior of the logarithms of latencies.

    Returns the mean, [candidates], the covariance, [candidates, candidates], and the standard deviation of one visit.
    """
    seen = [place for place, times in enumerate(visits) if times]
    medians = np.array([np.median(visits[place]) for place in seen])
    work = np.array([cell.work for cell in candidates])
    design = work[seen] / medians[:, None]
    scale = np.linalg.norm(design, axis=0)
    scale[scale == 0] = 1.0
    coefficients, _ = nnls(design / scale, np.ones(len(seen)))
    physics = np.log(np.maximum(work @ (coefficients / scale), 1e-9))
    spreads = [np.log(ms) - np.log(np.median(ms)) for ms in visits if len(ms) > 1]
    off = np.concatenate(spreads) if spreads else np.zeros(0)
    freedom = sum(len(logs) - 1 for logs in spreads)
    noise = float(np.sqrt((np.sum(off**2) + NOISE_WEIGHT * NOISE**2) / (freedom + NOISE_WEIGHT)))
    alike = _alike(candidates)
    counts = np.array([len(visits[place]) for place in seen])
    observed = alike[np.ix_(seen, seen)] + np.diag(noise**2 / counts)
    gain = np.linalg.solve(observed, alike[seen]).T
    mean = physics + gain @ (np.log(medians) - physics[seen])
    return mean, alike - gain @ alike[seen], noise


def _alike(candidates: Sequence[Candidate]) -> Array:
    """Prior covariance of what the physical terms miss, [candidates, candidates]; large for plans and rates alike."""
    batch = np.log([cell.batch for cell in candidates])
    rate = np.log([cell.mbps or 1.0 for cell in candidates])
    plan = np.array([[float(a.plan == b.plan) for b in candidates] for a in candidates])
    near = ((batch[:, None] - batch) / NEAR_BATCH) ** 2 + ((rate[:, None] - rate) / NEAR_RATE) ** 2
    return np.asarray(MISS**2 * (0.5 * plan + 0.5 * plan * np.exp(-near / 2)))


def _after(covariance: Array, place: int, noise: float) -> Array:
    """Compute the covariance after one more visit of a candidate."""
    column = covariance[:, place]
    return np.asarray(covariance - np.outer(column, column) / (covariance[place, place] + noise**2))


def _regret(mean: Array, covariance: Array, ours: int, local: int) -> float:
    difference = float(mean[ours] - mean[local])
    variance = covariance[ours, ours] + covariance[local, local] - 2 * covariance[ours, local]
    deviation = float(np.sqrt(max(variance, 1e-12)))
    z = abs(difference) / deviation
    return deviation * float(norm.pdf(z) - z * norm.sf(z))
