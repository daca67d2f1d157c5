"""The report of the link bench, as tables for the console and as one page with figures."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from calibration.alpha_beta import AlphaBeta
from hw.link.report import BUSY, IDLE, LOADED, LinkReport, PowerSave, RoundTrips, collective_times, one_way, trips_ms
from prism.report.figures import BLUE, GREEN, VERMILION, drawn, legend_above, line_style, panels
from prism.report.page import frame, html_table, rendered
from prism.trace import Probe
from prism.trace.quantiles import quantiles
from prism.units import format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ABSENT = "not measured"
STATES = ((IDLE, "idle", BLUE), (BUSY, "busy", GREEN), (LOADED, "loaded", VERMILION))
CURVES = ("what", "alpha ms", "beta Mbps", "break", "error of the fit", "samples")
TRIPS = ("pair", "idle p50 / p95 / p99 ms", "busy ms", "loaded ms", "jitter ms", "goodput Mbps")


def link_view(report: LinkReport) -> RenderableType:
    """Show curves, round trips and verdicts on the console."""
    curves = _console_table(f"Link {report.link}, {report.ranks} devices", CURVES, curve_rows(report))
    trips = _console_table("Round trips and sustained goodput", TRIPS, trip_rows(report))
    return Group(curves, trips, *(Text(line) for line in verdicts(report)))


def _console_table(title: str, head: Sequence[str], rows: list[list[str]]) -> Table:
    table = Table(*head, title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    return table


def curve_rows(report: LinkReport) -> list[list[str]]:
    """Return the rows of the table of curves."""
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
    """Return the rows of the table of round trips and goodput."""
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
    """Say what follows from the figures, a line each."""
    lines = []
    if report.goodput_over_configured is not None:
        lines.append(
            f"goodput is {report.goodput_over_configured:.1%} of the {report.expected_goodput_mbps:g} Mbps that "
            f"{report.configured_mbps:g} Mbps leave when every byte crosses the air twice"
        )
    lines.append(_power_save_line(report.power_save))
    if report.rtt_over == "exchange":
        lines.append(
            "round trips went through the exchange: loaded ones need a UDP echo, which this link doesn't carry"
        )
    return lines


def _power_save_line(power: PowerSave) -> str:
    if not power.checked or power.extra_ms is None:
        return f"power save {ABSENT}; the interface says: {power.interface}"
    word = "something sleeps between messages, switch power save off" if power.found else "no power save shows"
    return (
        f"{word}: idle round trips take {power.extra_ms:.2f} ms longer than busy ones; "
        f"the interface says: {power.interface}"
    )


BODY = """<h2>Time over message size</h2>
<p class="about">Dots are medians of raw repeats, bars their middle 80 %, lines the fits. A pair: one message one way;
mesh and ring: every device gives that many bytes to all others, until the slowest has everything.</p>
{{ curve_plot }}{{ curves }}
<h2>Round trips</h2>
<p class="about">Small packets: after pauses (idle), back to back (busy), and during a long transfer between the same
two devices (loaded).</p>
{{ trip_plot }}{{ trips }}
{% for line in verdicts %}<p>{{ line }}.</p>{% endfor %}"""


def link_page(report: LinkReport, probes: Sequence[Probe]) -> str:
    """Make one self-contained page; `probes` are the raw samples that `run_link` kept."""
    body = rendered(
        BODY,
        curves=html_table(CURVES, curve_rows(report)),
        trips=html_table(TRIPS, trip_rows(report)),
        verdicts=verdicts(report),
        curve_plot=drawn(curve_figure, report, probes),
        trip_plot=drawn(trip_figure, report, probes),
    )
    host = report.host
    about = f"{report.created} on {host.get('processor') or host['system']}; measured for {report.seconds:.0f} s."
    return frame(f"Link {report.link}, {report.ranks} devices", body, about, report.command, host["versions"])


def curve_figure(report: LinkReport, probes: Sequence[Probe]) -> "Figure":
    """Draw seconds over bytes, both logarithmic: a panel of pairs and one of collectives."""
    figure, (left, right) = panels(2, 4.2)
    for number, pair in enumerate(report.pairs):
        _draw_curve(left, f"{pair.a} - {pair.b}", *one_way(probes, pair.a, pair.b), pair.curve, number)
    for number, row in enumerate(report.collectives):
        _draw_curve(right, row.collective, *collective_times(probes, row.collective), row.curve, number)
    for axes, title in ((left, "pairs, one way"), (right, f"collectives of {report.ranks}")):
        axes.set(xscale="log", yscale="log", xlabel="bytes", ylabel="ms", title=title)
        if axes.has_data():
            axes.legend()
    return figure


def _draw_curve(
    axes: "Axes", label: str, sizes: Sequence[int], seconds: Sequence[float], curve: AlphaBeta, number: int
) -> None:
    """Draw the medians of raw repeats with their middle 80 %, and the fitted lines."""
    style = line_style(number)
    times = 1e3 * np.asarray(seconds)
    distinct = np.unique(sizes)
    low, middle, high = np.array([quantiles(times[np.equal(sizes, size)], 10, 50, 90) for size in distinct]).T
    bars = (middle - low, high - middle)
    axes.errorbar(distinct, middle, bars, fmt="o", ms=4, lw=1, color=style["color"], label=label)
    for line in curve.lines:
        grid = np.geomspace(line.from_bytes, line.to_bytes, 64)
        axes.plot(grid, [1e3 * line.seconds(size) for size in grid], lw=1, **style)


def trip_figure(report: LinkReport, probes: Sequence[Probe]) -> "Figure":
    """Draw the share of round trips that end within a time: a panel a pair, a curve a state of the link."""
    figure, axes = panels(len(report.pairs), 2.8, abreast=min(len(report.pairs), 3))
    for pair, panel in zip(report.pairs, axes, strict=True):
        for state, name, colour in STATES:
            times, _ = trips_ms(probes, pair.a, pair.b, state)
            if times:
                panel.ecdf(times, color=colour, label=name)
        panel.set(xscale="log", xlabel="round trip, ms", ylabel="share", title=f"{pair.a} - {pair.b}")
    legend_above(figure)
    return figure
