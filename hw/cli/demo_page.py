"""Render the demo as one self-contained HTML page: tables and plots of runs, with the command that reproduces them."""

from collections.abc import Sequence
from typing import Any

import jinja2
import msgspec
from markupsafe import Markup

from hw.run.messages import Outcome
from prism.labels import plan_label
from prism.report.page import frame, svg_text
from prism.trace import KINDS

COLOURS = {"compute": "#3b6ea5", "stage_d2h": "#9a6fb0", "wait": "#c9ced6", "wire": "#d9822b", "stage_h2d": "#6fae6f"}

BODY = """{% for section, plot in sections %}
<h2>{{ section.title }}</h2>
<p class="about">{{ section.about }}. Batch {{ section.outcomes[0].batch }}, link {{ section.outcomes[-1].link }}.</p>
{{ plot }}
<table><tr><th>run</th><th>p50 ms</th><th>p95 ms</th>{% for kind in kinds %}<th>{{ kind }}</th>{% endfor %}
<th>bytes</th><th>Mbps</th><th>top-1</th><th>agreement</th><th>energy</th></tr>
{% for o in section.outcomes %}<tr><td>{{ label(o.plan) }}</td>
<td>{{ "%.1f" % o.latency_ms.p50 }}</td><td>{{ "%.1f" % o.latency_ms.p95 }}</td>
{% for kind in kinds %}<td>{{ "%.1f" % o.split_ms[kind] }}</td>{% endfor %}
<td>{{ "{:,}".format(o.bytes_per_exchange) if o.plan.ranks > 1 else "-" }}</td>
<td>{{ "-" if o.effective_bandwidth_mbps is none else "%.1f" % o.effective_bandwidth_mbps }}</td>
<td>{{ "-" if o.top1 is none else "%.1f %%" % (100 * o.top1) }}</td><td>{{ "%.1f %%" % (100 * o.agreement) }}</td>
{% set modelled = " modelled" if o.energy and o.energy.modelled else "" %}
<td>{{ "not measured" if o.energy is none else "%.2f J%s" % (o.energy.joules, modelled) }}</td></tr>{% endfor %}
</table>{% endfor %}
<p class="about">Milliseconds are medians over batches, the split is the leader's. Bytes: one message of one rank
in one block. Mbps: what arrived while messages were under way; on a half-duplex link that every byte crosses twice,
at most half of the rate. Agreement: with the same model run locally.</p>"""


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """Runs that are compared with each other."""

    title: str
    about: str
    outcomes: tuple[Outcome, ...]

    def flat(self) -> dict[str, Any]:
        """The section as demo.json has it."""
        return {"title": self.title, "about": self.about, "outcomes": [outcome.flat() for outcome in self.outcomes]}


def page(title: str, created: str, command: str, sections: Sequence[Section]) -> str:
    """Render the page; its plots are inline SVG, so that it needs no other file."""
    host = sections[0].outcomes[0].host
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(BODY)
    body = template.render(
        kinds=KINDS, label=plan_label, sections=[(section, Markup(split_plot(section))) for section in sections]
    )
    about = (
        f"{created} on {host.get('processor') or host['system']}, {host['cores']} cores, "
        f"{host['threads']} thread(s) a rank. "
        "All times are measured here; the link is shaped in the process, as its name says."
    )
    return frame(title, body, about, command, host["versions"])


def split_plot(section: Section) -> str:
    """Draw stacked bars, one a run, of the leader's time in the median batch. Returns SVG."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    names = [plan_label(outcome.plan) for outcome in section.outcomes]
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
    text = svg_text(figure)
    plt.close(figure)
    return text
