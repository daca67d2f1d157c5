"""A fit as one self-contained HTML page, and its tables for the console."""

from calibration.fit import Calibration
from calibration.report.figures import residual_figure
from prism.report.figures import drawn
from prism.report.page import frame, html_table, installed, rendered
from prism.trace import now_text
from prism.units import format_bytes

PACKAGES = ("prism-edge", "numpy", "scipy", "simpy")
TERM_HEADS = ("term", "value", "standard error", "")
REGIME_HEADS = ("exchange", "messages", "cells", "mean error")
BODY = """<p>{{ summary }}</p>
{% for message in messages %}<p class="about">{{ message }}</p>{% endfor %}
<h2>Terms</h2>{{ terms }}
<p class="about">Standard errors are of the logarithm, from a bootstrap of whole visits. weak: the data hardly bear on
it.</p>
<h2>Residuals</h2>{{ residuals }}
<h2>Exchanges</h2>{{ regimes }}
<p class="about">The link's terms are the same for all of these; an error here that is large and of one sign says that
they shouldn't be.</p>
{% if left_out %}<h2>Each model from the others alone</h2>{{ left_out }}{% endif %}
"""


def fit_page(fit: Calibration, command: str) -> str:
    """Make the page's HTML."""
    errors = [(model, f"{error:.1f} %") for model, error in fit.left_out_mape_pct.items()]
    body = rendered(
        BODY,
        summary=fit_line(fit),
        messages=fit.messages,
        residuals=drawn(residual_figure, fit.residuals),
        terms=html_table(TERM_HEADS, term_rows(fit)),
        regimes=html_table(REGIME_HEADS, regime_rows(fit)),
        left_out=html_table(["model", "mean absolute error"], errors) if errors else "",
    )
    return frame(f"Calibration {fit.profile.name}", body, now_text(), command, installed(PACKAGES))


def fit_line(fit: Calibration) -> str:
    """Sum a fit up in one line."""
    return (
        f"{len(fit.residuals)} cells from {fit.visits} visits and {fit.probes} probed blocks: mean absolute error of "
        f"the fit {fit.mape_pct:.1f} %, scatter that predictions carry {100 * fit.profile.residual_log_sd:.1f} %"
    )


def term_rows(fit: Calibration) -> list[tuple[str, str, str, str]]:
    """Tabulate the terms under TERM_HEADS."""
    return [
        (term.name, f"{term.value:.4g}", "-" if term.log_se is None else f"{100 * term.log_se:.1f} %", term.state)
        for term in fit.estimates
    ]


def regime_rows(fit: Calibration) -> list[tuple[str, str, str, str]]:
    """Tabulate the mean error by collective, devices and message size under REGIME_HEADS."""
    return [
        (
            f"{regime.collective}, P={regime.devices}",
            " to ".join(format_bytes(size) for size in regime.bytes),
            str(regime.cells),
            f"{regime.error_pct:+.1f} %",
        )
        for regime in fit.regimes
    ]
