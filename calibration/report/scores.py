"""The scores of a comparison as rows and lines, for the page and for the console."""

import math

import msgspec

from calibration.decision_scores import Rule
from calibration.noise_floor import Perfect
from calibration.validate import ComparisonReport, Scores

RULE_HEADS = ("", "decisions right", "mean regret", "P95 regret")


class Goal(msgspec.Struct, frozen=True):
    """A figure that a comparison is judged by: its value, and the range that the product promises."""

    name: str
    value: float | None
    low: float
    high: float
    unit: str

    @property
    def reached(self) -> bool:
        """Whether the value lies between the limits of its goal."""
        return self.value is not None and self.low <= self.value <= self.high

    @property
    def row(self) -> tuple[str, str, str, str]:
        """Name, value, promised range, and whether it is reached."""
        if self.low <= 0:
            wanted = f"at most {self.high:g}"
        else:
            wanted = f"at least {self.low:g}" if self.high >= 100 else f"{self.low:g} to {self.high:g}"
        value = "not measured" if self.value is None else f"{self.value:.2f}"
        return (f"{self.name}{f', {self.unit}' if self.unit else ''}", value, wanted, "yes" if self.reached else "no")


def goals(scores: Scores) -> list[Goal]:
    """List the figures that a comparison is judged by."""
    return [
        Goal("latency MAPE", scores.latency_mape_pct, 0, 5, "%"),
        Goal("decision accuracy outside of near ties", scores.prism.decision_accuracy_pct, 97, 100, "%"),
        Goal("mean regret", scores.prism.regret_mean_pct, 0, 1, "%"),
        Goal("P95 regret", scores.prism.regret_p95_pct, 0, 5, "%"),
        Goal("median |log2| of break-evens in bandwidth", scores.crossover_log2_median, 0, 0.15, ""),
        Goal("coverage of the 90 % interval", scores.coverage90_pct, 85, 95, "%"),
    ]


def goal_heads(report: ComparisonReport) -> list[str]:
    """Name the columns of `goal_rows`."""
    heads = ["", "value"]
    for number, scores in enumerate(_both_paces(report)):
        heads += ["at its pace"] if number else []
        heads += ["if perfect"] if scores.perfect else []
    return [*heads, "goal", "reached"]


def goal_rows(report: ComparisonReport) -> list[tuple[str, ...]]:
    """Tabulate the goals. Reached counts the predictions as made, not those corrected for the machine's pace."""
    columns: list[list[str]] = []
    for scores in _both_paces(report):
        columns.append([goal.row[1] for goal in goals(scores)])
        columns += [_perfect_values(scores.perfect)] if scores.perfect else []
    plain = [goal.row for goal in goals(report.scores)]
    return [(row[0], *values, *row[2:]) for row, values in zip(plain, zip(*columns, strict=True), strict=True)]


def _both_paces(report: ComparisonReport) -> list[Scores]:
    return [report.scores, *([report.paced] if report.paced else [])]


def _perfect_values(perfect: Perfect) -> list[str]:
    """In the order of `goals`; a perfect prediction has no interval."""
    values = (
        perfect.latency_mape_pct,
        perfect.decision_accuracy_pct,
        perfect.regret_mean_pct,
        perfect.regret_p95_pct,
        perfect.crossover_log2_median,
        None,
    )
    return ["-" if value is None or math.isnan(value) else f"{value:.2f}" for value in values]


def rule_rows(scores: Scores) -> list[tuple[str, str, str, str]]:
    """Tabulate Prism's choice and the baselines under RULE_HEADS."""
    return [_rule_row("Prism", scores.prism), *(_rule_row(name, rule) for name, rule in scores.baselines.items())]


def _rule_row(name: str, rule: Rule) -> tuple[str, str, str, str]:
    accuracy = "-" if rule.decision_accuracy_pct is None else f"{rule.decision_accuracy_pct:.1f} %"
    return name, accuracy, f"{rule.regret_mean_pct:.2f} %", f"{rule.regret_p95_pct:.1f} %"


def fact_lines(report: ComparisonReport) -> list[str]:
    """Say in lines what the goals leave out."""
    scores = report.scores
    right, of = scores.crossover_classes_right
    errors = ", ".join(f"{mode} {value:.1f} %" for mode, value in scores.mape_by_mode_pct.items())
    biases = ", ".join(f"{mode} {value:+.1f} %" for mode, value in scores.bias_by_mode_pct.items())
    return [
        f"{scores.cells} cells, {scores.extrapolated_cells} of them extrapolated; {scores.pairs} pairs of a "
        f"distributed plan and local, {scores.near_tie_cells} of them near ties, which noise decides.",
        *_perfect_line(report),
        _noise_line(scores),
        f"Mean absolute error: {errors}; mean error: {biases}.",
        f"Distributed over local, predicted less measured: {scores.difference_bias_pct:+.1f} % of local on average, "
        f"{scores.difference_mae_pct:.1f} % in size.",
        f"Break-evens: {right} of {of} have the right class (at a value, never, always); {scores.crossovers_at_both} "
        f"in bandwidth are at a value in both. Brier score of P(distributed wins): {scores.brier:.3f}.",
        *_pace_line(report),
        f"Choosing one of all measured plans: regret {scores.best_plan.regret_mean_pct:.2f} % on average, P95 "
        f"{scores.best_plan.regret_p95_pct:.1f} %.",
    ]


def _perfect_line(report: ComparisonReport) -> list[str]:
    if report.scores.perfect is None:
        return []
    return [
        "If perfect: what a prediction that knows every cell's true median would score, by how far the visits of a "
        "cell lie apart; what moves all its visits alike isn't in it."
    ]


def _noise_line(scores: Scores) -> str:
    if math.isnan(scores.measurement_noise_pct):
        return "Each cell was visited once: how far measurements repeat is not measured."
    line = (
        f"A visit's median lies {scores.measurement_noise_pct:.1f} % from its cell's on average: the noise of the "
        "measurements themselves."
    )
    if not scores.visits_apart:
        return line
    return (
        f"{line} On one device the slowest visit of a cell took {scores.visits_apart:.2f} times its quickest (median)."
    )


def _pace_line(report: ComparisonReport) -> list[str]:
    if report.slowness is None:
        return []
    slower = 100 * (report.slowness - 1)
    return [
        f"A block timed beside every visit says that the machine was {abs(slower):.0f} % "
        f"{'slower' if slower > 0 else 'quicker'} than when the profile was calibrated (median cell). At its pace: "
        "what the same predictions come to with the computing of each cell stretched by that block's time over "
        "its time in the calibration."
    ]
