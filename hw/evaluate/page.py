"""An accuracy table as one self-contained HTML page: what compression loses, over bytes, milliseconds and joules."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from hw.evaluate.tables import LOST, SCALE, columns
from prism.decide.accuracy import AccuracyTable, PlanAccuracy
from prism.report.figures import DASHES, SERIES, drawn, legend_above, panels
from prism.report.page import frame, html_table, rendered

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BODY = """{% for line in about %}<p class="about">{{ line }}</p>{% endfor %}
{{ plot }}
<p class="about">Bars: 90 % interval of the paired difference to the uncompressed model, by a bootstrap over samples.
CR: bytes of a full fp32 exchange over this plan's.</p>
{{ table }}
{% if unreadable %}<h2>Left out ({{ unreadable | length }})</h2>
<ul>{% for line in unreadable %}<li>{{ line }}</li>{% endfor %}</ul>{% endif %}"""
Quantity = Callable[[PlanAccuracy], float | None]
QUANTITIES: dict[str, Quantity] = {
    "CR (bytes)": lambda row: row.cr if row.plan.ranks > 1 else None,
    "ms a batch of one, by the map": lambda row: row.ms,
    "joules, by the map": lambda row: row.joules,
}


def accuracy_page(table: AccuracyTable, misfits: Sequence[str]) -> str:
    """Make the page's HTML. Figures are inline SVG, so that it needs no other file."""
    shown = columns(table)
    body = rendered(
        BODY,
        about=[f"{table.n} samples of {table.data}, weights {table.weights}, {table.tokens} tokens.", *misfits],
        plot=drawn(loss_figure, table),
        table=html_table([head for head, _ in shown], [[text(row) for _, text in shown] for row in table.rows]),
        unreadable=table.unreadable,
    )
    created = f"{table.created} on {table.host.get('processor') or table.host.get('system', '')}"
    return frame(f"What compression costs {table.model}", body, created, table.command, table.host.get("versions", {}))


def loss_figure(table: AccuracyTable) -> "Figure":
    """Draw what is lost against CR, and against milliseconds and joules where a map gave them."""
    given = {name: of for name, of in QUANTITIES.items() if any(of(row) is not None for row in table.rows)}
    figure, axes = panels(len(given), 4.2)
    for panel, (name, quantity) in zip(axes, given.items(), strict=True):
        _losses(panel, table, quantity)
        panel.set(xlabel=name, ylabel=LOST[table.metric], xscale="log")
    legend_above(figure, abreast=5)
    return figure


def _losses(panel: "Axes", table: AccuracyTable, quantity: Quantity) -> None:
    """Draw a line for each number of devices, mode and codec: a colour a codec and mode, a dash a number of devices."""
    groups: dict[tuple[int, str, str], list[PlanAccuracy]] = {}
    for row in table.rows:
        groups.setdefault((row.plan.ranks, row.plan.mode.value, row.plan.wire), []).append(row)
    devices = sorted({ranks for ranks, _, _ in groups})
    kinds = list(dict.fromkeys(key[1:] for key in groups))
    for (ranks, mode, wire), rows in groups.items():
        points = sorted(((at, row) for row in rows if (at := quantity(row)) is not None), key=lambda point: point[0])
        if points:
            name = "local" if ranks == 1 else f"{mode.replace('_', ' ')} {wire}, P={ranks}"
            colour = SERIES[kinds.index((mode, wire)) % len(SERIES)]
            dash = DASHES[devices.index(ranks) % len(DASHES)]
            _loss_line(panel, points, SCALE[table.metric], label=name, color=colour, ls=dash)


def _loss_line(panel: "Axes", points: list[tuple[float, PlanAccuracy]], scale: float, **style: Any) -> None:
    """Draw the loss of these plans with its 90 % intervals."""
    low = [scale * max(row.loss - row.ci90[0], 0.0) for _, row in points]
    high = [scale * max(row.ci90[1] - row.loss, 0.0) for _, row in points]
    losses = [scale * row.loss for _, row in points]
    panel.errorbar([at for at, _ in points], losses, [low, high], marker="o", ms=3, lw=1.2, capsize=2, **style)
