"""The frame of every self-contained HTML page: title, style, body, and what reproduces it; tables in it."""

import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import jinja2
from markupsafe import Markup

from prism.report.figures import INK, PALE, SLATE

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: {{ ink }}; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; } .about { color: {{ slate }}; }
.scroll { overflow-x: auto; margin: 1.2rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .82rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .4rem; text-align: right; border-bottom: 1px solid {{ pale }}; white-space: nowrap; }
th { font-weight: 600; white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
.facts { width: auto; }
.facts td { text-align: left; vertical-align: top; white-space: normal; overflow-wrap: anywhere; }
.facts td:first-child { white-space: nowrap; color: {{ slate }}; padding-right: 1.5rem; }
svg { max-width: 100%; height: auto; }
details { font-size: .82rem; overflow-wrap: anywhere; } summary { cursor: pointer; }
pre { background: #f5f6f8; padding: .8rem; font-size: .85rem; white-space: pre-wrap; overflow-wrap: anywhere; }
</style></head><body>
<h1>{{ title }}</h1>
<p class="about">{{ created }}</p>
{{ body }}
<h2>To reproduce</h2><pre>{{ command }}</pre><pre>{{ versions }}</pre>
</body></html>"""

TABLE = """<div class="scroll"><table><tr>{% for head in heads %}<th>{{ head }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for value in row %}<td>{{ value }}</td>{% endfor %}</tr>
{% endfor %}</table></div>"""

FACTS = """<table class="facts">{% for name, value in facts %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>
{% endfor %}</table>"""


def frame(title: str, body: str, created: str, command: str, versions: Mapping[str, str]) -> str:
    """Make a whole page around `body`, which is HTML already; everything else is escaped.

    `created` is the line below the title: when, and on what.
    """
    named = "  ".join(f"{name} {number}" for name, number in versions.items())
    colours = {"ink": INK, "slate": SLATE, "pale": PALE}
    return rendered(PAGE, title=title, body=Markup(body), created=created, command=command, versions=named, **colours)


def installed(packages: Iterable[str]) -> dict[str, str]:
    """Look up the versions of Python and of these packages."""
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def rendered(template: str, **values: Any) -> Markup:
    """Fill a template: values are escaped, HTML is not, a name that is missing raises."""
    return Markup(ENVIRONMENT.from_string(template).render(**values))


def html_table(heads: Sequence[str], rows: Iterable[Iterable[object]]) -> Markup:
    """Make a table of rows under their heads; the first column is the rows' names."""
    return rendered(TABLE, heads=heads, rows=[[cell_text(value) for value in row] for row in rows])


def facts_table(facts: Mapping[str, object]) -> Markup:
    """Make a table of names and their values."""
    return rendered(FACTS, facts=[(name, cell_text(value)) for name, value in facts.items()])


def cell_text(value: object) -> str:
    """Write a value as people read it: four digits, a list or mapping as its parts, a dash for what isn't there."""
    if value is None or value == "":
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {cell_text(part)}" for name, part in value.items()) or "-"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(cell_text, value)) or "-"
    return str(value)


ENVIRONMENT = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
