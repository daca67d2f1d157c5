"""Results as tables for a terminal, as JSON, CSV or Parquet, and as one HTML page with its plots inside."""

import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import msgspec
from markupsafe import Markup
from rich.table import Table

from prism.cli.entry import command_line
from prism.errors import ConfigError
from prism.files import write_file
from sim.ask.break_even import Influence, PlanBreakEven
from sim.ask.point import PointPrediction
from sim.ask.study import Result
from sim.cli.plots import SHOWN, STAGES, name_of, names_of, row
from sim.serving.scenario import ServingReport

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1d2430; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } .about { color: #5a6472; } svg { max-width: 100%; height: auto; }
table { border-collapse: collapse; width: 100%; font-size: .82rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .45rem; text-align: right; border-bottom: 1px solid #e3e6ea; }
th:first-child, td:first-child { text-align: left; } .scroll { overflow-x: auto; }
pre { background: #f5f6f8; padding: .8rem; overflow-x: auto; font-size: .85rem; }
</style></head><body><h1>{{ title }}</h1>
<p class="about">Simulated with profile {{ profile }}: nothing here was measured. Rows tagged extrapolated lie
outside of what the profile was calibrated on.</p>
{% for line in lines %}<p>{{ line }}</p>{% endfor %}
{{ plot }}
<div class="scroll"><table><tr>{% for name in columns %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for name in columns %}<td>{{ shown(row[name]) }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
<h2>To reproduce</h2><pre>{{ command }}</pre>
{% if config %}<p>The study as it was resolved:</p><pre>{{ config }}</pre>{% endif %}
<p class="about">{{ versions }}</p></body></html>"""
VERSIONS = ("prism-edge", "simpy", "numpy", "networkx")


def shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    return "-" if value is None else str(value)


def predictions_table(cells: Sequence[PointPrediction], title: str = "") -> Table:
    table = Table("plan", "ms", "90 %", "J", "compute", "staging", "wait", "wire", "tag", title=title, box=None)
    for column in table.columns[1:8]:
        column.justify = "right"
    for column in table.columns:
        column.no_wrap = True
    for name, cell in zip(names_of(cells), cells[:SHOWN], strict=False):
        flat = row(cell)
        interval = "-" if cell.interval_ms is None else f"{cell.interval_ms[0]:.0f}..{cell.interval_ms[1]:.0f}"
        table.add_row(
            name,
            f"{cell.latency_ms:.1f}",
            interval,
            shown(cell.energy_j),
            *[f"{flat[f'{stage}_ms']:.1f}" for stage in STAGES],
            cell.tag,
        )
    if len(cells) > SHOWN:
        table.caption = f"{len(cells) - SHOWN} more; --json or --output has all"
    return table


def flip_line(flip: PlanBreakEven) -> str:
    """The answer of a crossover in one line."""
    span = f"{flip.values[0]:g} to {flip.values[-1]:g}{' Mbps' if flip.over == 'bandwidth' else ''}"
    wins = f"distributed wins in {100 * flip.p_distributed_wins:.0f} % of the draws at the point itself"
    if flip.kind != "at" or flip.value is None:
        return f"over {flip.over}, {span}: distributed {flip.kind} wins; {wins}; {flip.tag}"
    unit = " Mbps" if flip.over == "bandwidth" else ""
    low, high = flip.interval or (flip.value, flip.value)
    side = "from" if flip.wins == "above" else "below"
    return (
        f"over {flip.over}, {span}: distributed wins {side} {flip.value:.4g}{unit} "
        f"(90 %: {low:.4g} to {high:.4g}); {wins}; {flip.tag}"
    )


def sensitivity_table(influences: Sequence[Influence]) -> Table:
    table = Table("term", "value", "changed by", "latency", "lead over local", "flips", "origin", box=None)
    for i in influences:
        table.add_row(
            i.term,
            f"{i.value:.3g}",
            f"{100 * i.step:+.0f} %",
            f"{100 * i.latency_change:+.1f} %",
            f"{100 * i.lead_change:+.1f} %",
            "yes" if i.flips else "",
            i.origin,
        )
    return table


def served_table(found: ServingReport) -> Table:
    table = Table(show_header=False, box=None)
    joules = "no power profile" if found.joules_per_sample is None else f"{found.joules_per_sample:.3g} J per sample"
    for name, value in (
        ("requests", f"{found.requests} in {found.seconds:.3g} s, {found.throughput_per_s:.3g} per second"),
        ("latency ms", ", ".join(f"{k} {v:.1f}" for k, v in found.latency_ms.items())),
        ("waiting ms", ", ".join(f"{k} {v:.1f}" for k, v in found.waiting_ms.items())),
        (
            "queue",
            f"mean {found.queue_mean:.2f}, longest {found.queue_longest}, backlog at the last arrival {found.backlog}",
        ),
        ("batches", f"{found.batches} of {found.batch_mean:.2f} on average: {found.modes}"),
        ("energy", joules),
        ("failures", "; ".join(found.failures) or "none"),
    ):
        table.add_row(name, value)
    return table


def answers(result: Result) -> list[str]:
    """What a study found, in lines."""
    lines = [f"{len(result.cells)} cells, {len(result.feasible)} keep the constraints"]
    if result.best is None:
        lines.append(result.note)
    else:
        best = result.cells[result.best]
        lines.append(f"best: {name_of(best)}, {best.latency_ms:.1f} ms, {shown(best.energy_j)} J, {best.tag}")
    for a in result.answers:
        unit = " Mbps" if a.find == "least_bandwidth" else ""
        found = a.note if a.value is None else f"{a.value:.4g}{unit} ({a.latency_ms:.1f} ms, {a.tag})"
        lines.append(f"{a.find.replace('_', ' ')}: {found}")
    lines += [f"left out: {reason}" for reason in result.left_out[:5]]
    return lines


def page(
    title: str, profile: str, lines: Sequence[str], plot: str, rows: Sequence[dict[str, Any]], config: str = ""
) -> str:
    """One HTML page that needs no other file, with what reproduces it: the command as typed, the resolved
    study if there was one, the versions."""
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(PAGE)
    return template.render(
        title=title,
        profile=profile,
        lines=lines,
        plot=Markup(plot),
        rows=rows,
        columns=list(rows[0]) if rows else [],
        shown=shown,
        command=command_line(),
        config=config,
        versions=", ".join(f"{name} {version(name)}" for name in VERSIONS) + f", Python {platform.python_version()}",
    )


def write(path: Path, whole: Any, rows: Sequence[dict[str, Any]], html: str) -> None:
    """A file by its suffix: .json, .csv, .parquet or .html. Raises ConfigError."""
    if path.suffix == ".json":
        data = msgspec.json.format(msgspec.json.encode(whole), indent=1) + b"\n"
    elif path.suffix == ".html":
        data = html.encode()
    elif path.suffix in (".csv", ".parquet"):
        data = _frame(path, rows)
    else:
        raise ConfigError(f"{path}: suffix {path.suffix!r} is unknown; use .json, .csv, .parquet or .html")
    write_file(path, data)


def _frame(path: Path, rows: Sequence[dict[str, Any]]) -> bytes:
    import pandas as pd

    frame = pd.DataFrame(list(rows))
    if path.suffix == ".csv":
        return frame.to_csv(index=False).encode()
    try:
        packed: bytes = frame.to_parquet(index=False)
    except ImportError:
        raise ConfigError(f"{path}: Parquet needs pyarrow; pip install pyarrow, or write .csv") from None
    return packed
