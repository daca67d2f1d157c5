"""Traces of known truth: a profile whose terms are known, run through the simulator, with noise put on."""

from collections.abc import Sequence

import msgspec
import numpy as np

from prism.backend import Workload
from prism.cost import CalibratedProfile, Term
from prism.link import LinkSpec
from prism.perfmap.pooling import TraceFile, TraceSet
from prism.plan import LOCAL, ExecutionPlan, Mode
from prism.spec import ModelSpec
from prism.trace import PACE, Batch, Probe, Span, Trace
from sim.engine.backend import SimBackend, identical

KNOWN = {
    "gemm.s_per_flop": 1e-11,
    "attention.s_per_flop": 3e-11,
    "memory.s_per_byte": 3e-10,
    "kernel.fixed_s": 5e-5,
    "block.fixed_s": 6e-4,
    "exchange.fixed_s": 1e-3,
    "exchange.s_per_byte": 4e-9,
    "together.slowdown": 0.3,
    "roofline.power": 1.0,
    "overlap.power": 1.0,
    "link.gain": 0.95,
    "link.message_s": 1e-3,
}
PROFILE = CalibratedProfile(
    name="known",
    device="none",
    power_mode="none",
    note="",
    staged=False,
    ranges={},
    traces=(),
    terms=tuple(Term(name=name, value=value, origin="prior", source="a test") for name, value in KNOWN.items()),
)


def vit(width: int, tokens: int, blocks: int = 4) -> ModelSpec:
    return ModelSpec(
        name=f"vit{width}",
        family="vit",
        blocks=blocks,
        width=width,
        heads=width // 64,
        mlp_width=4 * width,
        tokens=tokens,
        prefix_tokens=1,
        patch_values=768,
        output_width=10,
    )


MODELS = {model.name: model for model in (vit(192, 197), vit(768, 101))}
FULL = ExecutionPlan(mode=Mode.FULL, devices=2)
MEANS = ExecutionPlan(mode=Mode.SEGMENT_MEANS, devices=2, segments=10)
PLANS = (LOCAL, FULL, MEANS)
PACE_MS = 6.0


def simulated(
    plans: Sequence[ExecutionPlan] = PLANS,
    noise: float = 0.0,
    visits: int = 1,
    *,
    batches: Sequence[int] = (1, 4),
    rates_mbps: Sequence[float] = (400,),
    models: dict[str, ModelSpec] = MODELS,
    profile: CalibratedProfile = PROFILE,
    slowness: float | None = None,
) -> list[Trace]:
    """Make a trace for each visit of each cell; `noise` makes a whole visit slower or faster.

    slowness: how many times as long the machine takes for what it computes. Then its pace is in the traces, at 1
    PACE_MS."""
    cost = profile.model().at_speed(1 / (slowness or 1))
    rng = np.random.default_rng(1)
    found = []
    for model in models.values():
        for plan in plans:
            for batch in batches:
                for rate in rates_mbps if plan.ranks > 1 else rates_mbps[:1]:
                    link = LinkSpec(kind="testbed", rate_bps=rate * 1e6)
                    backend = SimBackend(identical(profile, cost, plan.ranks, link))
                    trace = backend.run(plan, Workload(model=model, batch=batch))
                    trace = paced(trace, PACE_MS * slowness) if slowness else trace
                    found += [disturbed(trace, float(np.exp(noise * rng.standard_normal()))) for _ in range(visits)]
    return found


def paced(trace: Trace, ms: float) -> Trace:
    """As if each rank had timed its machine's pace beside the batches."""
    probes = (
        Probe(rank=rank, op=PACE, shape=(), flops=0, bytes=0, start_ns=0, end_ns=round(1e6 * ms))
        for rank in range(trace.header.plan.ranks)
    )
    return msgspec.structs.replace(trace, records=(*trace.records, *probes))


def disturbed(trace: Trace, factor: float) -> Trace:
    """A visit that took `factor` times as long, from its first moment on."""
    origin = min(record.start_ns for record in trace.records if isinstance(record, Batch))

    def late(at_ns: int) -> int:
        return origin + round(factor * (at_ns - origin))

    def moved(record: Span | Batch) -> Span | Batch:
        return msgspec.structs.replace(record, start_ns=late(record.start_ns), end_ns=late(record.end_ns))

    records = tuple(moved(r) if isinstance(r, Span | Batch) else r for r in trace.records)
    return msgspec.structs.replace(trace, records=records)


def other_clock(trace: Trace, late_ns: int = 80_000, drift: float = 5e-5) -> Trace:
    """As if rank 1 were another host: its clock, set by round trips, is `late_ns` off and goes faster by `drift`."""

    def late(at_ns: int) -> int:
        return at_ns + late_ns + round(drift * at_ns)

    def moved(record: Span) -> Span:
        return msgspec.structs.replace(record, start_ns=late(record.start_ns), end_ns=late(record.end_ns))

    records = tuple(moved(r) if isinstance(r, Span) and r.rank == 1 else r for r in trace.records)
    return msgspec.structs.replace(trace, records=records)


def without(trace: Trace, ops: Sequence[str]) -> Trace:
    """As if some operations had never been recorded."""
    records = tuple(r for r in trace.records if not (isinstance(r, Span) and r.op in ops))
    return msgspec.structs.replace(trace, records=records)


def trace_set(traces: Sequence[Trace]) -> TraceSet:
    """As if read from files."""
    return TraceSet(
        files=tuple(
            TraceFile(name=f"{number}.jsonl", digest=f"{number:04x}", trace=trace)
            for number, trace in enumerate(traces)
        )
    )
