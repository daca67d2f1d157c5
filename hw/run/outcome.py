"""What a run reports: the header of its trace, and its outcome."""

from pathlib import Path
from typing import Any

import msgspec

from hw.inputs.score import Tally
from hw.machine import facts as host
from hw.run.config import Outcome, RankJob, RunConfig
from hw.run.workpiece import Workpiece
from prism.codecs import payload_bytes
from prism.spec import ModelSpec, load_power_profile
from prism.trace import TraceHeader, now_text
from prism.trace.metrics import Summary


def _recorded(config: RunConfig) -> dict[str, Any]:
    """The configuration without the place of its own trace: a file that moves stays true."""
    fields: dict[str, Any] = msgspec.to_builtins(config)
    del fields["trace"]
    return fields


def trace_header(config: RunConfig, job: RankJob, piece: Workpiece) -> TraceHeader:
    return TraceHeader(
        source="measured",
        created=now_text(),
        model=config.model,
        weights=piece.loaded.weights,
        plan=config.plan(),
        batch=config.batch,
        tokens=piece.tokens(),
        link=str(config.link_spec()),
        seed=config.seed,
        command=job.command,
        oversubscribed=job.oversubscribed,
        config=_recorded(config),
        config_hash=config.digest(),
        host={**host.describe(config.threads), **job.facts},
        power=load_power_profile(Path(config.power)) if config.power else None,
        spec=piece.spec,
    )


def outcome(header: TraceHeader, summary: Summary, tally: Tally, memory: dict[int, int], piece: Workpiece) -> Outcome:
    plan, scored = header.plan, tally.compared > 0
    return Outcome(
        model=header.model,
        weights=header.weights,
        inputs=piece.inputs.note if piece.inputs else "",
        mode=plan.mode.value,
        devices=plan.ranks,
        segments=plan.segments,
        wire=plan.wire,
        embed=plan.embed,
        collective=_collective(header, piece.spec),
        overlap=plan.overlap,
        batch=header.batch,
        batches=summary.batches,
        tokens=header.tokens,
        link=header.link,
        oversubscribed=header.oversubscribed,
        latency_ms=msgspec.to_builtins(summary.latency_ms),
        split_ms=summary.split_ms,
        split_per_rank_ms=summary.split_per_rank_ms,
        bytes_per_exchange=summary.bytes_per_exchange,
        effective_bandwidth_mbps=summary.effective_bandwidth_mbps,
        energy_j=summary.energy_j,
        energy=summary.energy,
        energy_note=summary.energy_note,
        agreement=tally.agreement if scored else None,
        agreement_kind=tally.kind,
        top1=tally.top1,
        samples=tally.samples,
        max_rel_error=tally.max_rel_error if scored else None,
        peak_memory_bytes=memory,
        predictions=tuple(tally.predictions),
        seed=header.seed,
        config=header.config,
        host=header.host,
        command=header.command,
    )


def _collective(header: TraceHeader, spec: ModelSpec) -> str:
    plan = header.plan
    size = payload_bytes(plan.wire, header.batch * plan.sent_rows(header.tokens)[0] * spec.width)
    return "none" if plan.ranks == 1 else "ring" if plan.uses_ring(size, spec.causal) else "mesh"
