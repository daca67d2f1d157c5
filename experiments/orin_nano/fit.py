"""Fit the latency terms of the profile `orin-nano` to the published tables.

Each term starts from a stated prior: a median, and a width as the standard deviation of its logarithm. The fit
minimises robust relative errors of the published compute, staging and communication times, plus the distance from the
priors, through the simulator itself. A term whose posterior is nearly as wide as its prior was not determined by the
data, and the profile says so."""

import hashlib
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from experiments.lib.places import PUBLISHED
from experiments.orin_nano.tables import MODEL, NOMINAL_BPS, PARTS, TABLES, TAKEN, Row
from prism.backend import Workload
from prism.cost import CalibratedProfile, Term, columns
from prism.link import LinkSpec
from prism.plan import ExecutionPlan, Mode
from prism.trace.metrics import Summary, summarise
from sim.engine.backend import SimBackend, identical


class Prior(NamedTuple):
    """State what is believed of a term before the fit."""

    median: float
    width: float  # of the logarithm
    source: str


SD = {"compute_ms": 0.05, "staging_ms": 0.1, "communication_ms": 0.1}  # how far a published cell may be off
PRIORS = {
    "gemm.s_per_flop": Prior(1.6e-12, 0.5, "about half of 1.28 TFLOPS, the data sheet's fp32 peak"),
    "attention.s_per_flop": Prior(3.2e-12, 0.3, "half as efficient as a matrix product"),
    "memory.s_per_byte": Prior(2.1e-11, 0.3, "70 % of 68 GB/s, the data sheet's bandwidth"),
    "kernel.fixed_s": Prior(5e-5, 0.7, "an eager kernel launch on a small ARM core takes 20 to 100 us"),
    "block.fixed_s": Prior(1e-3, 1.0, "interpreter and module calls of one block"),
    "exchange.fixed_s": Prior(3e-3, 1.0, "an empty queue after a wait: launches are not hidden"),
    "overlap.power": Prior(2.0, 0.3, "launches half hidden"),
    "clock.slowdown": Prior(1.0, 0.7, "clocks shift medians by 11 to 48 % and more"),
    "clock.rise_s": Prior(0.06, 0.7, "a governor samples every few tens of ms"),
    "clock.fall_s": Prior(0.06, 0.7, "a governor samples every few tens of ms"),
    "link.gain": Prior(2.8, 0.7, "400 Mbps between stations is 2 to 4 times that of air: crossings, directions"),
    "link.message_s": Prior(1e-3, 0.7, "one WiFi round trip with gloo's handshake"),
    "copy.fixed_s": Prior(5e-4, 1.0, "an asynchronous copy and its synchronisation"),
    "copy.s_per_byte": Prior(4e-9, 1.0, "pageable copies and packing, 0.25 GB/s"),
    "copy.break_bytes": Prior(1e6, 0.5, "the curve splits at some MB in published profiles of the same boards"),
    "copy.large_s_per_byte": Prior(2e-9, 1.0, "0.5 GB/s"),
}
TIED = ("d2h", "h2d")  # the tables give their sum only: each takes half; packing is inside


def simulate(profile: CalibratedProfile, plan: ExecutionPlan, batch: int, rate_bps: float) -> Summary:
    """Simulate one point in its steady state: a warm-up batch leaves the clock where batches leave it."""
    link = LinkSpec(kind="testbed", rate_bps=rate_bps)
    backend = SimBackend(identical(profile, profile.model(), plan.ranks, link))
    return summarise(backend.run(plan, Workload(model=MODEL, batch=batch, warmups=1)))


def cells(profile: CalibratedProfile, row: Row) -> dict[str, float]:
    """Simulate the counterparts of a row of Table 2; communication includes waiting for the other rank."""
    summary = simulate(profile, row.plan, row.batch, NOMINAL_BPS)
    split = summary.split_ms
    return {
        "compute_ms": split["compute"],
        "staging_ms": split["stage_d2h"] + split["stage_h2d"],
        "communication_ms": split["wait"] + split["wire"],
        "total_ms": summary.latency_ms.p50,
    }


def profile_of(logs: NDArray[np.float64], sources: dict[str, tuple[str, str]] | None = None) -> CalibratedProfile:
    """Make a profile from the logarithms of PRIORS' terms, in their order."""
    terms = []
    for name, value in zip(PRIORS, np.exp(logs), strict=True):
        origin, source = (sources or {}).get(name, ("prior", PRIORS[name].source))
        names = [name] if not name.startswith("copy.") else [f"{c}.{name.removeprefix('copy.')}" for c in TIED]
        terms += [Term(name=n, value=float(value), origin=origin, source=source) for n in names]  # type: ignore[arg-type]
    return CalibratedProfile(
        name="orin-nano",
        device="NVIDIA Jetson Orin Nano 8 GB",
        power_mode="not stated by the source",
        staged=True,
        note="fitted by experiments/orin_nano to published tables alone (experiments/lib/published); two boards, "
        "ViT-Base/16, fp32, WiFi at a nominal 400 Mbps",
        terms=tuple(terms),
        ranges={},
        traces=(),
        taken=TAKEN,
        memory_bytes=8e9,
    )


class Fit(NamedTuple):
    """Hold a fitted profile, the rows it was fitted to, and how well each term was determined."""

    profile: CalibratedProfile
    rows: list[Row]
    posterior: dict[str, float]  # width of the logarithm


def residuals(profile: CalibratedProfile, row: Row) -> list[float]:
    """Compute log(simulated / published), in units of what a published cell may be off."""
    found = cells(profile, row)
    return [float(np.log(found[p] / row.published[p])) / SD[p] for p in PARTS if row.published[p] > 0]


def fit(rows: list[Row]) -> Fit:
    """Find the maximum a posteriori, and the covariance of the logarithms from the curvature there."""
    start = np.log([prior.median for prior in PRIORS.values()])
    widths = np.array([prior.width for prior in PRIORS.values()])

    def misfit(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        profile = profile_of(logs)
        data = [r for row in rows for r in residuals(profile, row)]
        # robust: a cell that is far off counts linearly, not by its square; priors count in full
        soft = [float(np.sign(r) * np.sqrt(2 * (np.sqrt(1 + r * r) - 1))) for r in data]
        return np.concatenate([soft, (logs - start) / widths])

    def jacobian(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        # steps of 0.3 %: the simulator counts whole nanoseconds
        steps = 3e-3 * np.eye(len(logs))
        return np.array([(misfit(logs + step) - misfit(logs - step)) / 6e-3 for step in steps]).T

    found = least_squares(misfit, start, jac=jacobian, x_scale=widths, max_nfev=40)
    covariance = np.linalg.inv(found.jac.T @ found.jac)
    posterior = dict(zip(PRIORS, np.sqrt(np.diag(covariance)), strict=True))
    return Fit(_described(found.x, covariance, rows, posterior), rows, posterior)


def _described(
    logs: NDArray[np.float64], covariance: NDArray[np.float64], rows: list[Row], posterior: dict[str, float]
) -> CalibratedProfile:
    """Add origins, covariance, residual scatter and ranges to the fitted profile."""
    sources = {
        name: ("fitted", "published Table 2") if posterior[name] < 0.7 * prior.width else ("prior", prior.source)
        for name, prior in PRIORS.items()
    }
    profile = profile_of(logs, sources)
    index = [k for k, name in enumerate(PRIORS) for _ in range(2 if name.startswith("copy.") else 1)]
    totals = [np.log(cells(profile, row)["total_ms"] / row.published["total_ms"]) for row in rows]
    sizes = [row.batch * 4 * MODEL.width * (row.segments or 99) for row in rows if row.mode is not Mode.LOCAL]
    return msgspec.structs.replace(
        profile,
        covariance=tuple(tuple(map(float, line)) for line in covariance[np.ix_(index, index)]),
        residual_log_sd=float(np.sqrt(np.mean(np.square(totals)))),
        ranges={
            "batch": (min(r.batch for r in rows), max(r.batch for r in rows)),
            "tokens": (197, 197),
            "width": (768, 768),
            "columns": (columns(MODEL), columns(MODEL)),
            "devices": (1, 2),
            "link_mbps": (400, 400),
            "message_bytes": (min(sizes), max(sizes)),
        },
        traces=tuple(hashlib.sha256((PUBLISHED / name).read_bytes()).hexdigest() for name in TABLES[:2]),
    )
