"""The checks of doctor, the outcome of a run and the summary of a trace, as tables for the console."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hw.machine.doctor import Check
from hw.run.messages import Outcome
from prism.labels import plan_label
from prism.trace import KINDS, Trace
from prism.trace.energy import Energy
from prism.trace.metrics import Summary
from prism.units import format_bytes

SHOWN = 8  # predictions in the table; --json has all
_STATUS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "missing": "[red]missing[/]"}


def doctor_table(checks: list[Check]) -> RenderableType:
    """Show what a machine has and lacks, with the remedies."""
    table = Table("", "what", "found", "remedy", box=None, pad_edge=False)
    for check in checks:
        table.add_row(_STATUS[check.status], check.name, check.found, check.remedy)
    return table


def split_table(per_rank: dict[int, dict[str, float]], latency: dict[str, float]) -> Table:
    """Show each rank's milliseconds by kind of span."""
    table = Table("rank", *[f"{kind} ms" for kind in KINDS], title="Where the time goes (median per batch)")
    for column in table.columns[1:]:
        column.justify = "right"
    for rank, split in per_rank.items():
        name = f"{rank} (leader)" if rank == 0 else str(rank)
        table.add_row(name, *[f"{split[kind]:.2f}" for kind in KINDS])
    table.caption = f"latency p50 {latency['p50']:.2f} ms, p95 {latency['p95']:.2f} ms"
    return table


def outcome_view(outcome: Outcome) -> RenderableType:
    """Show a run's result: predictions, the latency split, and the figures."""
    parts: list[RenderableType] = [Text(headline(outcome), style="bold")]
    if outcome.oversubscribed:
        parts.append(Text("oversubscribed: ranks share cores here, so times are no device's", style="yellow"))
    parts += [_predictions(outcome), split_table(outcome.split_per_rank_ms, outcome.latency_ms), _facts(outcome)]
    return Group(*parts)


def headline(outcome: Outcome) -> str:
    """Name a run in one line."""
    return f"{outcome.model}, {plan_label(outcome.plan)}, batch {outcome.batch}, link {outcome.link}"


def _predictions(outcome: Outcome) -> Table:
    table = Table("input", "label", "predicted", "probability")
    for row in outcome.predictions[:SHOWN]:
        right = row.label is not None and row.label == row.predicted
        probability = "" if row.probability is None else f"{row.probability:.3f}"
        table.add_row(row.name, row.label or "", f"[green]{row.predicted}[/]" if right else row.predicted, probability)
    if len(outcome.predictions) > SHOWN:
        table.caption = f"{len(outcome.predictions) - SHOWN} more in --json"
    return table


def _facts(outcome: Outcome) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    bandwidth = outcome.effective_bandwidth_mbps
    top1 = f"{outcome.top1:.1%} of {outcome.samples}" if outcome.top1 is not None else "no labels of this model"
    table.add_row("top-1 against the labels", top1)
    if outcome.agreement is None:
        table.add_row("agreement with local", "not compared: each device holds its stage alone")
    else:
        table.add_row(f"agreement with local ({outcome.agreement_kind})", f"{outcome.agreement:.4f}")
        table.add_row("largest error over largest value", f"{outcome.max_rel_error:.2e}")
    table.add_row("samples per second", f"{outcome.samples_per_s:.3g}")
    exchange = format_bytes(outcome.bytes_per_exchange) if outcome.plan.parts > 1 else "nothing is exchanged"
    table.add_row("bytes per exchange (a rank, a block)", exchange)
    table.add_row("effective bandwidth", "no exchange" if bandwidth is None else f"{bandwidth:.1f} Mbps")
    table.add_row("energy", energy_line(outcome.energy, outcome.energy_note).removeprefix("energy "))
    peaks = ", ".join(f"rank {rank} {format_bytes(size)}" for rank, size in outcome.peak_memory_bytes.items())
    table.add_row("peak memory", peaks)
    table.add_row("weights", outcome.weights)
    table.add_row("inputs", outcome.inputs or "the user's")
    return table


def trace_view(trace: Trace, summary: Summary) -> RenderableType:
    """Show a trace's header, its latency split, and how complete it is."""
    header = trace.header
    lines = f"{header.model}, {plan_label(header.plan)}, batch {header.batch}, link {header.link}, {header.source}"
    failed = sum(bool(batch.failed) for batch in trace.batches)
    notes = f"{summary.batches} measured batches, {failed} failed, spans cover {summary.coverage:.1%}"
    if trace.cut:
        notes += "; the last line was cut and is left out"
    latency = {"p50": summary.latency_ms.p50, "p95": summary.latency_ms.p95}
    energy = energy_line(summary.energy, summary.energy_note)
    return Group(Text(lines, style="bold"), split_table(summary.split_per_rank_ms, latency), Text(notes), Text(energy))


def energy_line(energy: Energy | None, note: str) -> str:
    """Write the joules of a batch with what they rest on, or that they are not measured."""
    if energy is None:
        return f"energy {note}"
    devices = ", ".join(f"rank {rank} {joules:.3g} J" for rank, joules in energy.per_device_j.items())
    above = "" if energy.above_idle_j is None else f", {energy.above_idle_j:.3g} J above idle"
    basis = note if energy.modelled else f"{energy.samples} samples"
    return f"energy {energy.joules:.3g} J per batch ({devices}){above}; {energy.source}; {basis}"
