"""(ModelSpec, ExecutionPlan, batch) to a graph of operations with their FLOPs and bytes.

One node is one operation of one rank; an edge says what must be finished before it may start. The
hardware executes the same steps, the simulator walks this graph, and both take bytes from here.
"""

from typing import Literal

import msgspec
import networkx as nx

from prism.codecs import CODECS, PLAIN, Wire, payload_bytes
from prism.partition import head_rows, receivers, returned_rows
from prism.plan import ExecutionPlan
from prism.spec import ModelSpec

OpClass = Literal["gemm", "attention", "norm", "elementwise"]
WORD = 4  # bytes of a value inside a device: fp32
NORM_FLOPS = 5  # per element of a LayerNorm, as fvcore counts it and as the published table did


class Kernel(msgspec.Struct, frozen=True, kw_only=True):
    """One device kernel: FLOPs, and bytes that it reads and writes in the device's memory."""

    op_class: OpClass
    flops: int
    memory_bytes: int


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One step of one rank. `block` is -1 before the first block and `blocks` after the last.

    kind "compute" has kernels; kind "send" moves `wire_bytes` from `rank` to each of `peers`; kind
    "stage_d2h" and "stage_h2d" copy `wire_bytes` between device and host. A device without memory
    of its own skips the staging.
    """

    name: str
    kind: Literal["compute", "stage_d2h", "send", "stage_h2d"]
    rank: int
    block: int
    kernels: tuple[Kernel, ...] = ()
    wire_bytes: int = 0
    peers: tuple[int, ...] = ()

    @property
    def flops(self) -> int:
        return sum(kernel.flops for kernel in self.kernels)


class WorkloadGraph(msgspec.Struct, frozen=True):
    """Nodes are (name, rank, block); the Operation is the node's attribute `op`."""

    graph: "nx.DiGraph[tuple[str, int, int]]"

    def operations(self, rank: int | None = None) -> list[Operation]:
        ops: list[Operation] = [data["op"] for _, data in self.graph.nodes(data=True)]
        return [op for op in ops if rank is None or op.rank == rank]

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
        return sum(op.wire_bytes * len(op.peers) for op in self.operations() if op.kind == "send" and op.block == 0)


def gemm(rows: int, inner: int, columns: int) -> Kernel:
    return Kernel(
        op_class="gemm",
        flops=2 * rows * inner * columns,
        memory_bytes=WORD * (rows * inner + inner * columns + rows * columns),
    )


def attention(queries: int, keys: int, width: int, batch: int) -> Kernel:
    return Kernel(
        op_class="attention",
        flops=4 * batch * queries * keys * width,
        memory_bytes=WORD * batch * width * 2 * (queries + keys),
    )


def norm(rows: int, width: int) -> Kernel:
    return Kernel(op_class="norm", flops=NORM_FLOPS * rows * width, memory_bytes=2 * WORD * rows * width)


def elementwise(values: int, reads: int = 1) -> Kernel:
    """FLOPs are not counted, as in torch's and fvcore's counters: such a kernel is bound by memory."""
    return Kernel(op_class="elementwise", flops=0, memory_bytes=WORD * values * (reads + 1))


def rms_norm(rows: int, width: int) -> tuple[Kernel, ...]:
    """transformers' own: square, mean, two kernels over the rows, and two products."""
    values = rows * width
    mean = (elementwise(values, 0), elementwise(rows), elementwise(rows))
    return (elementwise(values), *mean, norm(rows, width), elementwise(values))


def rotary(values: int) -> tuple[Kernel, ...]:
    """x cos + rotated sin, where half of `rotated` is negated."""
    once = elementwise(values)
    return (once, elementwise(values // 2), once, once, elementwise(values, 2))


# tensors that each kernel of an activation reads; GPT-2's own (gelu_new of transformers) is a chain, Llama's is followed
# by the product with the gate, others are one
ACTIVATIONS: dict[str, tuple[int, ...]] = {"gpt2": (1, 1, 2, 1, 1, 1, 1, 2), "llama": (1, 2)}


def codec(wire: Wire, values: int, *, decode: bool = False) -> tuple[Kernel, ...]:
    """Kernels of encoding (or decoding) values for the wire; fp32 crosses as it is."""
    row = CODECS[wire]
    passes, groups = (row.decode if decode else row.encode), row.groups(values)
    turn = (gemm(groups, row.group, row.group),) if row.rotated else ()
    sizes = [size * values for size in passes.value_bytes] + [2 * WORD * groups] * passes.group_kernels
    return (*turn, *(Kernel(op_class="elementwise", flops=0, memory_bytes=size) for size in sizes))


def build(model: ModelSpec, plan: ExecutionPlan, batch: int, tokens: int | None = None) -> WorkloadGraph:
    """The graph of one batch of `batch` samples of `tokens` tokens (the model's own N by default)."""
    builder = _Builder(model, plan, batch, tokens or model.tokens)
    builder.embed()
    for block in range(model.blocks):
        builder.block(block)
    builder.head()
    return WorkloadGraph(builder.graph)


class _Builder:
    def __init__(self, model: ModelSpec, plan: ExecutionPlan, batch: int, tokens: int) -> None:
        self.model, self.plan, self.batch, self.tokens = model, plan, batch, tokens
        self.partition = plan.partition(tokens)
        self.sent = plan.sent_rows(tokens)
        self.graph: nx.DiGraph[tuple[str, int, int]] = nx.DiGraph()
        self.last: dict[int, tuple[str, int, int]] = {}

    def add(self, op: Operation, after: list[tuple[str, int, int]]) -> tuple[str, int, int]:
        node = (op.name, op.rank, op.block)
        self.graph.add_node(node, op=op)
        self.graph.add_edges_from((before, node) for before in after)
        return node

    def compute(
        self, name: str, rank: int, block: int, kernels: tuple[Kernel, ...], after: list[tuple[str, int, int]]
    ) -> tuple[str, int, int]:
        op = Operation(name=name, kind="compute", rank=rank, block=block, kernels=kernels)
        return self.add(op, after)

    def transfer(
        self, name: str, rank: int, block: int, values: int, peers: tuple[int, ...], after: tuple[str, int, int]
    ) -> dict[int, tuple[str, int, int]]:
        """D2H at the sender, the messages, H2D at each receiver, which is what is returned."""
        wire = self.plan.wire if name == "exchange" else PLAIN  # input and answer are never compressed
        size = payload_bytes(wire, values)
        down = self.add(
            Operation(name=f"{name}.d2h", kind="stage_d2h", rank=rank, block=block, wire_bytes=size), [after]
        )
        send = self.add(Operation(name=name, kind="send", rank=rank, block=block, wire_bytes=size, peers=peers), [down])
        up = {}
        for peer in peers:
            op = Operation(name=f"{name}.h2d.{rank}", kind="stage_h2d", rank=peer, block=block, wire_bytes=size)
            up[peer] = self.add(op, [send])
        return up

    def embed(self) -> None:
        m, rows = self.model, self.batch * (self.tokens - self.model.prefix_tokens)
        whole = gemm(rows, m.patch_values, m.width) if m.patch_values else elementwise(rows * m.width, 2)
        everyone = self.plan.embed == "each"
        for rank in range(self.plan.ranks if everyone else 1):
            self.last[rank] = self.compute("embed", rank, -1, (whole,), [])
        if not everyone:
            for rank in range(1, self.plan.ranks):
                values = self.batch * self.partition.sizes[rank] * m.width
                self.last |= self.transfer(f"scatter.{rank}", 0, -1, values, (rank,), self.last[0])

    def block(self, block: int) -> None:
        m, ranks, batch = self.model, self.plan.ranks, self.batch
        ready: dict[int, list[tuple[str, int, int]]] = {rank: [] for rank in range(ranks)}
        start = dict(self.last)
        for rank in range(ranks):
            peers = receivers(rank, ranks, m.causal)
            if peers:
                own, sent = batch * self.partition.sizes[rank], batch * self.sent[rank]
                means = (elementwise(own * m.width),) if self.plan.segments else ()
                packing = codec(self.plan.wire, sent * m.width)
                compress = self.compute("compress", rank, block, (*means, *packing), [start[rank]])
                start[rank] = compress
                for peer, node in self.transfer(
                    "exchange", rank, block, batch * self.sent[rank] * m.width, peers, compress
                ).items():
                    ready[peer].append(node)
        for rank in range(ranks):
            own = batch * self.partition.sizes[rank]
            # without overlap the exchange is waited for first, as the published system does
            before = [start[rank]] if self.plan.overlap else [start[rank], *ready[rank]]
            kernels = self._projections(own, m.width, m.kv_width, m.kv_width)
            project = self.compute("project", rank, block, kernels, before)
            self.last[rank] = self.compute("attend", rank, block, self._attend(rank), [project, *ready[rank]])

    def _norm(self, rows: int) -> tuple[Kernel, ...]:
        width = self.model.width
        return rms_norm(rows, width) if self.model.family == "llama" else (norm(rows, width),)

    def _projections(self, rows: int, *widths: int) -> tuple[Kernel, ...]:
        """Norm and projections to `widths`, the last one the values'. Llama has a matrix for each, and rotates all but
        the values."""
        width = self.model.width
        if self.model.family != "llama":
            return (*self._norm(rows), gemm(rows, width, sum(widths)))
        turned = (kernel for each in widths[:-1] for kernel in rotary(rows * each))
        return (*self._norm(rows), *(gemm(rows, width, each) for each in widths), *turned)

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
            *(gemm(rows, m.width, m.mlp_width),) * (2 if m.gated else 1),
            *(elementwise(rows * m.mlp_width, reads) for reads in ACTIVATIONS.get(m.family, (1,))),
            gemm(rows, m.mlp_width, m.width),
            elementwise(rows * m.width, 2),
        )

    def head(self) -> None:
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
