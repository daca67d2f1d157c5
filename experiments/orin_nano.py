"""Fit the built-in profile `orin-nano` to the published tables alone (experiments/reference).

    python experiments/orin_nano.py            # prints terms, priors and every residual; writes the profile

Each term starts from a stated prior (median, width as the standard deviation of its logarithm); the fit
minimises robust relative errors of the published compute, staging and communication times together with the
distance from the priors, through the simulator itself. A term whose posterior is nearly as wide as its prior
was not determined by the data, and the profile says so.
"""

import csv
import hashlib
import sys
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from prism.backend import Workload
from prism.cost import PROFILES, CalibratedProfile, Taken, Term, columns
from prism.link import LinkSpec
from prism.plan import ExecutionPlan, Mode
from prism.spec import ModelSpec, PowerProfile
from prism.trace.energy import modelled_energy
from prism.trace.metrics import Summary, summarise
from sim.engine.backend import SimBackend, identical

REFERENCE = Path(__file__).parent / "reference"
TABLES = ("prism_jetson_latency.csv", "prism_jetson_energy.csv", "prism_compute_accuracy.csv")
MODEL = ModelSpec(
    name="vit_base_patch16_224", family="vit", blocks=12, width=768, heads=12, mlp_width=3072, tokens=197,
    prefix_tokens=1, patch_values=768, output_width=10,
)  # fmt: skip
NOMINAL_BPS = 400e6
PARTS = ("compute_ms", "staging_ms", "communication_ms")
SD = {"compute_ms": 0.05, "staging_ms": 0.1, "communication_ms": 0.1}  # how far a published cell may be off


# choices that the source leaves open: fp32, gloo's all_gather, no overlap, inputs on both devices
TAKEN = Taken(overlap=False, embed="each", collective="ring")


class Prior(NamedTuple):
    median: float
    width: float  # of the logarithm
    source: str


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
}  # fmt: skip
TIED = ("d2h", "h2d")  # the tables give their sum only: each takes half; packing is inside


class Row(NamedTuple):
    """One row of Table 2."""

    mode: Mode
    segments: int | None
    batch: int
    published: dict[str, float]

    @property
    def plan(self) -> ExecutionPlan:
        if self.mode is Mode.LOCAL:
            return ExecutionPlan(mode=Mode.LOCAL)
        return ExecutionPlan(
            mode=self.mode,
            devices=2,
            segments=self.segments,
            collective=TAKEN.collective,
            overlap=TAKEN.overlap,
            embed=TAKEN.embed,
        )


def table2() -> list[Row]:
    with open(REFERENCE / TABLES[0], newline="") as file:
        return [
            Row(
                Mode(line["mode"]),
                int(line["segments_per_partition"]) if line["mode"] == "segment_means" else None,
                int(line["batch"]),
                {part: float(line[part]) for part in (*PARTS, "total_ms")},
            )
            for line in csv.DictReader(file)
        ]


def simulate(profile: CalibratedProfile, plan: ExecutionPlan, batch: int, rate_bps: float) -> Summary:
    """One point in its steady state: a batch goes before, so that the clock stands where batches leave it."""
    link = LinkSpec(kind="testbed", rate_bps=rate_bps)
    backend = SimBackend(identical(profile, profile.model(), plan.ranks, link))
    return summarise(backend.run(plan, Workload(model=MODEL, batch=batch, warmups=1)))


def cells(profile: CalibratedProfile, row: Row) -> dict[str, float]:
    """The simulated counterparts of a row of Table 2; communication includes waiting for the other rank."""
    summary = simulate(profile, row.plan, row.batch, NOMINAL_BPS)
    split = summary.split_ms
    return {
        "compute_ms": split["compute"],
        "staging_ms": split["stage_d2h"] + split["stage_h2d"],
        "communication_ms": split["wait"] + split["wire"],
        "total_ms": summary.latency_ms.p50,
    }


def profile_of(
    logs: NDArray[np.float64], sources: dict[str, tuple[str, str]] | None = None
) -> CalibratedProfile:
    """A profile from the logarithms of PRIORS' terms, in their order."""
    terms = []
    for name, value in zip(PRIORS, np.exp(logs), strict=True):
        origin, source = (sources or {}).get(name, ("prior", PRIORS[name].source))
        names = (
            [name] if not name.startswith("copy.") else [f"{c}.{name.removeprefix('copy.')}" for c in TIED]
        )
        terms += [Term(name=n, value=float(value), origin=origin, source=source) for n in names]  # type: ignore[arg-type]
    return CalibratedProfile(
        name="orin-nano", device="NVIDIA Jetson Orin Nano 8 GB", power_mode="not stated by the source", staged=True,
        note="fitted by experiments/orin_nano.py to published tables alone (experiments/reference); two boards, "
        "ViT-Base/16, fp32, WiFi at a nominal 400 Mbps",
        terms=tuple(terms), ranges={}, traces=(), taken=TAKEN,
    )  # fmt: skip


class Fit(NamedTuple):
    profile: CalibratedProfile
    rows: list[Row]
    posterior: dict[str, float]  # width of the logarithm


def residuals(profile: CalibratedProfile, row: Row) -> list[float]:
    """log(simulated / published) over what a published cell may be off."""
    found = cells(profile, row)
    return [float(np.log(found[p] / row.published[p])) / SD[p] for p in PARTS if row.published[p] > 0]


def fit(rows: list[Row]) -> Fit:
    """Maximum a posteriori, and the covariance of the logarithms from the curvature there."""
    start = np.log([prior.median for prior in PRIORS.values()])
    widths = np.array([prior.width for prior in PRIORS.values()])

    def misfit(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        profile = profile_of(logs)
        data = [r for row in rows for r in residuals(profile, row)]
        # soft: a cell that is far off counts by its distance, not by the square; priors count in full
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
    sources = {
        name: ("fitted", "published Table 2")
        if posterior[name] < 0.7 * prior.width
        else ("prior", prior.source)
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
            "batch": (min(r.batch for r in rows), max(r.batch for r in rows)), "tokens": (197, 197),
            "width": (768, 768), "columns": (columns(MODEL), columns(MODEL)), "devices": (1, 2), "link_mbps": (400, 400),
            "message_bytes": (min(sizes), max(sizes)),
        },
        traces=tuple(hashlib.sha256((REFERENCE / name).read_bytes()).hexdigest() for name in TABLES[:2]),
    )  # fmt: skip


# -- energy ---------------------------------------------------------------------------------------------

RAIL = (
    "assumed: the CPU and GPU rail of every board that takes part, so one in local mode and two otherwise; "
    "the source states neither rail nor boards"
)
STATES = ("idle_w", "compute_w", "copy_w", "transmit_w", "receive_w", "wait_w")
WATTS = {"idle_w": 0.8, "compute_w": 6.0, "copy_w": 2.0, "transmit_w": 1.5, "receive_w": 1.5, "wait_w": 0.8}
WATTS_WIDTH = 0.7  # a factor of two either way


class EnergyRow(NamedTuple):
    """One figure of Table 4: joules per batch of a mode."""

    row: Row
    joules: float


def table4() -> list[EnergyRow]:
    rows = {(row.mode.value, row.batch): row for row in table2()}
    with open(REFERENCE / TABLES[1], newline="") as file:
        lines = list(csv.DictReader(file))
    full = [EnergyRow(rows["full", int(line["batch"])], float(line["full_energy_j"])) for line in lines]
    adaptive = [
        EnergyRow(rows[line["adaptive_mode"], int(line["batch"])], float(line["adaptive_energy_j"]))
        for line in lines
    ]
    return full + adaptive


def seconds_in_states(profile: CalibratedProfile, row: Row) -> NDArray[np.float64]:
    """[6] seconds in each state of all boards: the joules of a profile with one watt there and none elsewhere."""
    backend = SimBackend(
        identical(profile, profile.model(), row.plan.ranks, LinkSpec(kind="testbed", rate_bps=NOMINAL_BPS))
    )
    trace = backend.run(row.plan, Workload(model=MODEL, batch=row.batch, warmups=1))
    return np.array([modelled_energy(trace, _watts({state: 1.0})).joules for state in STATES])


def _watts(values: dict[str, float]) -> PowerProfile:
    return PowerProfile(name="orin-nano", covers=RAIL, **{state: values.get(state, 0.0) for state in STATES})


def fit_power(profile: CalibratedProfile, rows: list[EnergyRow]) -> PowerProfile:
    """Watts of each state, by robust relative errors and the priors WATTS."""
    seconds = np.array([seconds_in_states(profile, energy.row) for energy in rows])
    joules = np.array([energy.joules for energy in rows])
    start = np.log([WATTS[state] for state in STATES])

    def misfit(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        errors = np.log(seconds @ np.exp(logs) / joules) / 0.1
        soft = np.sign(errors) * np.sqrt(2 * (np.sqrt(1 + errors**2) - 1))
        return np.concatenate([soft, (logs - start) / WATTS_WIDTH])

    found = least_squares(misfit, start)
    return _watts(dict(zip(STATES, map(float, np.exp(found.x)), strict=True)))


# -- the command ----------------------------------------------------------------------------------------


def print_terms(fitted: Fit) -> None:
    print(f"{'term':22} {'value':>10} {'width':>6} {'prior':>10} {'width':>6}  origin, source of the prior")
    values = fitted.profile.values()
    for name, prior in PRIORS.items():
        shown = name.replace("copy.", f"{TIED[0]}.")
        origin = next(term.origin for term in fitted.profile.terms if term.name == shown)
        print(
            f"{name:22} {values[shown]:10.3g} {fitted.posterior[name]:6.2f} {prior.median:10.3g} "
            f"{prior.width:6.2f}  {origin}; {prior.source}"
        )
    print(f"{'; '.join(f'copy.* stands for {c}.*' for c in TIED)}; widths are of the logarithm")


def print_residuals(fitted: Fit) -> None:
    print(f"{'row':28} " + " ".join(f"{part.removesuffix('_ms'):>22}" for part in (*PARTS, "total_ms")))
    for row in fitted.rows:
        found = cells(fitted.profile, row)
        texts = [
            f"{row.published[part]:8.1f} {found[part]:7.1f} {100 * (found[part] / row.published[part] - 1):+5.1f}%"
            if row.published[part]
            else "-"
            for part in (*PARTS, "total_ms")
        ]
        print(f"{row.mode.value + ', batch ' + str(row.batch):28} " + " ".join(f"{t:>22}" for t in texts))


def main() -> None:
    fitted = fit(table2())
    power = fit_power(fitted.profile, table4())
    profile = msgspec.structs.replace(fitted.profile, power=power)
    print(f"Fitted to all {len(fitted.rows)} rows of Table 2: published, simulated, difference\n")
    print_terms(fitted)
    print()
    print_residuals(fitted)
    print("\nWatts, fitted to Table 4: " + ", ".join(f"{s} {getattr(power, s):.2f}" for s in STATES))
    print(RAIL)
    PROFILES.mkdir(exist_ok=True)
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else PROFILES / "orin-nano.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(profile), indent=1) + b"\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
