"""One self-contained HTML page: tables and plots of runs, with what reproduces them."""

import io
from collections.abc import Sequence

import jinja2
import msgspec
from markupsafe import Markup

from hw.job import Outcome
from prism.trace import KINDS

COLOURS = {
    "compute": "#3b6ea5", "stage_d2h": "#9a6fb0", "wait": "#c9ced6", "wire": "#d9822b", "stage_h2d": "#6fae6f",
}  # fmt: skip

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
<p class="about">{{ created }} on {{ host.processor or host.system }}, {{ host.cores }} cores, {{ host.threads }}
thread(s) a rank. All times are measured here; the link is shaped in the process, as its name says.</p>
{% for section, plot in sections %}
<h2>{{ section.title }}</h2><p class="about">{{ section.about }}. Batch {{ section.outcomes[0].batch }}, link {{ section.outcomes[-1].link }}.</p>
{{ plot }}
<table><tr><th>run</th><th>p50 ms</th><th>p95 ms</th>{% for kind in kinds %}<th>{{ kind }}</th>{% endfor %}
<th>bytes</th><th>Mbps</th><th>top-1</th><th>agreement</th><th>energy</th></tr>
{% for o in section.outcomes %}<tr><td>{{ label(o) }}</td>
<td>{{ "%.1f" % o.latency_ms.p50 }}</td><td>{{ "%.1f" % o.latency_ms.p95 }}</td>
{% for kind in kinds %}<td>{{ "%.1f" % o.split_ms[kind] }}</td>{% endfor %}
<td>{{ "{:,}".format(o.bytes_per_exchange) if o.devices > 1 else "-" }}</td>
<td>{{ "-" if o.effective_bandwidth_mbps is none else "%.1f" % o.effective_bandwidth_mbps }}</td>
<td>{{ "-" if o.top1 is none else "%.1f %%" % (100 * o.top1) }}</td><td>{{ "%.1f %%" % (100 * o.agreement) }}</td>
<td>{{ "not measured" if o.energy is none else "%.2f J%s" % (o.energy.joules, " modelled" if o.energy.modelled else "") }}</td></tr>{% endfor %}
</table>{% endfor %}
<p class="about">Milliseconds are medians over batches, the split is the terminal's. Bytes: one message of one rank
in one block. Mbps: what arrived while messages were under way; on a half-duplex link that every byte crosses twice,
at most half of the rate. Agreement: with the same model run locally.</p>
<h2>To reproduce</h2><pre>{{ command }}</pre><pre>{{ versions }}</pre>
</body></html>"""


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """Runs that are compared with each other."""

    title: str
    about: str
    outcomes: tuple[Outcome, ...]


def page(title: str, created: str, command: str, sections: Sequence[Section]) -> str:
    """The page's HTML; its plots are inline SVG, so that it needs no other file."""
    first = sections[0].outcomes[0]
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(PAGE)
    return template.render(
        title=title, created=created, command=command, host=first.host, kinds=KINDS, label=label,
        versions="  ".join(f"{name} {number}" for name, number in first.host["versions"].items()),
        sections=[(section, Markup(split_plot(section))) for section in sections],
    )  # fmt: skip


def split_plot(section: Section) -> str:
    """Stacked bars, one a run: where the median batch's time went on the terminal. SVG text."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    names = [label(outcome) for outcome in section.outcomes]
    figure, axes = plt.subplots(figsize=(9, 0.55 * len(names) + 1.1), layout="constrained")
    left = [0.0] * len(names)
    for kind in KINDS:
        values = [outcome.split_ms[kind] for outcome in section.outcomes]
        if any(values):
            axes.barh(names, values, left=left, color=COLOURS[kind], label=kind)
            left = [a + b for a, b in zip(left, values, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("ms per batch (median)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=len(KINDS), loc="lower right", bbox_to_anchor=(1, 1))
    out = io.StringIO()
    figure.savefig(out, format="svg")
    plt.close(figure)
    text = out.getvalue()
    return text[text.index("<svg") :]


def label(outcome: Outcome) -> str:
    """What distinguishes a run within its section."""
    if outcome.devices == 1:
        return "local"
    means = f"means L={outcome.segments}" if outcome.segments else "full"
    return f"{means} {outcome.wire}"
