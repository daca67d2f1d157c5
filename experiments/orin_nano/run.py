"""Fit the built-in profile `orin-nano` to the published tables alone (experiments/lib/published).

    python -m experiments.orin_nano.run [FILE]      # prints terms, priors and every residual; writes the profile

FILE is prism/profiles/orin-nano.json by default. fit.py says how the fit works.
"""

import sys
from pathlib import Path

import msgspec

from experiments.orin_nano.fit import PRIORS, TIED, Fit, cells, fit
from experiments.orin_nano.power import RAIL, STATES, fit_power
from experiments.orin_nano.tables import PARTS, table2, table4
from prism.cost import PROFILES


def print_terms(fitted: Fit) -> None:
    """Print every term beside its prior."""
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
    """Print every published row beside the simulated one."""
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
