"""Turn (ModelSpec, ExecutionPlan, batch) into a graph of operations with their FLOPs and bytes.

A node is one operation of one rank; it names the operations that must have finished before. The
hardware executes the same steps, the simulator walks this graph, and both take bytes from here.
"""

from collections.abc import Iterable
from typing import Literal

import msgspec

from prism.codecs import PLAIN, payload_bytes
from prism.partition import head_rows, receivers, returned_rows
from prism.plan import ExecutionPlan
from prism.spec import ModelSpec
from prism.workload.kernels import Kernel, attention, codec, elementwise, gemm, norm, rms_norm, rotary


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One step of one rank. A device without memory of its own skips the staging.

    name: embed, compress, project, attend or head; of messages scatter, exchange or collect.
    kind: "compute" runs kernels, "send" moves `wire_bytes` from `rank` to each of `peers`, "stage_d2h" and "stage_h2d"
    copy `wire_bytes` from device to host and back.
    block: -1 before the first block, the number of blocks after the last.
    source: of "stage_h2d", the rank that sent the message.
    after: places in the graph of the operations that must have finished.
    """

    name: str
    kind: Literal["compute", "stage_d2h", "send", "stage_h2d"]
    rank: int
    block: int
    kernels: tuple[Kernel, ...] = ()
    wire_bytes: int = 0
    peers: tuple[int, ...] = ()
    source: int = -1
    after: tuple[int, ...] = ()

    @property
    def flops(self) -> int:
        """FLOPs of all kernels."""
        return sum(kernel.flops for kernel in self.kernels)


class WorkloadGraph(msgspec.Struct, frozen=True):
    """Every operation of a batch, each behind those that must have finished before it."""

    nodes: tuple[Operation, ...]

    def operations(self, rank: int | None = None) -> list[Operation]:
        """Operations of one rank, or of all."""
        return [op for op in self.nodes if rank is None or op.rank == rank]

    def flops(self, rank: int) -> int:
        """FLOPs of one rank for the whole batch."""
        return sum(op.flops for op in self.operations(rank))

    def moved_bytes(self, rank: int) -> int:
        """Payload that a rank's host hands to the link and takes from it in one block."""
        mine = [op for op in self.operations(rank) if op.block == 0]
        sent = sum(op.wire_bytes * len(op.peers) for op in mine if op.kind == "send")
        return sent + sum(op.wire_bytes for op in mine if op.kind == "stage_h2d")

    def block_bytes(self) -> int:
        """Bytes that all ranks together hand to the link in one block."""
        return sum(op.wire_bytes * len(op.peers) for op in self.nodes if op.kind == "send" and op.block == 0)


def build(model: ModelSpec, plan: ExecutionPlan, batch: int, tokens: int | None = None) -> WorkloadGraph:
    """Build the graph of one batch of `batch` samples of `tokens` tokens (the model's own N by default).

    Raises PlanError where the plan doesn't fit the tokens.
    """
    builder = _Builder(model, plan, batch, tokens or model.tokens)
    builder.embed()
    for block in range(model.blocks):
        builder.block(block)
    builder.head()
    return WorkloadGraph(tuple(builder.nodes))


class _Builder:
    """Appends operations. `last` is each rank's latest place on which its rows depend."""

    def __init__(self, model: ModelSpec, plan: ExecutionPlan, batch: int, tokens: int) -> None:
        self.model, self.plan, self.batch, self.tokens = model, plan, batch, tokens
        self.partition = plan.partition(tokens)
        self.sent = plan.sent_rows(tokens)
        self.nodes: list[Operation] = []
        self.last: dict[int, int] = {}

    def add(self, op: Operation) -> int:
        """Append an operation and return its place."""
        self.nodes.append(op)
        return len(self.nodes) - 1

    def compute(self, name: str, rank: int, block: int, kernels: tuple[Kernel, ...], after: Iterable[int]) -> int:
        """Append kernels of a rank and return their place."""
        op = Operation(name=name, kind="compute", rank=rank, block=block, kernels=kernels, after=tuple(after))
        return self.add(op)

    def transfer(
        self, name: str, rank: int, block: int, values: int, peers: tuple[int, ...], after: int
    ) -> dict[int, int]:
        """Append D2H at the sender, the messages, and H2D at each receiver, whose places are returned."""
        wire = self.plan.wire if name == "exchange" else PLAIN  # input and answer are never compressed
        size = payload_bytes(wire, values)
        copy = Operation(name=name, kind="stage_d2h", rank=rank, block=block, wire_bytes=size, after=(after,))
        message = msgspec.structs.replace(copy, kind="send", peers=peers, after=(self.add(copy),))
        arrival = msgspec.structs.replace(copy, kind="stage_h2d", source=rank, after=(self.add(message),))
        return {peer: self.add(msgspec.structs.replace(arrival, rank=peer)) for peer in peers}

    def embed(self) -> None:
        """The embedding, by the leader with its rows scattered, or by every rank."""
        m, rows = self.model, self.batch * (self.tokens - self.model.prefix_tokens)
        whole = gemm(rows, m.patch_values, m.width) if m.patch_values else elementwise(rows * m.width, 2)
        everyone = self.plan.embed == "each"
        for rank in range(self.plan.ranks if everyone else 1):
            self.last[rank] = self.compute("embed", rank, -1, (whole,), [])
        if not everyone:
            for rank in range(1, self.plan.ranks):
                values = self.batch * self.partition.sizes[rank] * m.width
                self.last |= self.transfer("scatter", 0, -1, values, (rank,), self.last[0])

    def block(self, block: int) -> None:
        """One block: every rank's exchange first, then what it computes."""
        m, ready = self.model, self._exchange(block)
        for rank in range(self.plan.ranks):
            # without overlap the exchange is waited for first, as the published system does
            before = [self.last[rank]] if self.plan.overlap else [self.last[rank], *ready[rank]]
            own = self.batch * self.partition.sizes[rank]
            kernels = self._projections(own, m.width, m.kv_width, m.kv_width)
            project = self.compute("project", rank, block, kernels, before)
            self.last[rank] = self.compute("attend", rank, block, self._attend(rank), [project, *ready[rank]])

    def _exchange(self, block: int) -> dict[int, list[int]]:
        """Compress and send each part's rows; returns the places of what arrives at each rank."""
        m, ranks = self.model, self.plan.ranks
        ready: dict[int, list[int]] = {rank: [] for rank in range(ranks)}
        for rank in range(ranks):
            peers = receivers(rank, ranks, m.causal)
            if peers:
                own, sent = (self.batch * rows[rank] * m.width for rows in (self.partition.sizes, self.sent))
                means = (elementwise(own),) if self.plan.segments else ()
                kernels = (*means, *codec(self.plan.wire, sent))
                self.last[rank] = self.compute("compress", rank, block, kernels, [self.last[rank]])
                for peer, place in self.transfer("exchange", rank, block, sent, peers, self.last[rank]).items():
                    ready[peer].append(place)
        return ready

    def _norm(self, rows: int) -> tuple[Kernel, ...]:
        width = self.model.width
        return rms_norm(rows, width) if self.model.structure.norm == "rms" else (norm(rows, width),)

    def _projections(self, rows: int, *widths: int) -> tuple[Kernel, ...]:
        """Norm, projections to `widths`, and the rotation of all but the last, which is the values'."""
        width, structure = self.model.width, self.model.structure
        outputs = (sum(widths),) if structure.fused else widths
        turned = widths[:-1] if structure.rotary else ()
        return (
            *self._norm(rows),
            *(gemm(rows, width, output) for output in outputs),
            *(kernel for each in turned for kernel in rotary(rows * each)),
        )

    def _attend(self, rank: int) -> tuple[Kernel, ...]:
        m, batch, own = self.model, self.batch, self.partition.sizes[rank]
        others = sum(self.sent[p] for p in range(self.plan.ranks) if rank in receivers(p, self.plan.ranks, m.causal))
        unpacking = codec(self.plan.wire, batch * others * m.width, decode=True) if others else ()
        remote = self._projections(batch * others, m.kv_width, m.kv_width) if others else ()
        rows = batch * own
        return (
            *unpacking,
            *remote,
            attention(own, own + others, m.width, batch),
            gemm(rows, m.width, m.width),
            elementwise(rows * m.width, 2),
            *self._norm(rows),
            *(gemm(rows, m.width, m.mlp_width),) * (2 if m.structure.gated else 1),
            *(elementwise(rows * m.mlp_width, reads) for reads in m.structure.activation),
            gemm(rows, m.mlp_width, m.width),
            elementwise(rows * m.width, 2),
        )

    def head(self) -> None:
        """Collect the rows that the head reads, then the head."""
        m, rows = self.model, head_rows(self.model, self.tokens)
        ready = [self.last[0]]
        for rank in range(1, self.plan.ranks):
            back = returned_rows(rows, *self.partition.bounds(rank))
            if back:
                values = self.batch * back * m.width
                ready += self.transfer("collect", rank, m.blocks, values, (0,), self.last[rank]).values()
        read = self.batch * (1 if m.head != "all" else self.tokens)
        kernels = (*self._norm(read), gemm(read, m.width, m.output_width)) if m.output_width else self._norm(read)
        self.compute("head", 0, m.blocks, kernels, ready)
