"""A fit and a comparison as self-contained HTML pages."""

import math
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import jinja2
from markupsafe import Markup

from calibration.decision_scores import Rule
from calibration.fit import Calibration
from calibration.noise_floor import Perfect
from calibration.report import figures
from calibration.validate import ComparisonReport, Scores
from prism.cost import CalibratedProfile
from prism.report.page import frame, svg_text
from prism.trace import now_text
from prism.units import format_bytes

PACKAGES = ("prism-edge", "numpy", "scipy", "simpy")
WORST = 10
TABLE = """<table><tr>{% for head in heads %}<th>{{ head }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for value in row %}<td>{{ value }}</td>{% endfor %}</tr>{% endfor %}</table>"""


class Goal:
    """A figure of the product's promise, and whether a value keeps it."""

    def __init__(self, name: str, value: float | None, low: float, high: float, unit: str) -> None:
        self.name, self.value, self.low, self.high, self.unit = name, value, low, high, unit

    @property
    def reached(self) -> bool:
        return self.value is not None and self.low <= self.value <= self.high

    def row(self) -> tuple[str, str, str, str]:
        if self.low <= 0:
            wanted = f"at most {self.high:g}"
        else:
            wanted = f"at least {self.low:g}" if self.high >= 100 else f"{self.low:g} to {self.high:g}"
        value = "not measured" if self.value is None else f"{self.value:.2f}"
        return (f"{self.name}{f', {self.unit}' if self.unit else ''}", value, wanted, "yes" if self.reached else "no")


def goals(scores: Scores) -> list[Goal]:
    """The figures that a comparison is held to."""
    return [
        Goal("latency MAPE", scores.latency_mape_pct, 0, 5, "%"),
        Goal("decision accuracy outside of near ties", scores.prism.decision_accuracy_pct, 97, 100, "%"),
        Goal("mean regret", scores.prism.regret_mean_pct, 0, 1, "%"),
        Goal("P95 regret", scores.prism.regret_p95_pct, 0, 5, "%"),
        Goal("median |log2| of break-evens in bandwidth", scores.crossover_log2_median, 0, 0.15, ""),
        Goal("coverage of the 90 % interval", scores.coverage90_pct, 85, 95, "%"),
    ]


def goal_heads(report: ComparisonReport) -> list[str]:
    heads = ["", "value"]
    for number, scores in enumerate(_known(report)):
        heads += ["at its pace"] if number else []
        heads += ["if perfect"] if scores.perfect else []
    return [*heads, "goal", "reached"]


def goal_rows(report: ComparisonReport) -> list[tuple[str, ...]]:
    """By `goal_heads`. Reached counts what was predicted, not what would have been for the machine's pace."""
    columns: list[list[str]] = []
    for scores in _known(report):
        columns.append([goal.row()[1] for goal in goals(scores)])
        columns += [_perfect(scores.perfect)] if scores.perfect else []
    plain = [goal.row() for goal in goals(report.scores)]
    return [(row[0], *found, *row[2:]) for row, found in zip(plain, zip(*columns, strict=True), strict=True)]


def _known(report: ComparisonReport) -> list[Scores]:
    return [report.scores, *([report.paced] if report.paced else [])]


def _perfect(found: Perfect) -> list[str]:
    """In the order of `goals`; a perfect prediction has no interval."""
    values = (
        found.latency_mape_pct,
        found.decision_accuracy_pct,
        found.regret_mean_pct,
        found.regret_p95_pct,
        found.crossover_log2_median,
        None,
    )
    return ["-" if value is None or math.isnan(value) else f"{value:.2f}" for value in values]


def rules(scores: Scores) -> list[tuple[str, str, str, str]]:
    """Name, accuracy, mean and P95 regret of Prism's choice and of the baselines."""

    def row(name: str, rule: Rule) -> tuple[str, str, str, str]:
        accuracy = rule.decision_accuracy_pct
        return (
            name,
            "-" if accuracy is None else f"{accuracy:.1f} %",
            f"{rule.regret_mean_pct:.2f} %",
            f"{rule.regret_p95_pct:.1f} %",
        )

    return [row("Prism", scores.prism), *(row(name, rule) for name, rule in scores.baselines.items())]


def facts(report: ComparisonReport) -> list[str]:
    """What else there is to say, in lines."""
    scores = report.scores
    right, of = scores.crossover_classes_right
    return [
        f"{scores.cells} cells, {scores.extrapolated_cells} of them extrapolated; {scores.pairs} pairs of a distributed plan and "
        f"local, {scores.near_tie_cells} of them near ties, which noise decides.",
        *_scatter(report),
        f"A visit's median lies {scores.measurement_noise_pct:.1f} % from its cell's on average: the noise of the measurements "
        f"themselves."
        + (
            f" On one device the slowest visit of a cell took {scores.visits_apart:.2f} times its quickest (median)."
            if scores.visits_apart
            else ""
        )
        if not math.isnan(scores.measurement_noise_pct)
        else "Each cell was visited once: how far measurements repeat is not measured.",
        "Mean absolute error: "
        + ", ".join(f"{k} {v:.1f} %" for k, v in scores.mape_by_mode_pct.items())
        + "; mean error: "
        + ", ".join(f"{k} {v:+.1f} %" for k, v in scores.bias_by_mode_pct.items())
        + ".",
        f"Distributed over local, predicted less measured: {scores.difference_bias_pct:+.1f} % of local on average, "
        f"{scores.difference_mae_pct:.1f} % in size.",
        f"Break-evens: {right} of {of} have the right class (at a value, never, always); {scores.crossovers_at_both} in bandwidth are "
        f"at a value in both. Brier score of P(distributed wins): {scores.brier:.3f}.",
        *_pace(report),
        f"Choosing one of all measured plans: regret {scores.best_plan.regret_mean_pct:.2f} % on average, P95 "
        f"{scores.best_plan.regret_p95_pct:.1f} %.",
    ]


def _scatter(report: ComparisonReport) -> list[str]:
    if report.scores.perfect is None:
        return []
    return [
        "If perfect: what a prediction that knows every cell's true median would score, by how far the visits of a cell lie apart; what "
        "moves all its visits alike isn't in it."
    ]


def _pace(report: ComparisonReport) -> list[str]:
    if report.slowness is None:
        return []
    slower = 100 * (report.slowness - 1)
    return [
        f"A block timed beside every visit says that the machine was {abs(slower):.0f} % {'slower' if slower > 0 else 'quicker'} "
        f"than when the profile was calibrated (median cell). At its pace: what the same predictions come to with the computing of "
        f"each cell stretched by that block's time over its time in the calibration."
    ]


COMPARED = """<p class="about">{{ seen }}</p>
{{ goals }}
{% for fact in facts %}<p>{{ fact }}</p>{% endfor %}
<h2>Against simpler rules</h2>{{ rules }}
<h2>Measured and predicted</h2>{{ scatter }}
{% if map %}<h2>Which is faster</h2>{{ map }}{% endif %}
{% if evens %}<h2>Break-evens in bandwidth</h2>{{ evens }}<p class="about">~: noise may move the measured one.</p>{% endif %}
{% if flips %}<details><summary>All break-evens, in bandwidth and batch</summary>{{ flips }}</details>{% endif %}
<h2>Error by span kind</h2>{{ kinds }}
<p class="about">Of the terminal. An error in one kind may be made up for by another: who computes longer waits less.</p>
<h2>By model</h2>{{ models }}
<h2>The largest errors</h2>{{ worst }}
<details><summary>All cells</summary>{{ every }}</details>
<h2>Profile</h2><p>{{ profile }}</p>
"""


def comparison_page(
    report: ComparisonReport, profile: CalibratedProfile, in_fit: int, command: str, title: str, about: str = ""
) -> str:
    """in_fit: how many of the traces the profile was fitted to. about: what else a reader must know first."""
    scores = report.scores
    worst = sorted(report.rows, key=lambda row: -abs(row.error_pct))[:WORST]
    with figures.style():
        evens = figures.break_even_figure(report.break_evens)
        drawn = {
            "scatter": _drawn(figures.scatter_figure(report.rows)),
            "kinds": _drawn(figures.kinds_figure(report.rows)),
        }
        if evens:
            drawn["evens"] = _drawn(evens)
        sides = figures.map_figure(report.pairs)
        if sides:
            drawn["map"] = _drawn(sides)
    seen = (
        f"{in_fit} of the traces were part of the profile's own fit: their cells are no test of it."
        if in_fit
        else "No trace of this comparison was part of the profile's fit."
    )
    body = _rendered(
        COMPARED,
        seen=f"{seen} {about}",
        facts=facts(report),
        **{"evens": "", "map": "", **drawn},
        goals=_table(goal_heads(report), goal_rows(report)),
        rules=_table(["", "decisions right", "mean regret", "P95 regret"], rules(scores)),
        models=_table(
            ["model", "mean absolute error"], [(k, f"{v:.1f} %") for k, v in scores.mape_by_model_pct.items()]
        ),
        flips=_table(
            ["model", "plan", "held", "over", "measured", "predicted"],
            [
                (
                    e.model,
                    e.plan,
                    e.held,
                    e.axis,
                    _place(e.measured, e.measured_at),
                    _place(e.predicted, e.predicted_at),
                )
                for e in report.break_evens
            ],
        )
        if report.break_evens
        else "",
        worst=_table(
            ["cell", "measured ms", "predicted ms", "error", "where it lies, of the latency"],
            [
                (r.cell, f"{r.measured_ms:.1f}", f"{r.predicted_ms:.1f}", f"{r.error_pct:+.0f} %", r.reason)
                for r in worst
            ],
        ),
        every=_table(
            ["cell", "measured ms", "spread", "predicted ms", "90 %", "error", "tag"],
            [
                (
                    r.cell,
                    f"{r.measured_ms:.1f}",
                    _span(r.spread_ms),
                    f"{r.predicted_ms:.1f}",
                    _span(r.interval_ms),
                    f"{r.error_pct:+.1f} %",
                    r.tag,
                )
                for r in report.rows
            ],
        ),
        profile=f"{profile.name}, {profile.device}, {profile.power_mode}. {profile.note}",
    )
    return frame(title, body, now_text(), command, _versions())


FITTED = """<p>{{ said }}</p>
{% for message in messages %}<p class="about">{{ message }}</p>{% endfor %}
<h2>Terms</h2>{{ terms }}
<p class="about">Standard errors are of the logarithm, from a bootstrap of whole visits. weak: the data hardly bear on it.</p>
<h2>Residuals</h2>{{ residuals }}
<h2>Exchanges</h2>{{ regimes }}
<p class="about">The link's terms are the same for all of these; an error here that is large and of one sign says that
they shouldn't be.</p>
{% if left_out %}<h2>Each model from the others alone</h2>{{ left_out }}{% endif %}
"""


def fit_page(found: Calibration, command: str) -> str:
    with figures.style():
        residuals = _drawn(figures.residual_figure(found.residuals))
    body = _rendered(
        FITTED,
        said=fit_line(found),
        messages=found.messages,
        residuals=residuals,
        terms=_table(["term", "value", "standard error", ""], terms(found)),
        regimes=_table(["exchange", "messages", "cells", "mean error"], regimes(found)),
        left_out=_table(
            ["model", "mean absolute error"], [(k, f"{v:.1f} %") for k, v in found.left_out_mape_pct.items()]
        )
        if found.left_out_mape_pct
        else "",
    )
    return frame(f"Calibration {found.profile.name}", body, now_text(), command, _versions())


def fit_line(found: Calibration) -> str:
    return (
        f"{len(found.residuals)} cells from {found.visits} visits and {found.probes} probed blocks: mean absolute error of the "
        f"fit {found.mape_pct:.1f} %, scatter that predictions carry {100 * found.profile.residual_log_sd:.1f} %"
    )


def terms(found: Calibration) -> list[tuple[str, str, str, str]]:
    return [
        (each.name, f"{each.value:.4g}", "-" if each.log_se is None else f"{100 * each.log_se:.1f} %", each.state)
        for each in found.estimates
    ]


def regimes(found: Calibration) -> list[tuple[str, str, str, str]]:
    """Mean error of the fit by collective, devices and size of the messages."""
    return [
        (
            f"{each.collective}, P={each.devices}",
            " to ".join(format_bytes(size) for size in each.bytes),
            str(each.cells),
            f"{each.error_pct:+.1f} %",
        )
        for each in found.regimes
    ]


def _place(kind: str, at: float | None) -> str:
    return kind if at is None else f"{at:.4g}"


def _span(ends: tuple[float, float]) -> str:
    return f"{ends[0]:.1f}..{ends[1]:.1f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    return _rendered(TABLE, heads=heads, rows=rows)


def _rendered(text: str, **values: Any) -> Markup:
    return Markup(
        jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(text).render(**values)
    )


def _drawn(figure: Any) -> Markup:
    return Markup(svg_text(figure))


def _versions() -> dict[str, str]:
    return {name: version(name) for name in PACKAGES}
