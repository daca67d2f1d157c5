"""A performance map, measured or simulated, as one self-contained HTML page."""

from collections.abc import Iterator, Sequence
from typing import Any

from markupsafe import Markup

from prism.perfmap import Cell, PerformanceMap
from prism.perfmap.crossover import Crossover, MapAxis, crossovers
from prism.report.figures import drawn
from prism.report.map_figures import SATURATION, heat_figure, line_figure
from prism.report.map_grid import Grid, crossover_rows, grids, notes, plan_codes, rate_label, spread_label
from prism.report.page import facts_table, frame, html_table, rendered
from prism.trace import KINDS

BODY = """{% for note in notes %}<p class="about">{{ note }}</p>{% endfor %}
{% for part in parts %}
<h2>{{ part.title }}</h2>
{{ part.heat }}
<p class="about">{{ part.key }}. In the first map the colour is that of the way that wins. The others show
each plan's latency over that of local: blue is faster, red slower, full depth from a factor of {{ limit }} on.
{% if part.measured %}Grey or pale, and ~: within the spread, that is, the median of either lies where the other's was
seen: between its visits' medians (the outer tenth left out, of more than five) or its batches' quartiles.
{% endif %}</p>
{% if part.lines %}{{ part.lines }}
<p class="about">Latency over local against the link's rate. Rings: where a plan is as fast as local, linear between
neighbours in the logarithm of the rate.
{% if part.measured %}Bars: from the lowest to the highest visit's median.{% endif %}</p>{% endif %}
{% for table in part.crossovers %}{{ table }}{% endfor %}
{% if part.crossovers %}<p class="about">never and always speak of the map's range; ~: noise may move the answer;
*: crosses more than once.</p>{% endif %}
{{ part.cells }}
<p class="about">Milliseconds are {% if part.measured %}medians over the batches of all visits{% else %}of one batch in
the steady state{% endif %}; the split is the leader's. Energy: joules of a batch, all devices together.</p>
{% if part.traces %}<details><summary>The traces of each cell, with their hashes</summary>
{% for c in part.traces %}<p><b>{{ c.label }}</b>, {{ c.provenance.created[0] }} to {{ c.provenance.created[1] }},
configuration {{ c.provenance.configs | join(", ") or "unknown" }}{{ ", cut short" if c.provenance.cut }}:
{% for name, digest in c.provenance.files %}{{ name }} ({{ digest }}){{ "" if loop.last else ", " }}{% endfor %}</p>
{% endfor %}</details>{% endif %}
{% endfor %}
<h2>{{ heading }}</h2>
{% for host in hosts %}{{ host }}{% endfor %}
{% if commands %}<p class="about">The traces were written by:</p><pre>{{ commands | join("\\n") }}</pre>{% endif %}
"""
VERSION = "version of "
OF_CELL = ("weights", "oversubscribed", "medium", "declared power")  # what a host's facts say of one cell alone


def map_page(map_: PerformanceMap, title: str = "Performance map") -> str:
    """Make the page's HTML. Figures are inline SVG, so that it needs no other file."""
    crossings = crossovers(map_)
    hosts = _hosts(map_.cells)
    measured = any(cell.source == "measured" for cell in map_.cells)
    body = rendered(
        BODY,
        parts=[_part(grid, crossings) for grid in grids(map_)],
        notes=list(notes(map_)),
        limit=f"{SATURATION:g}",
        heading="Measured on" if measured else "Simulated for",
        hosts=[facts_table(_without_versions(host)) for host in hosts],
        commands=sorted({command for cell in map_.cells for command in cell.provenance.commands if command}),
    )
    basis = f"from traces of {_machine(hosts[0])}" if measured else "simulated: nothing here was measured"
    versions = {name.removeprefix(VERSION): str(n) for name, n in hosts[0].items() if name.startswith(VERSION)}
    return frame(title, body, f"{map_.created}, {basis}", map_.command, versions)


def _machine(host: dict[str, Any]) -> str:
    name = host.get("processor", host.get("system", "an unknown machine"))
    return f"{name}, {host.get('cores', '?')} cores, {host.get('threads', '?')} thread(s) a rank"


def _hosts(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """List each machine of the map once."""
    hosts: list[dict[str, Any]] = []
    for cell in cells:
        facts = {key: value for key, value in cell.provenance.host.items() if key not in OF_CELL}
        if facts not in hosts:
            hosts.append(facts)
    return hosts


def _without_versions(facts: dict[str, Any]) -> dict[str, Any]:
    """Leave out the versions, which stand at the page's end."""
    return {key: value for key, value in facts.items() if not key.startswith(VERSION)}


def _part(grid: Grid, crossings: Sequence[Crossover]) -> dict[str, Any]:
    names = [f"{code}: {grid.label(plan)}" for plan, code in plan_codes(grid.plans).items()]
    locals_ = [grid.locals[batch] for batch in grid.batches if batch in grid.locals]
    cells = [*locals_, *grid.cells.values()]
    return {
        "title": grid.title,
        "measured": grid.measured,
        "heat": drawn(heat_figure, grid),
        "lines": drawn(line_figure, grid, crossings),
        "key": ", ".join(names),
        "crossovers": list(_crossover_tables(grid, crossings)),
        "cells": _cell_table(grid, cells),
        "traces": [cell for cell in cells if grid.measured and cell.provenance.files],
    }


def _cell_table(grid: Grid, cells: Sequence[Cell]) -> Markup:
    kinds = [kind for kind in KINDS if any(cell.split_ms[kind] for cell in cells)]
    columns: dict[str, list[object]] = {
        "plan": [f"{grid.label(c.plan)}{' (oversubscribed)' if c.oversubscribed else ''}" for c in cells],
        "batch": [c.batch for c in cells],
        "Mbps": [None if c.plan.ranks == 1 else rate_label(c.bandwidth_mbps) for c in cells],
        "p50 ms": [f"{c.latency_ms.p50:.1f}" for c in cells],
    }
    if grid.measured:  # of a simulated batch there is one value, and no spread
        columns["p95"] = [f"{c.latency_ms.p95:.1f}" for c in cells]
        columns["spread"] = [spread_label(c.spread_ms) for c in cells]
    columns["a sample"] = [f"{c.per_sample_ms:.1f}" for c in cells]
    columns |= {kind: [f"{c.split_ms[kind]:.1f}" for c in cells] for kind in kinds}
    if any(c.energy for c in cells):
        columns["energy"] = [energy_label(c) for c in cells]
    if grid.measured:
        columns["batches"], columns["visits"] = [c.batches for c in cells], [c.visits for c in cells]
    return html_table(list(columns), zip(*columns.values(), strict=True))


def _crossover_tables(grid: Grid, crossings: Sequence[Crossover]) -> Iterator[Markup]:
    titles: dict[MapAxis, tuple[str, str]] = {
        "bandwidth_mbps": ("as fast as local from ... Mbps on", "batch {}"),
        "batch": ("as fast as local from batch ... on", "{} Mbps"),
    }
    for axis, (title, unit) in titles.items():
        heads, rows = crossover_rows(grid, crossings, axis)
        if rows:
            texts = [[grid.label(plan), *row] for plan, row in zip(grid.plans, rows, strict=True)]
            yield html_table([title, *[unit.format(head) for head in heads]], texts)


def energy_label(cell: Cell) -> str:
    """Write joules with what they rest on."""
    if cell.energy is None:
        return "not measured"
    return f"{cell.energy.joules:.2f} J{' modelled' if cell.energy.modelled else ''}"
