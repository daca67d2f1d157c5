"""Put together what a run reports: the header of its trace, and its outcome."""

from pathlib import Path
from typing import Any

import msgspec

from hw.inputs.tally import Tally
from hw.machine import facts as host
from hw.run.config import RunConfig
from hw.run.messages import Outcome, RankJob
from hw.run.workpiece import Workpiece
from prism.spec import ModelSpec, load_power_profile
from prism.trace import TraceHeader, now_text
from prism.trace.metrics import Summary


def _recorded(config: RunConfig) -> dict[str, Any]:
    """Leave the place of its own trace out of the configuration: a file that moves stays true."""
    return {key: value for key, value in config.flat().items() if key != "trace"}


def trace_header(config: RunConfig, job: RankJob, piece: Workpiece) -> TraceHeader:
    """Describe the run and its machine. Raises ConfigError for a power file that can't be read."""
    return TraceHeader(
        source="measured",
        created=now_text(),
        model=config.model,
        weights=piece.loaded.weights,
        plan=config.plan,
        batch=config.batch,
        tokens=piece.tokens,
        link=str(config.link_spec()),
        seed=config.seed,
        command=job.command,
        oversubscribed=job.oversubscribed,
        config=_recorded(config),
        config_hash=config.digest(),
        host={**host.describe_machine(config.threads), **job.facts},
        power=load_power_profile(Path(config.power)) if config.power else None,
        spec=piece.spec,
    )


def outcome(header: TraceHeader, summary: Summary, tally: Tally, memory: dict[int, int], piece: Workpiece) -> Outcome:
    """Summarise the run for its user."""
    scored = tally.compared > 0
    return Outcome(
        model=header.model,
        weights=header.weights,
        inputs=piece.inputs.note if piece.inputs else "",
        plan=header.plan,
        route=_route(header, piece.spec),
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
        samples_per_s=summary.samples_per_s,
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


def _route(header: TraceHeader, spec: ModelSpec) -> str:
    plan = header.plan
    size = plan.message_bytes(header.batch, header.tokens, spec.width)
    return "none" if plan.parts == 1 else "ring" if plan.uses_ring(size, spec.causal) else "mesh"
