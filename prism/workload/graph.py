"""Turn (ModelSpec, ExecutionPlan, batch) into a graph of operations with their FLOPs and bytes.

A node is one operation of one rank; it names the operations that must have finished before. The
hardware executes the same steps, the simulator walks this graph, and both take bytes from here.
"""

from collections.abc import Iterable
from typing import Literal

import msgspec

from prism.codecs import PLAIN, payload_bytes
from prism.partition import head_rows, returned_rows
from prism.plan import ExecutionPlan, Place
from prism.spec import ModelSpec
from prism.workload.ends import answer_bytes, input_bytes
from prism.workload.kernels import Kernel
from prism.workload.part_kernels import PartKernels

WHOLE = -1  # the microbatch of what concerns all samples of a replica
Places = tuple[int, ...]  # of operations in a graph


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One step of one rank. A device without memory of its own skips the staging.

    name: embed, compress, project, attend or head; of messages scatter, exchange or collect among the parts of a
    stage, rows from stage to stage (and of the kernels of their codec), inputs and answer between replicas; answer also
    from a replica's last stage to its first.
    kind: "compute" runs kernels, "send" moves `wire_bytes` from `rank` to each of `peers`, "stage_d2h" and "stage_h2d"
    copy `wire_bytes` from device to host and back.
    block: -1 before the first block, the number of blocks after the last; of rows, the receiving stage's first.
    micro: the microbatch, or WHOLE.
    source: of "stage_h2d", the rank that sent the message.
    after: places in the graph of the operations that must have finished.
    """

    name: str
    kind: Literal["compute", "stage_d2h", "send", "stage_h2d"]
    rank: int
    block: int
    micro: int = 0
    kernels: tuple[Kernel, ...] = ()
    wire_bytes: int = 0
    peers: tuple[int, ...] = ()
    source: int = -1
    after: Places = ()

    @property
    def flops(self) -> int:
        """FLOPs of all kernels."""
        return sum(kernel.flops for kernel in self.kernels)

    @property
    def moved_bytes(self) -> int:
        """Payload that the rank's host hands to the link, or takes from it."""
        return self.wire_bytes * (len(self.peers) if self.kind == "send" else self.kind == "stage_h2d")


class WorkloadGraph(msgspec.Struct, frozen=True):
    """Every operation of a batch, each behind those that must have finished before it."""

    nodes: tuple[Operation, ...]

    def operations(self, rank: int | None = None) -> list[Operation]:
        """Operations of one rank, or of all."""
        return [op for op in self.nodes if rank is None or op.rank == rank]

    def flops(self, rank: int) -> int:
        """FLOPs of one rank for the whole batch."""
        return sum(op.flops for op in self.operations(rank))

    def moved_bytes(self, rank: int, block: int = 0, micro: int = 0) -> int:
        """Payload that a rank's host hands to the link and takes from it in one block's exchange."""
        mine = (op for op in self.nodes if op.rank == rank and op.name == "exchange")
        return sum(op.moved_bytes for op in mine if op.block == block and op.micro == micro)

    def block_bytes(self) -> int:
        """Bytes that all ranks together hand to the link in one block's exchange."""
        return self.sent_bytes("exchange", 0)

    def sent_bytes(self, name: str, block: int | None = None) -> int:
        """Bytes of all messages of a name that the ranks hand to the link: of one block, or of the batch."""
        sends = (op for op in self.nodes if op.kind == "send" and op.name == name)
        return sum(op.moved_bytes for op in sends if block is None or op.block == block)


def build(model: ModelSpec, plan: ExecutionPlan, batch: int, tokens: int | None = None) -> WorkloadGraph:
    """Build the graph of one batch of `batch` samples of `tokens` tokens (the model's own N by default).

    Raises PlanError where the plan doesn't fit the model, the samples or the tokens.
    """
    return _graph(model, plan, batch, tokens, most=model.blocks)


def outline(model: ModelSpec, plan: ExecutionPlan, batch: int, tokens: int | None = None) -> WorkloadGraph:
    """Build the graph with one block of each stage, its first: the blocks of a stage are alike. Raises PlanError."""
    return _graph(model, plan, batch, tokens, most=1)


def _graph(model: ModelSpec, plan: ExecutionPlan, batch: int, tokens: int | None, most: int) -> WorkloadGraph:
    plan.check(model, batch, tokens)
    nodes: list[Operation] = []
    shares = enumerate(plan.shares(batch))
    replicas = [_Replica(model, plan, k, share, tokens or model.tokens, most, nodes) for k, share in shares if share]
    for replica in replicas:  # the leader hands all inputs out before it begins with its own
        replica.take_inputs()
    for replica in replicas:
        replica.run()
    return WorkloadGraph(tuple(nodes))


class _Replica:
    """Appends the operations of one replica, at most `most` blocks of each stage.

    last: each rank's latest places, on which its rows depend. answers: of the microbatches, at the first rank.
    """

    def __init__(
        self,
        model: ModelSpec,
        plan: ExecutionPlan,
        number: int,
        samples: int,
        tokens: int,
        most: int,
        nodes: list[Operation],
    ) -> None:
        self.model, self.plan, self.samples, self.tokens = model, plan.replica(number), samples, tokens
        self.sizes = plan.microbatches(samples)
        self.nodes, self.first = nodes, plan.rank_of(Place(number, 0, 0))
        self.stages = [range(start, min(stop, start + most)) for start, stop in self.plan.stage_blocks(model.blocks)]
        self.partition = self.plan.partition(tokens)
        self.last: dict[int, Places] = {}
        self.answers: Places = ()
        self.micro = WHOLE
        self.work: PartKernels

    def run(self) -> None:
        """Every microbatch through all stages, then the replica's answer to the leader."""
        sizes = self.sizes
        kernels = {size: PartKernels(self.model, self.plan, size, self.tokens) for size in set(sizes)}
        for micro, size in enumerate(sizes):
            self.micro, self.work = micro, kernels[size]
            for stage, blocks in enumerate(self.stages):
                ranks = self._ranks(stage)
                self._embed(ranks) if stage == 0 else self._rows(ranks, blocks.start)
                for block in blocks:
                    self._block(ranks, block)
            self._head(self._ranks(len(self.stages) - 1), size)
        self.micro = WHOLE
        if self.first and self.plan.stages > 1:
            self._answer(self.first, 0, self.samples, self.answers)

    def take_inputs(self) -> None:
        """The replica's samples, raw, from the leader; none where every rank has them."""
        if self.first and self.plan.embed != "each":
            size = input_bytes(self.model, self.samples, self.tokens)
            self._arrive(self.transfer("inputs", 0, -1, size, (self.first,), ()))

    def _ranks(self, stage: int) -> range:
        first = self.first + stage * self.plan.parts
        return range(first, first + self.plan.parts)

    # -- appending ------------------------------------------------------------------------------------

    def add(self, op: Operation) -> int:
        """Append an operation and return its place."""
        self.nodes.append(op)
        return len(self.nodes) - 1

    def compute(self, name: str, rank: int, block: int, kernels: tuple[Kernel, ...], after: Iterable[int]) -> int:
        """Append kernels of a rank, on which its rows then depend, and return their place."""
        place = self.add(
            Operation(
                name=name, kind="compute", rank=rank, block=block, micro=self.micro, kernels=kernels, after=tuple(after)
            )
        )
        self.last[rank] = (place,)
        return place

    def transfer(
        self, name: str, rank: int, block: int, size: int, peers: tuple[int, ...], after: Places
    ) -> dict[int, int]:
        """Append D2H at the sender, the messages, and H2D at each receiver, whose places are returned."""
        copy = Operation(
            name=name, kind="stage_d2h", rank=rank, block=block, micro=self.micro, wire_bytes=size, after=after
        )
        message = msgspec.structs.replace(copy, kind="send", peers=peers, after=(self.add(copy),))
        arrival = msgspec.structs.replace(copy, kind="stage_h2d", source=rank, after=(self.add(message),))
        return {peer: self.add(msgspec.structs.replace(arrival, rank=peer)) for peer in peers}

    def _arrive(self, places: dict[int, int]) -> None:
        """Let ranks go on from rows that arrive at these places, once they have done what they were at."""
        for rank, place in places.items():
            self.last[rank] = (*self.last.get(rank, ()), place)

    # -- one microbatch -------------------------------------------------------------------------------

    def _embed(self, ranks: range) -> None:
        """The embedding, by the first rank with its rows scattered, or by every rank."""
        everyone = self.plan.embed == "each"
        for rank in ranks if everyone else ranks[:1]:
            self.compute("embed", rank, -1, self.work.embed, self.last.get(rank, ()))
        if not everyone:
            embedded = self.last[self.first]
            for part, rank in enumerate(ranks[1:], 1):
                # input and answer are never compressed
                size = payload_bytes(PLAIN, self.work.values(self.partition.sizes[part]))
                self._arrive(self.transfer("scatter", self.first, -1, size, (rank,), embedded))

    def _rows(self, ranks: range, block: int) -> None:
        """All rows of each part, from the stage before to the same part of this one."""
        for part, rank in enumerate(ranks):
            sender, size = rank - len(ranks), payload_bytes(self.plan.wire, self.work.values(self.work.own[part]))
            if kernels := self.work.recoded(part, decode=False):
                self.compute("rows", sender, block, kernels, self.last[sender])
            self._arrive(self.transfer("rows", sender, block, size, (rank,), self.last[sender]))
            if kernels := self.work.recoded(part, decode=True):
                self.compute("rows", rank, block, kernels, self.last[rank])

    def _block(self, ranks: range, block: int) -> None:
        """One block: every rank's exchange first, then what it computes."""
        ready = self._exchange(ranks, block)
        for part, rank in enumerate(ranks):
            # without overlap the exchange is waited for first, as the published system does
            before = self.last[rank] if self.plan.overlap else (*self.last[rank], *ready[rank])
            project = self.compute("project", rank, block, self.work.project[part], before)
            self.compute("attend", rank, block, self.work.attend[part], (project, *ready[rank]))

    def _exchange(self, ranks: range, block: int) -> dict[int, list[int]]:
        """Compress and send each part's rows; returns the places of what arrives at each rank."""
        ready: dict[int, list[int]] = {rank: [] for rank in ranks}
        for part, rank in enumerate(ranks):
            if self.work.peers[part]:
                self.compute("compress", rank, block, self.work.compress[part], self.last[rank])
                size = payload_bytes(self.plan.wire, self.work.values(self.work.sent[part]))
                peers = tuple(ranks[peer] for peer in self.work.peers[part])
                for peer, place in self.transfer("exchange", rank, block, size, peers, self.last[rank]).items():
                    ready[peer].append(place)
        return ready

    def _head(self, ranks: range, samples: int) -> None:
        """Collect the rows that the head reads, then the head, whose answer returns to the replica's first rank."""
        blocks, lead = self.model.blocks, ranks[0]
        read, ready = head_rows(self.model, self.tokens), list(self.last[lead])
        for part, rank in enumerate(ranks[1:], 1):
            back = returned_rows(read, *self.partition.bounds(part))
            if back:
                size = payload_bytes(PLAIN, self.work.values(back))
                ready += self.transfer("collect", rank, blocks, size, (lead,), self.last[rank]).values()
        head = self.compute("head", lead, blocks, self.work.head, ready)
        if lead != self.first:
            self.answers += self._answer(lead, self.first, samples, (head,))
        elif self.first:
            self._answer(lead, 0, samples, (head,))

    def _answer(self, sender: int, receiver: int, samples: int, after: Places) -> Places:
        """What the head returns for some samples."""
        size = answer_bytes(self.model, samples, self.tokens)
        return tuple(self.transfer("answer", sender, self.model.blocks, size, (receiver,), after).values())
