"""Compare the published tables 2 and 4, and the published crossovers, with a fit on half of the rows.

    python -m experiments.paper_tables.run     # prints, and writes experiments/results/paper_tables/summary.json

The fit sees the rows of batch 1, 4 and 16 in every mode. The rows of batch 2, 8 and 32 are held out; batch 32 lies
outside the fit's range."""

from typing import Any

import msgspec
import numpy as np

from experiments.lib.places import RESULTS as ALL_RESULTS
from experiments.orin_nano.fit import SD, Fit, cells, fit
from experiments.orin_nano.power import RAIL, STATES, fit_power, seconds_in_states
from experiments.orin_nano.tables import MODEL, NOMINAL_BPS, PARTS, EnergyRow, Row, table2, table4
from prism.link import LinkSpec
from prism.plan import Mode
from sim.ask.break_even import PlanBreakEven, find_break_even
from sim.ask.point import Point, plan_of

FITTED_BATCHES = (1, 4, 16)
RESULTS = ALL_RESULTS / "paper_tables"
COLUMNS = (*PARTS, "total_ms")
PUBLISHED = {"crossover_batch": "from 8 on, local up to 4", "crossover_mbps": 340.0}
RATES = tuple(float(rate) for rate in range(200, 901, 50))  # the published sweep
WHY = {
    "crossover_mbps": "The bandwidth at which segment means meet local at batch 8 was published as 340 Mbps. Of the "
    "published split of that row only communication depends on the link: compute and staging leave 160.7 ms to "
    "local, and 90.4 ms at 400 Mbps grow to that at 225 Mbps if they go with 1 / bandwidth. No law of the link "
    "alone gives 340 with these rows; a link that slows down by more than its nominal rate would.",
    "communication_ms": "Communication of segment means at batch 8 (90.4 ms) lies above the line through its "
    "neighbours (39.0 at 4, 124.0 at 16): a burst or a slower link in that row, which a smooth law can't follow.",
    "staging_ms": "Staging of full exchange at batch 1 takes 94 ms for 304 kB, that of segment means 52 to 87 ms for "
    "246 to 492 kB, and 182 ms for 983 kB where full exchange takes 145 for 1217: no curve of the bytes alone goes "
    "through all of them. The simulated copies cost the same bytes the same time in both modes.",
    "compute_ms": "Compute times differ between modes by more than FLOPs: the model explains it by a clock that "
    "falls while a device waits. Clocks were not published.",
    "total_ms": "The sum of the parts, of which staging and communication of full exchange are off as said here.",
    "energy_j": "Full exchange draws 3.0 to 4.6 W where local draws 6.3 to 7.0 and segment means 8.0 to 8.6. Watts "
    "that depend on the state alone can't give that: full exchange computes for 38 to 50 % of its time. A lower clock "
    "also draws less, which the power states leave out.",
}


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """Hold a published figure beside its simulated counterpart. error_pct is signed."""

    mode: str
    batch: int
    what: str
    published: float
    simulated: float
    error_pct: float
    held_out: bool


def cell(row: Row, what: str, published: float, simulated: float) -> Cell:
    """Compare one published figure with the simulated one."""
    return Cell(
        mode=row.mode.value,
        batch=row.batch,
        what=what,
        published=published,
        simulated=round(simulated, 3),
        error_pct=round(100 * (simulated / published - 1), 2),
        held_out=row.batch not in FITTED_BATCHES,
    )


def latency_cells(fitted: Fit, rows: list[Row]) -> list[Cell]:
    """Compare every published cell that is not 0; in a local row compute and total are one figure."""
    found = []
    for row in rows:
        simulated = cells(fitted.profile, row)
        columns = COLUMNS if row.mode is not Mode.LOCAL else ("total_ms",)
        found += [cell(row, c, row.published[c], simulated[c]) for c in columns]
    return found


def energy_cells(fitted: Fit, rows: list[EnergyRow]) -> list[Cell]:
    """Compare every published energy with the watts that fit half of them."""
    power = fit_power(fitted.profile, [energy for energy in rows if energy.row.batch in FITTED_BATCHES])
    watts = np.array([getattr(power, state) for state in STATES])
    return [cell(e.row, "energy_j", e.joules, float(seconds_in_states(fitted.profile, e.row) @ watts)) for e in rows]


def flips(fitted: Fit) -> dict[str, PlanBreakEven]:
    """Find the crossovers of both distributed modes, over batch at 400 Mbps and over bandwidth at batch 8."""
    found = {}
    for mode in (Mode.SEGMENT_MEANS, Mode.FULL):
        plan = plan_of(fitted.profile, mode, 2, segments=10)
        link = LinkSpec(kind="testbed", rate_bps=NOMINAL_BPS)
        point = Point(model=MODEL, plan=plan, batch=8, link=link)
        found[f"{mode.value} batch"] = find_break_even(fitted.profile, point, "batch", range(1, 33))
        found[f"{mode.value} bandwidth"] = find_break_even(
            fitted.profile, point, "bandwidth", (50.0, 100.0, 150.0, *RATES)
        )
    return found


def median(found: list[Cell], held_out: bool | None = None) -> float:
    """Take the median absolute error in per cent: of all cells, or of those held out or not."""
    return float(np.median([abs(c.error_pct) for c in found if held_out is None or c.held_out == held_out]))


def summary(latency: list[Cell], energy: list[Cell], crossings: dict[str, PlanBreakEven]) -> dict[str, Any]:
    """Gather errors, crossovers, and what the published figures contradict."""
    far = [c for c in latency if abs(c.error_pct) > 100 * 2 * SD.get(c.what, 0.05)]
    return {
        "fit": f"rows of batch {FITTED_BATCHES} in every mode; the others are held out",
        "cells_median_abs_pct": median(latency),
        "held_out_median_abs_pct": median(latency, held_out=True),
        "fitted_median_abs_pct": median(latency, held_out=False),
        "totals_median_abs_pct": median([c for c in latency if c.what == "total_ms"]),
        "crossover_batch_400mbps": crossings["segment_means batch"].value,
        "crossover_mbps_batch8": crossings["segment_means bandwidth"].value,
        "published_crossovers": PUBLISHED,
        "crossovers": {
            name: {
                "class": f.kind,
                "value": f.value,
                "interval": f.interval,
                "p_distributed_wins": f.p_distributed_wins,
            }
            for name, f in crossings.items()
        },
        "energy_rail": RAIL,
        "energy_median_abs_pct": median(energy),
        "contradicted": [
            {"mode": c.mode, "batch": c.batch, "what": c.what, "error_pct": c.error_pct, "why": WHY.get(c.what, "")}
            for c in far
        ]
        + [{"what": "crossover_mbps", "why": WHY["crossover_mbps"]}, {"what": "energy_j", "why": WHY["energy_j"]}],
        "cells": latency + energy,
    }


def print_cells(title: str, found: list[Cell]) -> None:
    """Print a table of published and simulated figures."""
    print(f"\n{title}\n{'mode':14} {'batch':>5} {'what':>18} {'published':>10} {'simulated':>10} {'error':>8}")
    for c in found:
        mark = "  held out" if c.held_out else ""
        print(
            f"{c.mode:14} {c.batch:5} {c.what:>18} {c.published:10.2f} {c.simulated:10.2f} {c.error_pct:+7.1f}%{mark}"
        )


def main() -> None:
    rows = table2()
    fitted = fit([row for row in rows if row.batch in FITTED_BATCHES])
    latency, energy, crossings = latency_cells(fitted, rows), energy_cells(fitted, table4()), flips(fitted)
    result = summary(latency, energy, crossings)
    print(f"Fit: {result['fit']}")
    print_cells("Table 2, ms per batch", latency)
    print_cells(f"Table 4, joules per batch ({RAIL})", energy)
    print(
        "\nCrossovers with local, published: batch " + f"{PUBLISHED['crossover_batch']} at 400 Mbps; "
        f"{PUBLISHED['crossover_mbps']:g} Mbps at batch 8; full exchange never"
    )
    for name, f in crossings.items():
        shown = f.kind if f.value is None else f"at {f.value:.4g}, 90 % {f.interval[0]:.4g} .. {f.interval[1]:.4g}"  # type: ignore[index]
        print(f"  {name:26} {shown} (over {f.values[0]:g} .. {f.values[-1]:g})")
    print("\nContradicted:")
    for line in result["contradicted"]:
        where = f"{line['mode']}, batch {line['batch']}, {line['error_pct']:+.1f}%: " if "mode" in line else ""
        print(f"- {line['what']}: {where}{line['why']}")
    print(
        f"\nMedian absolute error: {result['cells_median_abs_pct']:.2f} % of all {len(latency)} cells, "
        f"{result['held_out_median_abs_pct']:.2f} % of those held out"
    )
    RESULTS.mkdir(parents=True, exist_ok=True)
    encoded = msgspec.json.format(msgspec.json.encode(result), indent=1)
    (RESULTS / "summary.json").write_bytes(encoded + b"\n")


if __name__ == "__main__":
    main()
