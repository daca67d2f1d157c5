"""An accuracy table as a table in the terminal, rows of a Parquet file, and one self-contained HTML page."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import msgspec
from markupsafe import Markup
from rich.table import Table

from prism.decide.accuracy import AccuracyTable, Metric, PlanAccuracy
from prism.errors import ConfigError
from prism.labels import plan_label
from prism.report.map_figures import DASHES, LINES, style
from prism.report.page import frame, svg_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES: dict[Metric, str] = {"top1": "top-1", "perplexity": "perplexity", "pearson": "Pearson", "cosine": "cosine"}
LOST: dict[Metric, str] = {"top1": "points lost", "perplexity": "% above", "pearson": "lost", "cosine": "1 - cosine"}
SCALE: dict[Metric, float] = {"top1": 100.0, "perplexity": 100.0, "pearson": 1.0, "cosine": 1.0}

BODY = """{% for line in about %}<p class="about">{{ line }}</p>{% endfor %}
{{ plot }}
<p class="about">Bars: 90 % interval of the paired difference to the uncompressed model, by a bootstrap over samples. CR: bytes of a
full fp32 exchange over this plan's.</p>
<table><tr>{% for head in heads %}<th>{{ head }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for value in row %}<td>{{ value }}</td>{% endfor %}</tr>{% endfor %}</table>
{% if unreadable %}<h2>Left out ({{ unreadable | length }})</h2><ul>{% for each in unreadable %}<li>{{ each }}</li>{% endfor %}</ul>{% endif %}"""


def headings(table: AccuracyTable) -> list[str]:
    extra = ["ms", "J"] if any(row.ms is not None for row in table.rows) else []
    flips = {"top1": ["worse/better", "McNemar p"], "pearson": ["Spearman"]}.get(table.metric, [])
    return [
        "plan",
        "CR",
        "bytes",
        "GFLOPs",
        NAMES[table.metric],
        LOST[table.metric],
        "90 %",
        "agreement",
        *flips,
        "KL mean",
        "KL p99",
        "cosine",
        "rel. L2",
        *extra,
    ]


def cells(table: AccuracyTable, row: PlanAccuracy) -> list[str]:
    """A row of the table as texts, under `headings`."""
    scale = SCALE[table.metric]
    flips = {
        "top1": [f"{row.worse}/{row.better}", _number(row.mcnemar_p, "{:.2g}")],
        "pearson": [_number(row.spearman, "{:.4g}")],
    }.get(table.metric, [])
    extra = (
        [_number(row.ms, "{:.1f}"), "not measured" if row.joules is None else f"{row.joules:.2f}"]
        if any(each.ms is not None for each in table.rows)
        else []
    )
    value = f"{100 * row.value:.2f} %" if table.metric == "top1" else f"{row.value:.4g}"
    return [
        plan_label(row.plan),
        f"{row.cr:.1f}",
        f"{row.bytes_per_exchange:,}",
        f"{row.gflops_per_device:.2f}",
        value,
        f"{scale * row.loss:.3g}",
        f"{scale * row.ci90[0]:.3g} to {scale * row.ci90[1]:.3g}",
        f"{100 * row.agreement:.2f} %",
        *flips,
        _number(row.kl_mean, "{:.3g}"),
        _number(row.kl_p99, "{:.3g}"),
        f"{row.logit_cosine:.4f}",
        f"{row.relative_l2:.3f}",
        *extra,
    ]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def view(table: AccuracyTable) -> Table:
    """What fits a terminal; the page has all."""
    heads = headings(table)
    timed, metered = "ms" in heads, any(row.joules is not None for row in table.rows)
    names = [
        "plan",
        "CR",
        NAMES[table.metric],
        LOST[table.metric],
        "90 %",
        "agreement",
        *([] if timed else ["KL mean"]),
    ]
    names += ["ms"] if timed else []
    names += ["J"] if metered else []
    shown = [heads.index(name) for name in names]
    caption = f"{table.model} on {table.data}, {table.n} samples; agreement: with the uncompressed model"
    caption += "; energy not measured" if timed and not metered else ""
    found = Table(*[heads[k] for k in shown], caption=caption, box=None)
    for column in found.columns[1:]:
        column.justify = "right"
        column.no_wrap = True
    found.columns[0].no_wrap = True
    for row in table.rows:
        every = cells(table, row)
        found.add_row(*[every[k] for k in shown])
    return found


def page(table: AccuracyTable, misfits: Sequence[str]) -> str:
    """The page's HTML; plots are inline SVG, so that it needs no other file."""
    about = [f"{table.n} samples of {table.data}, weights {table.weights}, {table.tokens} tokens.", *misfits]
    with style():
        plot = svg_text(figure(table))
    body = (
        jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
        .from_string(BODY)
        .render(
            about=about,
            plot=Markup(plot),
            heads=headings(table),
            rows=[cells(table, row) for row in table.rows],
            unreadable=table.unreadable,
        )
    )
    created = f"{table.created} on {table.host.get('processor') or table.host.get('system', '')}"
    return frame(f"What compression costs {table.model}", body, created, table.command, table.host.get("versions", {}))


def figure(table: AccuracyTable) -> "Figure":
    """What is lost against CR, and against milliseconds and joules where a map gave them."""
    from matplotlib.figure import Figure

    axes_of: list[tuple[str, Callable[[PlanAccuracy], float | None]]] = [
        ("CR (bytes)", lambda row: row.cr if row.plan.ranks > 1 else None),
        ("ms a batch of one, by the map", lambda row: row.ms),
        ("joules, by the map", lambda row: row.joules),
    ]
    shown = [(label, x) for label, x in axes_of if any(x(row) is not None for row in table.rows)]
    drawn = Figure(figsize=(10.4, 4.2), layout="constrained")
    for axes, (label, x) in zip(drawn.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        _losses(axes, table, x)
        axes.set(xlabel=label, ylabel=LOST[table.metric], xscale="log")
        axes.spines[["top", "right"]].set_visible(False)
    drawn.axes[0].legend(frameon=False, fontsize=7)
    return drawn


def _losses(axes: "Axes", table: AccuracyTable, x: Callable[[PlanAccuracy], float | None]) -> None:
    """A line for each number of devices, mode and codec; a dash for each number of devices."""
    groups: dict[tuple[int, str, str], list[PlanAccuracy]] = {}
    for row in table.rows:
        groups.setdefault((row.plan.ranks, row.plan.mode.value, row.plan.wire), []).append(row)
    devices = sorted({key[0] for key in groups})
    colours = {name: LINES[k % len(LINES)] for k, name in enumerate(dict.fromkeys(key[1:] for key in groups))}
    for (ranks, mode, wire), rows in groups.items():
        points = sorted(((at, row) for row in rows if (at := x(row)) is not None), key=lambda point: point[0])
        if not points:
            continue
        scale = SCALE[table.metric]
        losses = [scale * row.loss for _, row in points]
        bars = [
            [scale * max(row.loss - row.ci90[0], 0.0) for _, row in points],
            [scale * max(row.ci90[1] - row.loss, 0.0) for _, row in points],
        ]
        axes.errorbar(
            [at for at, _ in points],
            losses,
            yerr=bars,
            marker="o",
            ms=3,
            lw=1.2,
            capsize=2,
            color=colours[mode, wire],
            ls=DASHES[devices.index(ranks) % len(DASHES)],
            label="local" if ranks == 1 else f"{mode.replace('_', ' ')} {wire}, P={ranks}",
        )


def write_parquet(table: AccuracyTable, path: Path) -> None:
    """One row a plan, its fields flat. Raises ConfigError."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for row in table.rows:
        flat = msgspec.to_builtins(row)
        plan = flat.pop("plan")
        intervals = {name: flat.pop(name) for name in ("ci90", "value_ci90", "agreement_ci90")}
        ends = {
            f"{name}_{end}": v for name, both in intervals.items() for end, v in zip(("low", "high"), both, strict=True)
        }
        rows.append(
            {"model": table.model, "data": table.data, "n": table.n, "metric": table.metric, **plan, **flat, **ends}
        )
    try:
        pd.DataFrame(rows).to_parquet(path)
    except OSError as error:
        raise ConfigError(f"{path} can't be written ({error}); choose another --output") from None
