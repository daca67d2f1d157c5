"""A comparison of predictions with measurements as one self-contained HTML page."""

from collections.abc import Sequence

from markupsafe import Markup

from calibration.decision_scores import BreakEven
from calibration.report.figures import break_even_figure, kinds_figure, scatter_figure, winner_figure
from calibration.report.fit import PACKAGES
from calibration.report.scores import RULE_HEADS, fact_lines, goal_heads, goal_rows, rule_rows
from calibration.validate import CellComparison, ComparisonReport
from prism.cost import CalibratedProfile
from prism.report.figures import drawn
from prism.report.page import frame, html_table, installed, rendered
from prism.trace import now_text

WORST = 10
BODY = """<p class="about">{{ seen }}</p>
{{ goals }}
{% for fact in facts %}<p>{{ fact }}</p>{% endfor %}
<h2>Against simpler rules</h2>{{ rules }}
<h2>Measured and predicted</h2>{{ scatter }}
{% if winners %}<h2>Which is faster</h2>{{ winners }}{% endif %}
{% if evens %}<h2>Break-evens in bandwidth</h2>{{ evens }}
<p class="about">~: noise may move the measured one.</p>{% endif %}
{% if every_even %}<details><summary>All break-evens, in bandwidth and batch</summary>{{ every_even }}
</details>{% endif %}
<h2>Error by span kind</h2>{{ kinds }}
<p class="about">Of the leader. An error in one kind may be made up for by another: a rank that computes longer waits
less.</p>
<h2>By model</h2>{{ models }}
<h2>The largest errors</h2>{{ worst }}
<details><summary>All cells</summary>{{ every }}</details>
<h2>Profile</h2><p>{{ profile }}</p>
"""


def comparison_page(
    report: ComparisonReport, profile: CalibratedProfile, in_fit: int, command: str, title: str, about: str = ""
) -> str:
    """Make the page's HTML.

    `in_fit` counts the traces that the profile was fitted to. `about` is what else a reader must know first.
    """
    body = rendered(
        BODY,
        seen=f"{_seen_line(in_fit)} {about}",
        goals=html_table(goal_heads(report), goal_rows(report)),
        facts=fact_lines(report),
        rules=html_table(RULE_HEADS, rule_rows(report.scores)),
        scatter=drawn(scatter_figure, report.rows),
        winners=drawn(winner_figure, report.pairs),
        evens=drawn(break_even_figure, report.break_evens),
        every_even=_break_even_table(report.break_evens),
        kinds=drawn(kinds_figure, report.rows),
        models=_model_table(report),
        worst=_worst_table(report.rows),
        every=_cell_table(report.rows),
        profile=f"{profile.name}, {profile.device}, {profile.power_mode}. {profile.note}",
    )
    return frame(title, body, now_text(), command, installed(PACKAGES))


def _seen_line(in_fit: int) -> str:
    if in_fit:
        return f"{in_fit} of the traces were part of the profile's own fit: their cells are no test of it."
    return "No trace of this comparison was part of the profile's fit."


def _model_table(report: ComparisonReport) -> Markup:
    errors = report.scores.mape_by_model_pct.items()
    return html_table(["model", "mean absolute error"], [(model, f"{error:.1f} %") for model, error in errors])


def _break_even_table(evens: Sequence[BreakEven]) -> Markup:
    if not evens:
        return Markup("")
    heads = ["model", "plan", "held", "over", "measured", "predicted"]
    rows = [
        (e.model, e.plan, e.held, e.axis, _place(e.measured, e.measured_at), _place(e.predicted, e.predicted_at))
        for e in evens
    ]
    return html_table(heads, rows)


def _worst_table(rows: Sequence[CellComparison]) -> Markup:
    worst = sorted(rows, key=lambda row: -abs(row.error_pct))[:WORST]
    heads = ["cell", "measured ms", "predicted ms", "error", "where it lies, of the latency"]
    return html_table(
        heads,
        [(r.cell, f"{r.measured_ms:.1f}", f"{r.predicted_ms:.1f}", f"{r.error_pct:+.0f} %", r.reason) for r in worst],
    )


def _cell_table(rows: Sequence[CellComparison]) -> Markup:
    heads = ["cell", "measured ms", "spread", "predicted ms", "90 %", "error", "tag"]
    return html_table(heads, map(_cell_row, rows))


def _cell_row(row: CellComparison) -> tuple[str, ...]:
    return (
        row.cell,
        f"{row.measured_ms:.1f}",
        _span(row.spread_ms),
        f"{row.predicted_ms:.1f}",
        _span(row.interval_ms),
        f"{row.error_pct:+.1f} %",
        row.tag,
    )


def _place(kind: str, at: float | None) -> str:
    return kind if at is None else f"{at:.4g}"


def _span(ends: tuple[float, float]) -> str:
    return f"{ends[0]:.1f}..{ends[1]:.1f}"
