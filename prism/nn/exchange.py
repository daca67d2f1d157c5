"""Define how the partitioned model moves tensors between ranks, and do it within one process.

The latter is for numerics, tests and training.
"""

import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from prism.errors import ExchangeError, PeerLostError

Expected = tuple[tuple[int, ...], torch.dtype]  # shape and type of a tensor that is to arrive
T = TypeVar("T")


class Pending(Protocol):
    """Messages under way."""

    def wait(self) -> dict[int, Tensor]:
        """Block until everything expected is here: a tensor of the expected shape by source.

        The tensors are valid until the exchange after the next one starts. Raises PeerLostError.
        """
        ...


class Exchange(Protocol):
    """Point-to-point messages and one collective between `world_size` ranks, in program order."""

    @property
    def rank(self) -> int:
        """This rank; 0 leads."""
        ...

    @property
    def world_size(self) -> int:
        """Ranks of the group."""
        ...

    def start(self, outgoing: Mapping[int, Tensor], incoming: Mapping[int, Expected], op: str, block: int) -> Pending:
        """Post all sends and receives at once. An outgoing tensor must not change before `flush`."""
        ...

    def expect(self, incoming: Mapping[int, Expected], op: str, block: int) -> None:
        """Post the receives of the next `start` of this op and block before it comes.

        A peer that is ahead then sends at once; gloo sends by rendezvous, so it would wait for this rank.
        """
        ...

    def start_ring(self, own: Tensor, incoming: Mapping[int, Expected], op: str, block: int) -> Pending:
        """All-gather round the ring: every rank calls it and receives from all others."""
        ...

    def flush(self) -> None:
        """Block until everything that was sent has left."""
        ...


class Subgroup:
    """Consecutive ranks of an exchange as an exchange of their own, the first of them its rank 0. It has no ring."""

    def __init__(self, exchange: Exchange, first: int, ranks: int) -> None:
        self._exchange, self._first, self._ranks = exchange, first, ranks

    @property
    def rank(self) -> int:
        return self._exchange.rank - self._first

    @property
    def world_size(self) -> int:
        return self._ranks

    def start(self, outgoing: Mapping[int, Tensor], incoming: Mapping[int, Expected], op: str, block: int) -> Pending:
        pending = self._exchange.start(self._outside(outgoing), self._outside(incoming), op, block)
        return _Renumbered(pending, self._first)

    def expect(self, incoming: Mapping[int, Expected], op: str, block: int) -> None:
        self._exchange.expect(self._outside(incoming), op, block)

    def start_ring(self, own: Tensor, incoming: Mapping[int, Expected], op: str, block: int) -> Pending:
        """Raise ExchangeError: gloo's collectives are of the whole group."""
        raise ExchangeError("a subgroup has no ring; use collective mesh")

    def flush(self) -> None:
        self._exchange.flush()

    def _outside(self, by_rank: Mapping[int, T]) -> dict[int, T]:
        return {self._first + rank: value for rank, value in by_rank.items()}


class _Renumbered:
    """Messages of a subgroup, by its own ranks."""

    def __init__(self, pending: Pending, first: int) -> None:
        self._pending, self._first = pending, first

    def wait(self) -> dict[int, Tensor]:
        return {rank - self._first: tensor for rank, tensor in self._pending.wait().items()}


class InProcessExchange:
    """One endpoint of a group whose ranks are threads of one process.

    Tensors pass by reference, so gradients flow through them.
    """

    def __init__(self, rank: int, boxes: dict[tuple[int, int], "queue.Queue[Tensor | None]"], ranks: int) -> None:
        self._rank, self._boxes, self._ranks = rank, boxes, ranks

    @classmethod
    def group(cls, ranks: int) -> "list[InProcessExchange]":
        """Make the endpoints of a group, by rank."""
        boxes: dict[tuple[int, int], queue.Queue[Tensor | None]] = {
            (a, b): queue.Queue() for a in range(ranks) for b in range(ranks)
        }
        return [cls(rank, boxes, ranks) for rank in range(ranks)]

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def world_size(self) -> int:
        return self._ranks

    def start(self, outgoing: Mapping[int, Tensor], incoming: Mapping[int, Expected], op: str, block: int) -> Pending:
        for peer, tensor in outgoing.items():
            self._boxes[self._rank, peer].put(tensor)
        return _Mail({peer: self._boxes[peer, self._rank] for peer in incoming})

    def expect(self, incoming: Mapping[int, Expected], op: str, block: int) -> None:
        """Do nothing: a box takes a tensor at any time."""

    def start_ring(self, own: Tensor, incoming: Mapping[int, Expected], op: str, block: int) -> Pending:
        return self.start(dict.fromkeys(incoming, own), incoming, op, block)

    def flush(self) -> None:
        """Do nothing: a tensor is delivered when it is put."""

    def hang_up(self) -> None:
        """Announce to every other rank that this one is gone, so that none waits for it."""
        for peer in range(self._ranks):
            self._boxes[self._rank, peer].put(None)


class _Mail:
    def __init__(self, boxes: "dict[int, queue.Queue[Tensor | None]]") -> None:
        self._boxes = boxes

    def wait(self) -> dict[int, Tensor]:
        arrived = {}
        for peer, box in self._boxes.items():
            tensor = box.get()
            if tensor is None:
                raise PeerLostError(f"rank {peer} stopped with an error of its own; see that one")
            arrived[peer] = tensor
        return arrived


def run_in_process(ranks: int, body: Callable[[Exchange], T]) -> list[T]:
    """Run `body(exchange)` as each rank of an in-process group, one thread each; results by rank.

    Gradient mode and thread count are the caller's. The first error that isn't a lost peer is raised.
    """
    group = InProcessExchange.group(ranks)
    results: dict[int, Any] = {}
    errors: list[BaseException] = []
    grad = torch.is_grad_enabled()

    def call(exchange: InProcessExchange) -> None:
        try:
            with torch.set_grad_enabled(grad):
                results[exchange.rank] = body(exchange)
        except BaseException as error:
            errors.append(error)
            exchange.hang_up()

    threads = [threading.Thread(target=call, args=(exchange,)) for exchange in group]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in sorted(errors, key=lambda e: isinstance(e, PeerLostError)):
        raise error
    return [results[rank] for rank in range(ranks)]
