"""gloo as a transport: the Control and the BatchExchange over torch's default process group."""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from hw.comm.control import BatchExchange
from hw.comm.recorder import SpanRecorder
from hw.comm.shaper import SharedMedium
from hw.comm.staging import Stager
from prism.errors import ExchangeError, PeerLostError
from prism.nn.exchange import Expected, Pending

CONTROL = 1  # tag of messages outside of batches: a batch's receives are posted before these come
LONGEST_MESSAGE = 1 << 26  # bytes
ANY_RANK = -1


class GlooControl:
    """The control plane over the current process group."""

    def __init__(self) -> None:
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()

    def exchange(self, stager: Stager, recorder: SpanRecorder, medium: SharedMedium | None = None) -> BatchExchange:
        return GlooExchange(stager, recorder, medium)

    def send(self, data: bytes, peer: int) -> None:
        with lost_peer(peer, "control"):
            dist.send(torch.tensor([len(data)]), peer, tag=CONTROL)
            if data:
                dist.send(torch.frombuffer(bytearray(data), dtype=torch.uint8), peer, tag=CONTROL)

    def receive(self, peer: int) -> bytes:
        length = self.receive_stamp(peer)
        if not 0 <= length <= LONGEST_MESSAGE:
            raise ExchangeError(
                f"rank {peer} announces {length} bytes, the limit is {LONGEST_MESSAGE}; run the same version there"
            )
        data = torch.empty(length, dtype=torch.uint8)
        if length:
            with lost_peer(peer, "control"):
                dist.recv(data, peer, tag=CONTROL)
        return data.numpy().tobytes()

    def send_stamp(self, stamp_ns: int, peer: int) -> None:
        with lost_peer(peer, "control"):
            dist.send(torch.tensor([stamp_ns]), peer, tag=CONTROL)

    def receive_stamp(self, peer: int) -> int:
        stamp = torch.zeros(1, dtype=torch.int64)
        with lost_peer(peer, "control"):
            dist.recv(stamp, peer, tag=CONTROL)
        return int(stamp)

    def barrier(self) -> None:
        with lost_peer(ANY_RANK, "a barrier"):
            dist.barrier()

    def share(self, values: Sequence[float]) -> list[list[float]]:
        own = torch.tensor(values, dtype=torch.float64)
        everyone = [torch.empty_like(own) for _ in range(self.world_size)]
        with lost_peer(ANY_RANK, "a gathering of values"):
            dist.all_gather(everyone, own)
        return [tensor.tolist() for tensor in everyone]


class GlooExchange:
    """The data plane over the current process group."""

    def __init__(self, stager: Stager, recorder: SpanRecorder, medium: SharedMedium | None = None) -> None:
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self._stager, self.recorder, self._medium = stager, recorder, medium
        self.deadline_s: float | None = None
        self._generation = 0
        self._leaving: list[_Send] = []
        self._expected: dict[tuple[str, int], dict[int, tuple[dist.Work, Tensor]]] = {}

    def start(self, outgoing: Mapping[int, Tensor], incoming: Mapping[int, Expected], op: str, block: int) -> Pending:
        self._generation += 1
        hosts: dict[int, Tensor] = {}
        for peer, tensor in outgoing.items():
            if id(tensor) not in hosts:  # one payload for many peers is staged once
                hosts[id(tensor)] = self._stager.to_host(tensor, op, block)
            host = hosts[id(tensor)]
            if self._medium is not None:
                self._medium.send(peer, host.nbytes)
            with lost_peer(peer, op, block):
                self._leaving.append((self._generation, peer, _work(dist.isend(host, peer)), host))
        if outgoing:
            sent = sum(tensor.nbytes for tensor in outgoing.values())
            self.recorder.handed_over(op, block, sent)
        self.expect(incoming, op, block)
        return _Posted(self, self._expected.pop((op, block)), op, block, self._generation)

    def expect(self, incoming: Mapping[int, Expected], op: str, block: int) -> None:
        receives = self._expected.setdefault((op, block), {})
        for peer, expected in incoming.items():
            if peer not in receives:
                # answers of several batches may be under way, so each gets memory of its own
                key = None if op == "answer" else ("in", op, peer, block % 2)
                buffer = self._stager.buffer(key, expected)
                with lost_peer(peer, op, block):
                    receives[peer] = (_work(dist.irecv(buffer, peer)), buffer)

    def start_ring(self, own: Tensor, incoming: Mapping[int, Expected], op: str, block: int) -> Pending:
        self._generation += 1
        host = self._stager.to_host(own, op, block)
        longest = max(torch.Size(shape).numel() for shape, _ in incoming.values())
        longest = max(longest, host.numel())
        flat = torch.nn.functional.pad(host.flatten(), (0, longest - host.numel()))  # gloo wants equal shapes
        gathered = [
            self._stager.buffer(("ring", op, rank, block % 2), ((longest,), host.dtype))
            for rank in range(self.world_size)
        ]
        sent = flat.nbytes * (self.world_size - 1)
        if self._medium is not None:
            self._medium.send((self.rank + 1) % self.world_size, sent)
        with lost_peer(ANY_RANK, op, block):
            work = _work(dist.all_gather(gathered, flat, async_op=True))
        self.recorder.handed_over(op, block, sent)
        views = {peer: gathered[peer][: torch.Size(shape).numel()].view(shape) for peer, (shape, _) in incoming.items()}
        return _Posted(self, {ANY_RANK: (work, flat)}, op, block, self._generation, ring=views)

    def flush(self) -> None:
        if self._leaving:
            self.recorder.switch("wire", "flush", -1)
            self.finish_sends(self._generation, "flush", -1)

    def finish_sends(self, generation: int, op: str, block: int) -> None:
        """Wait for the sends up to a generation; bounds what is under way without stalling the newest."""
        while self._leaving and self._leaving[0][0] <= generation:
            _, peer, work, _ = self._leaving.pop(0)
            with lost_peer(peer, op, block):
                self.finish(work)

    def finish(self, work: dist.Work) -> None:
        """Wait for a message: until the deadline where there is one, else for the group's timeout.

        A wait in vain kills the group. Raises RuntimeError, as gloo does.
        """
        if self.deadline_s is None:
            work.wait()
            return
        left = self.deadline_s - time.monotonic()
        if left <= 0:
            raise RuntimeError("the batch's deadline has passed")
        work.wait(timedelta(seconds=left))

    def arrived(self, parts: dict[int, Tensor], op: str, block: int, ring: bool) -> dict[int, Tensor]:
        """Hold the parts back until a shaped link would have delivered them, then stage them."""
        if self._medium is not None and ring:
            self._medium.arrive((self.rank - 1) % self.world_size, steps=self.world_size - 1)
        elif self._medium is not None:
            for peer in parts:
                self._medium.arrive(peer)
        self.recorder.received(tuple(parts), sum(part.nbytes for part in parts.values()))
        return self._stager.to_device(parts, op, block)


_Send = tuple[int, int, dist.Work, Tensor]  # generation, peer, work, and the tensor, kept alive until it has left


class _Posted:
    """Receives under way: one a peer, or the one collective of a ring (with views of its result)."""

    def __init__(
        self,
        exchange: GlooExchange,
        works: dict[int, tuple[dist.Work, Tensor]],
        op: str,
        block: int,
        generation: int,
        ring: dict[int, Tensor] | None = None,
    ) -> None:
        self._exchange, self._works, self._op, self._block = exchange, works, op, block
        self._generation, self._ring = generation, ring

    def wait(self) -> dict[int, Tensor]:
        exchange, op, block = self._exchange, self._op, self._block
        exchange.recorder.switch("wire", op, block)
        exchange.finish_sends(self._generation - 1, op, block)
        for peer, (work, _) in self._works.items():
            with lost_peer(peer, op, block):
                exchange.finish(work)
        parts = self._ring if self._ring is not None else {peer: tensor for peer, (_, tensor) in self._works.items()}
        return exchange.arrived(parts, op, block, ring=self._ring is not None)


@contextlib.contextmanager
def lost_peer(peer: int, op: str, block: int = -1) -> Iterator[None]:
    """Turn gloo's RuntimeError into a PeerLostError that names the rank and what was under way."""
    try:
        yield
    except RuntimeError as error:
        who = f"rank {peer}" if peer != ANY_RANK else "a rank of the group"
        where = f"{op} of block {block}" if block >= 0 else op
        raise PeerLostError(
            f"{who} was lost during {where} ({reason(error)}); see what happened there, then run again"
        ) from None


def reason(error: Exception) -> str:
    """Cut a gloo message down to the part that a person can use."""
    line = str(error).strip().splitlines()[0]
    return line.rsplit("] ", 1)[-1][:160]


def _work(work: "dist.Work | None") -> "dist.Work":
    if work is None:
        raise ExchangeError("this process is no member of the group; start as many ranks as the plan has devices")
    return work
