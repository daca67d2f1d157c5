"""The frame of every self-contained page: title, style, body, what reproduces it; and figures as inline SVG."""

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

import jinja2
from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1d2430; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; } .about { color: #5a6472; }
table { border-collapse: collapse; width: 100%; font-size: .82rem; white-space: nowrap; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .45rem; text-align: right; border-bottom: 1px solid #e3e6ea; } th { font-weight: 600; }
th:first-child, td:first-child { text-align: left; } svg { max-width: 100%; height: auto; }
pre { background: #f5f6f8; padding: .8rem; overflow-x: auto; font-size: .85rem; }
</style></head><body>
<h1>{{ title }}</h1>
<p class="about">{{ created }}</p>
{{ body }}
<h2>To reproduce</h2><pre>{{ command }}</pre><pre>{{ versions }}</pre>
</body></html>"""


def frame(title: str, body: str, created: str, command: str, versions: Mapping[str, str]) -> str:
    """A whole page around `body`, which is HTML already; everything else is escaped. `created` is the line
    below the title: when, and on what."""
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(PAGE)
    return template.render(
        title=title,
        body=Markup(body),
        created=created,
        command=command,
        versions="  ".join(f"{name} {number}" for name, number in versions.items()),
    )


def svg_text(figure: "Figure") -> str:
    """A matplotlib figure as an SVG element that stands in a page."""
    out = io.StringIO()
    figure.savefig(out, format="svg")
    text = out.getvalue()
    return text[text.index("<svg") :]
