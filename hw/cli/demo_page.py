"""The page of prism-hw demo: tables and split bars of runs that are compared with each other."""

from collections.abc import Sequence
from typing import Any

import msgspec
from markupsafe import Markup

from hw.run.messages import Outcome
from prism.labels import plan_label
from prism.report.figures import drawn, split_bars
from prism.report.page import frame, html_table, rendered
from prism.trace import KINDS

BODY = """{% for section, plot, table in sections %}
<h2>{{ section.title }}</h2>
<p class="about">{{ section.about }}. Batch {{ section.outcomes[0].batch }}, link {{ section.outcomes[-1].link }}.</p>
{{ plot }}{{ table }}{% endfor %}
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


def demo_page(title: str, created: str, command: str, sections: Sequence[Section]) -> str:
    """Make the page's HTML. Figures are inline SVG, so that it needs no other file."""
    host = sections[0].outcomes[0].host
    bars = [[(plan_label(o.plan), o.split_ms) for o in section.outcomes] for section in sections]
    plots = [drawn(split_bars, bar, "ms per batch (median)") for bar in bars]
    tables = [_run_table(section.outcomes) for section in sections]
    body = rendered(BODY, sections=list(zip(sections, plots, tables, strict=True)))
    machine = f"{host.get('processor') or host['system']}, {host['cores']} cores, {host['threads']} thread(s) a rank"
    about = f"{created} on {machine}. All times are measured here; the link is shaped in the process, as its name says."
    return frame(title, body, about, command, host["versions"])


def _run_table(outcomes: Sequence[Outcome]) -> Markup:
    heads = ["run", "p50 ms", "p95 ms", *KINDS, "bytes", "Mbps", "top-1", "agreement", "energy"]
    return html_table(heads, map(_run_row, outcomes))


def _run_row(outcome: Outcome) -> list[str | None]:
    mbps, energy = outcome.effective_bandwidth_mbps, outcome.energy
    return [
        plan_label(outcome.plan),
        *[f"{outcome.latency_ms[name]:.1f}" for name in ("p50", "p95")],
        *[f"{outcome.split_ms[kind]:.1f}" for kind in KINDS],
        f"{outcome.bytes_per_exchange:,}" if outcome.plan.ranks > 1 else None,
        None if mbps is None else f"{mbps:.1f}",
        None if outcome.top1 is None else f"{outcome.top1:.1%}",
        f"{outcome.agreement:.1%}",
        "not measured" if energy is None else f"{energy.joules:.2f} J{' modelled' if energy.modelled else ''}",
    ]
