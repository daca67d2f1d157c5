"""A performance map as one self-contained HTML page."""

from collections.abc import Iterator, Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from prism.labels import plan_label
from prism.perfmap import Cell, PerformanceMap
from prism.perfmap.crossover import Crossover, crossovers
from prism.report.map_figures import LIMIT, heat_figure, line_figure, style
from prism.report.map_grid import (
    Grid,
    crossover_label,
    grids,
    held_label,
    notes,
    of_grid,
    plan_codes,
    rate_label,
    spread_label,
)
from prism.report.page import frame, svg_text
from prism.trace import KINDS

BODY = """<style>
.wide { overflow-x: auto; } .wide td:nth-child(1) { text-align: left; } details { font-size: .82rem; overflow-wrap: anywhere; }
table + table { margin-top: 1.2rem; } .facts { width: auto; white-space: normal; } .facts td { text-align: left; vertical-align: top; } summary { cursor: pointer; }
</style>
{% for note in notes %}<p class="about">{{ note }}</p>{% endfor %}
{% for part in parts %}
<h2>{{ part.title }}</h2>
{{ part.heat }}
<p class="about">{{ part.key }}. Blue: faster than local, red: slower, full depth from a factor of {{ limit }} on. Grey
and ~: within the spread, that is, the median of either lies where the other's was seen: between its visits' medians
(the outer tenth left out, of more than five) or its batches' quartiles.</p>
{% if part.lines %}{{ part.lines }}
<p class="about">Latency over local against the link's rate. Bars: from the lowest to the highest visit's median. Rings: where
a plan is as fast as local, linear between neighbours in the logarithm of the rate.</p>{% endif %}
{% for table in part.tables %}<table><tr>{% for head in table.heads %}<th>{{ head }}</th>{% endfor %}</tr>
{% for row in table.rows %}<tr>{% for value in row %}<td>{{ value }}</td>{% endfor %}</tr>{% endfor %}</table>{% endfor %}
{% if part.tables %}<p class="about">never and always speak of the measured range; ~: noise may move the answer; *: crosses more
than once.</p>{% endif %}
<div class="wide"><table><tr><th>plan</th><th>batch</th><th>Mbps</th><th>p50 ms</th><th>p95</th><th>spread</th><th>a sample</th>
{% for kind in part.kinds %}<th>{{ kind }}</th>{% endfor %}<th>energy</th><th>batches</th><th>visits</th></tr>
{% for c in part.cells %}<tr><td>{{ plan_label(c.plan) }}{{ " (oversubscribed)" if c.oversubscribed }}</td><td>{{ c.batch }}</td>
<td>{{ "-" if c.plan.ranks == 1 else rate_label(c.bandwidth_mbps) }}</td><td>{{ "%.1f" % c.latency_ms.p50 }}</td>
<td>{{ "%.1f" % c.latency_ms.p95 }}</td><td>{{ spread_label(c.spread_ms) }}</td><td>{{ "%.1f" % c.per_sample_ms }}</td>
{% for kind in part.kinds %}<td>{{ "%.1f" % c.split_ms[kind] }}</td>{% endfor %}<td>{{ energy(c) }}</td><td>{{ c.batches }}</td>
<td>{{ c.visits }}</td></tr>
{% endfor %}</table></div>
<p class="about">Milliseconds are medians over the batches of all visits; the split is the terminal's. Energy: joules of a
batch, all devices together.</p>
<details><summary>The traces of each cell, with their hashes</summary>{% for c in part.cells %}
<p><b>{{ c.label }}</b>, {{ c.provenance.created[0] }} to {{ c.provenance.created[1] }}, configuration
{{ c.provenance.configs | join(", ") or "unknown" }}{{ ", cut short" if c.provenance.cut }}:
{% for name, digest in c.provenance.files %}{{ name }} ({{ digest }}){{ "" if loop.last else ", " }}{% endfor %}</p>{% endfor %}</details>
{% endfor %}
<h2>Measured on</h2>
{% for facts in hosts %}<table class="facts">{% for key, value in facts.items() %}<tr><td>{{ key }}</td><td>{{ value }}</td></tr>{% endfor %}</table>{% endfor %}
<p class="about">The traces were written by:</p><pre>{{ commands | join("\\n") }}</pre>
"""


def page(map_: PerformanceMap, title: str = "Performance map") -> str:
    """The page's HTML; plots are inline SVG, so that it needs no other file."""
    found = crossovers(map_)
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(BODY)
    with style():
        parts = [_part(grid, found) for grid in grids(map_)]
    hosts = _hosts(map_.cells)
    body = template.render(
        parts=parts,
        notes=list(notes(map_)),
        limit=f"{LIMIT:g}",
        hosts=[_shown(host) for host in hosts],
        plan_label=plan_label,
        rate_label=rate_label,
        energy=energy_label,
        spread_label=spread_label,
        commands=sorted({command for cell in map_.cells for command in cell.provenance.commands}),
    )
    first = hosts[0]
    machine = f"{first.get('processor', first.get('system', 'an unknown machine'))}, {first.get('cores', '?')} cores"
    threads = f"{first.get('threads', '?')} thread(s) a rank"
    versions = {name.removeprefix(VERSION): str(n) for name, n in first.items() if name.startswith(VERSION)}
    return frame(title, body, f"{map_.created}, from traces of {machine}, {threads}", map_.command, versions)


VERSION = "version of "
OF_CELL = ("weights", "oversubscribed", "medium", "declared power")  # what a host's facts say of one cell alone


def _hosts(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Each machine of the map once."""
    found: list[dict[str, Any]] = []
    for cell in cells:
        facts = {key: value for key, value in cell.provenance.host.items() if key not in OF_CELL}
        if facts not in found:
            found.append(facts)
    return found


def _shown(facts: dict[str, Any]) -> dict[str, Any]:
    """Without the versions, which stand at the page's end."""
    return {key: value for key, value in facts.items() if not key.startswith(VERSION)}


def _part(grid: Grid, found: Sequence[Crossover]) -> dict[str, Any]:
    lines = line_figure(grid, found)
    names = [f"{code}: {plan_label(plan)}" for plan, code in plan_codes(grid.plans).items()]
    locals_ = [grid.locals[batch] for batch in grid.batches if batch in grid.locals]
    cells = [*locals_, *grid.cells.values()]
    return {
        "title": grid.title,
        "heat": Markup(svg_text(heat_figure(grid))),
        "lines": None if lines is None else Markup(svg_text(lines)),
        "key": ", ".join(names),
        "tables": list(_crossover_tables(grid, found)),
        "cells": cells,
        "kinds": [kind for kind in KINDS if any(cell.split_ms[kind] for cell in cells)],
    }


def _crossover_tables(grid: Grid, found: Sequence[Crossover]) -> Iterator[dict[str, Any]]:
    for axis, title, heads in (
        ("bandwidth_mbps", "as fast as local from ... Mbps on", [str(batch) for batch in grid.batches]),
        ("batch", "as fast as local from batch ... on", [rate_label(rate) for rate in grid.rates if rate]),
    ):
        cells = {(held_label(c), c.plan): c for c in of_grid(grid, found) if c.axis == axis}
        unit = "batch {}" if axis == "bandwidth_mbps" else "{} Mbps"
        rows = [
            [plan_label(plan), *[crossover_label(cells.get((head, plan))) for head in heads]] for plan in grid.plans
        ]
        if cells:
            yield {"heads": [title, *[unit.format(head) for head in heads]], "rows": rows}


def energy_label(cell: Cell) -> str:
    """Joules with what they rest on."""
    if cell.energy is None:
        return "not measured"
    return f"{cell.energy.joules:.2f} J{' modelled' if cell.energy.modelled else ''}"
