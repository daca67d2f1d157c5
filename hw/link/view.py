"""What the link bench found, as a table for a terminal and as one page with plots."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from calibration.alpha_beta import AlphaBeta
from hw.link.report import BUSY, IDLE, LOADED, LinkReport, RoundTrips, collective_times, one_way, trips_ms
from prism.report.page import frame, svg_text
from prism.trace import Probe
from prism.trace.quantiles import quantiles
from prism.units import format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ABSENT = "not measured"
COLOURS = ("#3b6ea5", "#d9822b", "#6fae6f", "#9a6fb0", "#8a6d3b", "#c0504d", "#5a6472", "#1d2430")
STATES = ((IDLE, "idle", "#3b6ea5"), (BUSY, "busy", "#6fae6f"), (LOADED, "loaded", "#d9822b"))
CURVES = ("what", "alpha ms", "beta Mbps", "break", "error of the fit", "samples")
TRIPS = ("pair", "idle p50 / p95 / p99 ms", "busy ms", "loaded ms", "jitter ms", "goodput Mbps")


def link_view(report: LinkReport) -> RenderableType:
    """Tables and verdicts for a terminal."""
    tables = [_table(f"Link {report.link}, {report.ranks} devices", CURVES, curve_rows(report))]
    tables.append(_table("Round trips and sustained goodput", TRIPS, trip_rows(report)))
    return Group(*tables, *(Text(line) for line in verdicts(report)))


def _table(title: str, head: Sequence[str], rows: list[list[str]]) -> Table:
    table = Table(*head, title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    return table


def curve_rows(report: LinkReport) -> list[list[str]]:
    named = [(f"{pair.a} - {pair.b}", pair.curve) for pair in report.pairs]
    named += [(row.collective, row.curve) for row in report.collectives]
    return [[name, *_curve_cells(curve)] for name, curve in named]


def _curve_cells(curve: AlphaBeta) -> list[str]:
    first, last = curve.lines[0], curve.lines[-1]
    return [
        f"{1e3 * first.alpha_s:.3f} ± {1e3 * first.alpha_se_s:.3f}",
        f"{last.beta_bps / 1e6:.1f} ± {last.beta_se_bps / 1e6:.1f}",
        "none" if curve.break_bytes is None else format_bytes(curve.break_bytes),
        f"{curve.mape:.1%}",
        str(curve.samples),
    ]


def trip_rows(report: LinkReport) -> list[list[str]]:
    return [
        [
            f"{pair.a} - {pair.b}",
            _trips(pair.rtt_idle_ms),
            _trips(pair.rtt_busy_ms),
            _trips(pair.rtt_loaded_ms),
            ABSENT if pair.jitter_ms is None else f"{pair.jitter_ms:.3f}",
            ABSENT if pair.goodput_mbps is None else f"{pair.goodput_mbps:.1f}",
        ]
        for pair in report.pairs
    ]


def _trips(trips: RoundTrips | None) -> str:
    if trips is None:
        return ABSENT
    lost = f", {trips.lost} lost" if trips.lost else ""
    return f"{trips.p50:.2f} / {trips.p95:.2f} / {trips.p99:.2f} (n {trips.n}{lost})"


def verdicts(report: LinkReport) -> list[str]:
    """What follows from the figures, a line each."""
    lines = []
    if report.goodput_over_configured is not None:
        lines.append(
            f"goodput is {report.goodput_over_configured:.1%} of the {report.expected_goodput_mbps:g} Mbps that "
            f"{report.configured_mbps:g} Mbps leave when every byte crosses the air twice"
        )
    power = report.power_save
    if not power.checked or power.extra_ms is None:
        lines.append(f"power save {ABSENT}; the interface says: {power.interface}")
    else:
        word = "something sleeps between messages, switch power save off" if power.found else "no power save shows"
        lines.append(
            f"{word}: idle round trips take {power.extra_ms:.2f} ms longer than busy ones; "
            f"the interface says: {power.interface}"
        )
    if report.rtt_over == "exchange":
        lines.append(
            "round trips went through the exchange: loaded ones need a UDP echo, which this link doesn't carry"
        )
    return lines


def link_page(report: LinkReport, probes: Sequence[Probe]) -> str:
    """One self-contained page: `probes` are the raw samples that `run_link` kept."""
    import jinja2
    from markupsafe import Markup

    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(BODY)
    body = template.render(
        curves=CURVES,
        curve_rows=curve_rows(report),
        trips=TRIPS,
        trip_rows=trip_rows(report),
        verdicts=verdicts(report),
        curve_plot=Markup(curve_plot(report, probes)),
        trip_plot=Markup(trip_plot(report, probes)),
    )
    host = report.host
    about = f"{report.created} on {host.get('processor') or host['system']}; measured for {report.seconds:.0f} s."
    return frame(f"Link {report.link}, {report.ranks} devices", body, about, report.command, host["versions"])


BODY = """<h2>Time over message size</h2>
<p class="about">Dots are medians of raw repeats, bars their middle 80 %, lines the fits. A pair: one message one way;
mesh and ring: every device gives that many bytes to all others, until the slowest has everything.</p>
{{ curve_plot }}
<table><tr>{% for name in curves %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in curve_rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</table>
<h2>Round trips</h2>
<p class="about">Small packets: after pauses (idle), back to back (busy), and during a long transfer between the same
two devices (loaded).</p>
{{ trip_plot }}
<table><tr>{% for name in trips %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in trip_rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</table>
{% for line in verdicts %}<p>{{ line }}.</p>{% endfor %}"""


def curve_plot(report: LinkReport, probes: Sequence[Probe]) -> str:
    """Seconds over bytes, both logarithmic, one panel for pairs and one for collectives. SVG text."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for number, pair in enumerate(report.pairs):
        sizes, seconds = one_way(probes, pair.a, pair.b)
        _draw(left, f"{pair.a} - {pair.b}", sizes, seconds, pair.curve, number)
    for number, row in enumerate(report.collectives):
        _draw(right, row.collective, *collective_times(probes, row.collective), row.curve, number)
    for axes, title in ((left, "pairs, one way"), (right, f"collectives of {report.ranks}")):
        axes.set(xscale="log", yscale="log", xlabel="bytes", ylabel="ms", title=title)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    text = svg_text(figure)
    plt.close(figure)
    return text


def _draw(
    axes: "Axes", label: str, sizes: Sequence[int], seconds: Sequence[float], curve: AlphaBeta, number: int
) -> None:
    colour = COLOURS[number % len(COLOURS)]
    times = 1e3 * np.asarray(seconds)
    known = np.unique(sizes)
    low, middle, high = np.array([quantiles(times[np.equal(sizes, size)], 10, 50, 90) for size in known]).T
    axes.errorbar(known, middle, (middle - low, high - middle), fmt="o", ms=4, lw=1, color=colour, label=label)
    for line in curve.lines:
        grid = np.geomspace(line.from_bytes, line.to_bytes, 64)
        axes.plot(grid, [1e3 * line.seconds(size) for size in grid], color=colour, lw=1)


def trip_plot(report: LinkReport, probes: Sequence[Probe]) -> str:
    """Share of round trips that are done by a time: one panel a pair, one curve a state. SVG text."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    count = len(report.pairs)
    rows = -(-count // 3)
    figure, panels = plt.subplots(rows, min(count, 3), figsize=(10, 2.8 * rows), layout="constrained", squeeze=False)
    for axes in panels.flat[count:]:
        axes.set_visible(False)
    for pair, axes in zip(report.pairs, panels.flat, strict=False):
        for state, name, colour in STATES:
            times, _ = trips_ms(probes, pair.a, pair.b, state)
            if times:
                axes.ecdf(times, color=colour, label=name)
        axes.set(xscale="log", xlabel="round trip, ms", ylabel="share", title=f"{pair.a} - {pair.b}")
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    text = svg_text(figure)
    plt.close(figure)
    return text
