"""Turn a WorkloadGraph into the steps of each rank, in order, with seconds from a cost model.

The blocks of a stage are alike, so the graph of one is built and walked as often as the stage has blocks.
An arrival is waited for where its rows are first needed, as the hardware's ranks do.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Literal

import msgspec

from prism.cost import CostModel
from prism.plan import ExecutionPlan
from prism.spec import ModelSpec
from prism.trace import Kind
from prism.workload import Kernel, Operation, WorkloadGraph, outline

StepKind = Literal["work", "post", "await"]
OF_A_BLOCK = ("compress", "exchange", "project", "attend")  # operations that every block of a stage has
Tag = tuple[int, int, bool]  # microbatch, block, and whether it is an operation of a block


class ScriptStep(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that a rank does: "work" takes its own time, "post" hands messages over and goes on,
    "await" stops until `needed` messages of `op` are here.

    size: bytes of one message, or that are copied; copies: of each message that is copied. exchanged: goes on from rows
    of other ranks. moved: bytes of the block's exchange that the rank's host sends and receives, on the step that
    follows it.
    """

    kind: StepKind
    span: Kind
    op: str
    kernels: tuple[Kernel, ...] = ()
    copies: tuple[int, ...] = ()
    size: int = 0
    exchanged: bool = False
    moved: int = 0
    peers: tuple[int, ...] = ()


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """Steps that a rank goes through for each block from `first_block` on; inside a block, or once beside the blocks.

    micro: as prism.workload.Operation has it.
    """

    steps: tuple[ScriptStep, ...]
    first_block: int
    blocks: int
    inside: bool
    micro: int


class Script(msgspec.Struct, frozen=True, kw_only=True):
    """The phases of every rank in one batch.

    closing: what is left to the leader when its own part is done: to take the other ranks' answers.
    ring: whether exchanges go round a ring. causal: later parts wait for earlier ones, and never the other way round.
    together: ranks that compute at the same time.
    """

    ring: bool
    causal: bool
    together: int
    phases: tuple[tuple[Phase, ...], ...]
    closing: tuple[Phase, ...] = ()

    @property
    def busy(self) -> int:
        """Count the ranks that have blocks to compute, which in a stream they do at the same time."""
        return sum(any(phase.inside for phase in phases) for phases in self.phases)

    def posts(self) -> Iterator[tuple[int, ScriptStep]]:
        """Yield the steps in which messages leave, each with how often it comes."""
        for phase in itertools.chain(*self.phases):
            yield from ((phase.blocks, step) for step in phase.steps if step.kind == "post")

    def posted_bytes(self) -> int:
        """Count the payload that all ranks hand to the link in one batch, without headers."""
        return sum(count * step.size * len(step.peers) for count, step in self.posts())


@lru_cache(maxsize=512)
def script(model: ModelSpec, plan: ExecutionPlan, batch: int) -> Script:
    """Write the script of one batch. Raises PlanError where the plan doesn't fit the model or the samples."""
    graph = outline(model, plan, batch)
    size = plan.message_bytes(batch, model.tokens, model.width)
    blocks = _stage_blocks(model, plan)
    places = _by_rank(graph, plan.ranks)
    whole = plan.parts == 1
    phases = [
        tuple(_phases(_ordered(graph, mine), blocks[rank // plan.parts], whole)) for rank, mine in enumerate(places)
    ]
    return Script(
        ring=plan.parts > 1 and plan.uses_ring(size, model.causal),
        causal=model.causal,
        together=_together(plan, batch, blocks),
        phases=tuple(phases),
        closing=tuple(_phases(_closing(graph, places[0]), 1, whole)),
    )


def sides(step: ScriptStep, cost: CostModel) -> tuple[float, float]:
    """Compute the seconds of work on the host and, at its full clock, on the device; a copy is the host's alone."""
    if step.span == "stage_d2h" or step.span == "stage_h2d":
        return sum(cost.copy_s(step.span, size) for size in step.copies), 0.0
    launch = cost.launch_s(
        len(step.kernels), block=step.op in ("attend", "block"), exchanged=step.exchanged, moved=step.moved
    )
    return launch, sum(cost.device_s(kernel) for kernel in step.kernels)


def _stage_blocks(model: ModelSpec, plan: ExecutionPlan) -> list[int]:
    """Count the blocks of every stage of every replica, in the order of the ranks."""
    stages = (plan.replica(replica).stage_blocks(model.blocks) for replica in range(plan.replicas))
    return [stop - start for replica in stages for start, stop in replica]


def _together(plan: ExecutionPlan, batch: int, blocks: Sequence[int]) -> int:
    """Count the ranks that compute at the same time: the stages of a replica do on different microbatches."""
    ranks = 0
    for replica, share in enumerate(plan.shares(batch)):
        stages = blocks[replica * plan.stages : (replica + 1) * plan.stages]
        ranks += plan.parts * min(sum(map(bool, stages)), len(plan.microbatches(share)))
    return ranks


def _by_rank(graph: WorkloadGraph, ranks: int) -> list[list[int]]:
    """List the places of each rank's operations."""
    places: list[list[int]] = [[] for _ in range(ranks)]
    for place, op in enumerate(graph.nodes):
        places[op.rank].append(place)
    return places


def _phases(tagged: Iterable[tuple[Tag, ScriptStep]], blocks: int, whole: bool) -> Iterator[Phase]:
    """Group steps by their tags. whole: join the steps of a block to one, as hardware records it on one device."""
    for (micro, block, inside), group in itertools.groupby(tagged, key=itemgetter(0)):
        steps = tuple(step for _, step in group)
        if whole and inside:
            kernels = tuple(kernel for step in steps for kernel in step.kernels)
            steps = (ScriptStep(kind="work", span="compute", op="block", kernels=kernels),)
        yield Phase(steps=steps, first_block=block, blocks=blocks if inside else 1, inside=inside, micro=micro)


def _ordered(graph: WorkloadGraph, places: Sequence[int]) -> Iterator[tuple[Tag, ScriptStep]]:
    """Yield the steps of a rank, an arrival where the first operation needs it."""
    arriving: dict[int, Operation] = {}
    exchanged, moved = False, Counter[tuple[int, int]]()
    for place in places:
        op = graph.nodes[place]
        if op.name == "exchange":
            moved[op.micro, op.block] += op.moved_bytes
        if op.kind == "stage_h2d":
            arriving[place] = op
            continue
        needed = [arriving.pop(other) for other in op.after if other in arriving]
        exchanged = exchanged or any(copy.name == "exchange" for copy in needed)
        yield from _arrivals(needed)
        attends = op.name == "attend"
        yield _tag(op), _step(op, exchanged and attends, moved[op.micro, op.block] if attends else 0)


def _closing(graph: WorkloadGraph, places: Sequence[int]) -> Iterator[tuple[Tag, ScriptStep]]:
    """Yield the arrivals at a rank that none of its operations needs."""
    needed = {other for place in places for other in graph.nodes[place].after}
    unneeded = [place for place in places if graph.nodes[place].kind == "stage_h2d" and place not in needed]
    yield from _arrivals([graph.nodes[place] for place in unneeded])


def _arrivals(copies: Sequence[Operation]) -> Iterator[tuple[Tag, ScriptStep]]:
    """Wait for the messages of a name, then copy them up."""
    for (name, _), group in itertools.groupby(copies, key=lambda copy: (copy.name, copy.micro)):
        arrived = tuple(group)
        tag, sizes = _tag(arrived[0]), tuple(copy.wire_bytes for copy in arrived)
        sources = tuple(copy.source for copy in arrived)
        yield tag, ScriptStep(kind="await", span="wire", op=name, size=sum(sizes), peers=sources)
        yield tag, ScriptStep(kind="work", span="stage_h2d", op=name, copies=sizes, size=sum(sizes))


def _tag(op: Operation) -> Tag:
    return op.micro, op.block, op.name in OF_A_BLOCK


def _step(op: Operation, exchanged: bool, moved: int) -> ScriptStep:
    if op.kind == "send":
        return ScriptStep(kind="post", span="wire", op=op.name, size=op.wire_bytes, peers=op.peers)
    if op.kind == "stage_d2h":
        return ScriptStep(kind="work", span="stage_d2h", op=op.name, copies=(op.wire_bytes,), size=op.wire_bytes)
    return ScriptStep(kind="work", span="compute", op=op.name, kernels=op.kernels, exchanged=exchanged, moved=moved)
