"""Move the messages of a step: straight to each peer, by rendezvous, or round a ring; and the ranks' mailboxes."""

import functools
from collections.abc import Callable, Generator
from typing import Any, Protocol

import simpy

from sim.engine.network import Network

Key = tuple[int, int, str, int, int]  # batch, receiving rank, op, block, microbatch
Position = tuple[float, float, float]  # batch, microbatch, block: how far a rank is
SimProcess = Generator[simpy.Event, Any, Any]
HALVES = 2  # gloo's ring cuts a chunk in two
BEFORE: Position = (-1, 0, 0)  # any batch


class Mailboxes:
    """Count the messages that have arrived, by key, and wake the rank that waits for them."""

    def __init__(self, env: simpy.Environment) -> None:
        self._env = env
        self._arrived: dict[Key, int] = {}
        self._waiting: dict[Key, tuple[int, simpy.Event]] = {}

    def deliver(self, key: Key) -> None:
        """Put one message in."""
        count = self._arrived[key] = self._arrived.get(key, 0) + 1
        waiting = self._waiting.get(key)
        if waiting is not None and count >= waiting[0]:
            del self._waiting[key]
            waiting[1].succeed()

    def until(self, key: Key, needed: int) -> SimProcess:
        """Wait until `needed` messages of a key have arrived, and take them out."""
        if self._arrived.get(key, 0) < needed:
            event = self._env.event()
            self._waiting[key] = (needed, event)
            yield event
        del self._arrived[key]


class Collective(Protocol):
    """One way in which the messages of a step go round."""

    def post(self, key: Key, peers: tuple[int, ...], size: int) -> None:
        """Hand over a rank's messages of `size` bytes. key: with the sending rank."""
        ...

    def messages(self, peers: int) -> int:
        """Count the messages that a rank awaits from so many peers."""
        ...


class Mesh:
    """Every message goes straight to its receiver."""

    def __init__(self, network: Network, mailboxes: Mailboxes) -> None:
        self._network, self._mailboxes = network, mailboxes

    def post(self, key: Key, peers: tuple[int, ...], size: int) -> None:
        """Send to every peer."""
        number, source, op, block, micro = key
        for target in peers:
            self.send(source, (number, target, op, block, micro), size)

    def messages(self, peers: int) -> int:
        """One from each."""
        return peers

    def send(self, source: int, key: Key, size: int) -> None:
        """Send one message to the mailbox of a key."""
        self._network.send(source, key[1], size, lambda: self._mailboxes.deliver(key))


class RendezvousMesh(Mesh):
    """A mesh in which a message leaves when its receiver can take it, as gloo sends.

    The parts of a causal model wait for earlier ones only. One that runs ahead of a later one must not fill the link
    with what nobody takes yet. Nor must a device that has begun with the next batch.
    free: up to this block a message leaves at once.
    """

    def __init__(self, network: Network, mailboxes: Mailboxes, free: float) -> None:
        super().__init__(network, mailboxes)
        self._free = free
        self._ready: dict[int, Position] = {}  # by rank: the last messages that it can take
        self._held: dict[int, list[tuple[Position, int, Key, int]]] = {}  # by rank: with source and bytes

    def post(self, key: Key, peers: tuple[int, ...], size: int) -> None:
        """Send to every peer that can take the block; hold the other messages."""
        number, source, op, block, micro = key
        at = (number, micro, block)
        for target in peers:
            to = (number, target, op, block, micro)
            if block > self._free and at > self._ready.get(target, BEFORE):
                self._held.setdefault(target, []).append((at, source, to, size))
            else:
                self.send(source, to, size)

    def enter(self, rank: int, ready: Position) -> None:
        """Note how far a rank can take messages, and send those that were held."""
        self._ready[rank] = ready
        held = self._held.pop(rank, ())
        later = [message for message in held if message[0] > ready]
        if later:
            self._held[rank] = later
        for at, source, to, size in held:
            if at <= ready:
                self.send(source, to, size)


class RingGather:
    """gloo's all_gather, a ring for each block of a batch."""

    def __init__(self, network: Network, mailboxes: Mailboxes) -> None:
        self._network, self._mailboxes = network, mailboxes
        self._rings: dict[tuple[int, int], Ring] = {}

    def post(self, key: Key, peers: tuple[int, ...], size: int) -> None:
        """Enter the ring of the block; it is forgotten when all have."""
        number, rank, op, block, micro = key
        ring = self._rings.get((number, block))
        if ring is None:
            deliver = functools.partial(self._deliver, number, op, block, micro)
            ring = self._rings[number, block] = Ring(self._network, len(peers) + 1, deliver)
        if ring.enter(rank, size):
            del self._rings[number, block]

    def messages(self, peers: int) -> int:
        """Half chunks of every peer."""
        return HALVES * peers

    def _deliver(self, number: int, op: str, block: int, micro: int, rank: int) -> None:
        self._mailboxes.deliver((number, rank, op, block, micro))


class Ring:
    """The ring of one block.

    A rank's rows go to its right neighbour as two half chunks, and what comes from the left is passed on until it has
    been everywhere. A rendezvous: nothing leaves for a neighbour that has not entered.
    """

    def __init__(self, network: Network, ranks: int, deliver: Callable[[int], None]) -> None:
        self._network, self._ranks, self._deliver = network, ranks, deliver
        self._entered = [False] * ranks
        self._held: list[tuple[int, int, int]] = []  # sender, bytes, hops

    def enter(self, rank: int, size: int) -> bool:
        """Hand over a rank's rows. Returns whether all ranks have entered."""
        self._entered[rank] = True
        held, self._held = self._held, []
        for message in (*held, *((rank, half, self._ranks - 1) for half in (size - size // 2, size // 2))):
            self._send(*message)
        return all(self._entered)

    def _send(self, rank: int, half: int, hops: int) -> None:
        right = (rank + 1) % self._ranks
        if self._entered[right]:
            self._network.send(rank, right, half, lambda: self._take(right, half, hops))
        else:
            self._held.append((rank, half, hops))

    def _take(self, rank: int, half: int, hops: int) -> None:
        self._deliver(rank)
        if hops > 1:
            self._send(rank, half, hops - 1)
