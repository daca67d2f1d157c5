"""Turn a WorkloadGraph into the steps of each rank, in order, with seconds from a cost model.

All blocks are alike, so the graph of one block is built and walked as often as the model has blocks.
An arrival is waited for where its rows are first needed, as the hardware's ranks do.
"""

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import msgspec

from prism.codecs import payload_bytes
from prism.cost import CostModel
from prism.plan import ExecutionPlan
from prism.spec import ModelSpec
from prism.trace import Kind
from prism.workload import Operation, WorkloadGraph, build

StepKind = Literal["work", "post", "await"]


class ScriptStep(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that a rank does: "work" takes its own time, "post" hands messages over and goes on,
    "await" stops until `needed` messages of `op` are here.

    relative: block -1, 0 (every block in turn) or 1 (after the last).
    size: bytes of one message, or that are copied. exchanged: goes on from rows of other ranks. moved: bytes of the
    block's exchange that the rank's host sends and receives, on the step that follows it.
    """

    kind: StepKind
    span: Kind
    op: str
    relative: int
    operations: tuple[Operation, ...] = ()
    size: int = 0
    exchanged: bool = False
    moved: int = 0
    peers: tuple[int, ...] = ()


class Script(msgspec.Struct, frozen=True, kw_only=True):
    """The steps of every rank in one batch: before the blocks, in each block, and after them.

    ring: whether exchanges go round a ring. causal: later parts wait for earlier ones, and never the other way round.
    """

    blocks: int
    ring: bool
    causal: bool
    steps: tuple[tuple[tuple[ScriptStep, ...], tuple[ScriptStep, ...], tuple[ScriptStep, ...]], ...]

    def posted_bytes(self) -> int:
        """Count the payload that all ranks hand to the link in one batch, without headers."""
        weights = (1, self.blocks, 1)
        return sum(
            weight * step.size * len(step.peers)
            for phases in self.steps
            for weight, phase in zip(weights, phases, strict=True)
            for step in phase
            if step.kind == "post"
        )


@lru_cache(maxsize=512)
def script(model: ModelSpec, plan: ExecutionPlan, batch: int) -> Script:
    """Write the script of one batch. Raises PlanError where the plan doesn't fit the model's tokens."""
    graph = build(msgspec.structs.replace(model, blocks=1), plan, batch)
    size = payload_bytes(plan.wire, batch * plan.sent_rows(model.tokens)[0] * model.width)
    ring = plan.ranks > 1 and plan.uses_ring(size, model.causal)
    by_rank = [_by_phase(_ordered(graph, rank, plan.ranks == 1)) for rank in range(plan.ranks)]
    return Script(blocks=model.blocks, ring=ring, causal=model.causal, steps=tuple(by_rank))


def sides(step: ScriptStep, cost: CostModel) -> tuple[float, float]:
    """Compute the seconds of work on the host and, at its full clock, on the device; a copy is the host's alone."""
    if step.span == "stage_d2h" or step.span == "stage_h2d":
        return sum(cost.copy_s(step.span, op.wire_bytes) for op in step.operations), 0.0
    kernels = [kernel for op in step.operations for kernel in op.kernels]
    launch = cost.launch_s(
        len(kernels), block=step.op in ("attend", "block"), exchanged=step.exchanged, moved=step.moved
    )
    return launch, sum(cost.device_s(kernel) for kernel in kernels)


def _by_phase(
    steps: Sequence[ScriptStep],
) -> tuple[tuple[ScriptStep, ...], tuple[ScriptStep, ...], tuple[ScriptStep, ...]]:
    before, inside, after = (tuple(s for s in steps if s.relative == phase) for phase in (-1, 0, 1))
    return before, inside, after


def _ordered(graph: WorkloadGraph, rank: int, local: bool) -> list[ScriptStep]:
    steps: list[ScriptStep] = []
    arriving: list[int] = []
    exchanged, moved = False, graph.moved_bytes(rank)
    for place, op in enumerate(graph.nodes):
        if op.rank != rank:
            continue
        if op.kind == "stage_h2d":
            arriving.append(place)
            continue
        needed = [other for other in op.after if other in arriving]
        if needed:
            arriving = [other for other in arriving if other not in needed]
            copies = [graph.nodes[other] for other in needed]
            for _, group in itertools.groupby(copies, key=lambda copy: copy.block):
                steps += _arrival(tuple(group))
            exchanged = exchanged or any(copy.block == 0 for copy in copies)
        attends = op.name == "attend"
        steps.append(_step(op, exchanged and attends, moved if attends else 0))
    return _whole_blocks(steps) if local else steps


def _arrival(copies: tuple[Operation, ...]) -> tuple[ScriptStep, ScriptStep]:
    """Wait for the messages, then copy them up."""
    name, relative = copies[0].name, copies[0].block
    sources = tuple(copy.source for copy in copies)
    size = sum(copy.wire_bytes for copy in copies)
    return (
        ScriptStep(kind="await", span="wire", op=name, relative=relative, size=size, peers=sources),
        ScriptStep(kind="work", span="stage_h2d", op=name, relative=relative, operations=copies, size=size),
    )


def _step(op: Operation, exchanged: bool, moved: int) -> ScriptStep:
    name = op.name
    if op.kind == "send":
        return ScriptStep(kind="post", span="wire", op=name, relative=op.block, size=op.wire_bytes, peers=op.peers)
    span: Kind = "stage_d2h" if op.kind == "stage_d2h" else "compute"
    return ScriptStep(
        kind="work",
        span=span,
        op=name,
        relative=op.block,
        operations=(op,),
        size=op.wire_bytes,
        exchanged=exchanged,
        moved=moved,
    )


def _whole_blocks(steps: list[ScriptStep]) -> list[ScriptStep]:
    """Join the steps of a block to one, as hardware records it on one device."""
    inside = [step for step in steps if step.relative == 0]
    whole = ScriptStep(
        kind="work",
        span="compute",
        op="block",
        relative=0,
        operations=tuple(op for step in inside for op in step.operations),
    )
    return [*(s for s in steps if s.relative < 0), whole, *(s for s in steps if s.relative > 0)]
