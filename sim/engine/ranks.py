"""Ranks as SimPy processes that go through a Script, and the group that runs batch after batch.

A rank sleeps only when another could notice: its own steps add up on a clock of its own, which may run
ahead of the environment's until it hands a message over or waits for one. Waiting for a slower rank is
nobody's parameter: it is what happens.
"""

import functools
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Any, Literal

import msgspec
import simpy

from prism.partition import HEADER_BYTES
from prism.plan import ExecutionPlan
from prism.trace import Span, aligned
from sim.engine.device import Device
from sim.engine.network import Network
from sim.engine.script import Script, Step, sides

Key = tuple[int, int, str, int]  # batch, receiving rank, op, block
HALVES = 2  # gloo's ring cuts a chunk in two
Process = Generator[simpy.Event, Any, Any]


class Timed(msgspec.Struct, frozen=True):
    """A Step with its nanoseconds: what the walk reads, in the order it reads it. Where the device's clock
    moves, a computation has none until it starts, and `ns` is -1."""

    kind: Literal["work", "post", "await"]
    span: Any
    op: str
    ns: int
    launch_s: float
    device_s: float
    size: int
    peers: tuple[int, ...]


Phases = tuple[tuple[Timed, ...], ...]


class Group:
    """The ranks of one process group. `spans` keeps what happened, batch by batch, when `record` says so."""

    def __init__(self, env: simpy.Environment, devices: list[Device], network: Network, record: bool) -> None:
        self._env, self._devices, self._network, self._record = env, devices, network, record
        self._uneven = devices[0].cost.uneven(len(devices))
        self._arrived: dict[Key, int] = {}
        self._waiting: dict[Key, tuple[int, simpy.Event]] = {}
        self._busy: dict[int, simpy.Process] = {}
        self._known: dict[int, tuple[Script, list[Phases]]] = {}  # by identity: hashing walks all of it
        self._rings: dict[tuple[int, int], Ring] = {}
        self._ready: dict[tuple[int, int], int] = {}  # batch, rank: the last block whose messages it can take
        self._held: dict[Key, list[tuple[int, int]]] = {}  # source and bytes of what waits for that
        self.spans: dict[int, Any] = {}
        self.down_from: dict[int, int] = {}  # ranks that fall silent, and when
        self.posted_bytes = 0

    def batch(self, number: int, plan: ExecutionPlan, script: Script) -> Process:
        """Run one batch; ends when the terminal has its answer. A rank starts when it has finished the
        batch before and the header is there."""
        known = self._known.get(id(script))
        if known is None:
            known = self._known[id(script)] = (script, self._timed(script))
        timed = known[1]
        self.spans[number] = [] if self._record else deque(maxlen=0)
        if plan.ranks > 1:
            for rank in range(1, plan.ranks):
                follow = self._follow(rank, number, script, timed[rank], self._busy.get(rank))
                self._busy[rank] = self._env.process(follow)
                self._send(0, rank, HEADER_BYTES, (number, rank, "header", -1))
            now, size = int(self._env.now), HEADER_BYTES * (plan.ranks - 1)
            self.posted_bytes += size
            self.spans[number].append((0, "wire", "header", -1, now, now, now, (), size, 0))
        yield from self._walk(0, number, script, timed[0])

    def records(self, number: int) -> list[Span]:
        """Spans of a batch that every rank has finished, waiting and moving told apart."""
        spans = [
            Span(
                batch=number,
                rank=rank,
                kind=kind,
                op=op,
                block=block,
                start_ns=start,
                end_ns=end,
                issued_ns=issued,
                sources=sources,
                sent_bytes=sent,
                received_bytes=received,
            )
            for rank, kind, op, block, start, end, issued, sources, sent, received in self.spans.pop(number)
        ]
        return aligned(spans, {})

    def idle(self) -> Process:
        """Wait until every rank has finished its batch."""
        for process in list(self._busy.values()):
            if process.is_alive:
                yield process

    def _timed(self, script: Script) -> list[Phases]:
        return [
            tuple(
                tuple(
                    _timed(step, device)
                    for step in phase
                    if device.staged or step.span not in ("stage_d2h", "stage_h2d")
                )
                for phase in phases
            )
            for device, phases in zip(self._devices, script.steps, strict=False)
        ]

    # -- one rank -------------------------------------------------------------------------------------

    def _follow(self, rank: int, number: int, script: Script, phases: Phases, before: simpy.Process | None) -> Process:
        if before is not None and before.is_alive:
            yield before
        yield from self._until((number, rank, "header", -1), 1)
        yield from self._walk(rank, number, script, phases)

    def _walk(self, rank: int, number: int, script: Script, phases: Phases) -> Process:
        env, device, spans = self._env, self._devices[rank], self.spans[number]
        clock = int(env.now)
        handed: dict[tuple[str, int], tuple[int, int]] = {}
        entered = -1
        for step, block in _sequence(phases, script.blocks):
            if script.causal and entered < block < script.blocks:  # receives of the next block are posted now
                entered = block
                if clock > env.now:
                    yield env.timeout(clock - env.now)
                self._expect(number, rank, block + 1)
            start = clock
            if step.kind == "work":
                ns = step.ns if step.ns >= 0 else device.compute_ns(clock, step.launch_s, step.device_s)
                if step.span == "compute" and 0 <= block < script.blocks:
                    ns = round(ns * self._uneven[(rank + block) % len(self._uneven)])
                if device.shared:
                    clock = yield from device.queued(env, clock, step.span, ns)
                else:
                    clock += ns
                spans.append((rank, step.span, step.op, block, start, clock, 0, (), 0, 0))
            elif step.kind == "post":
                if clock > env.now:
                    yield env.timeout(clock - env.now)
                if clock >= self.down_from.get(rank, clock + 1):
                    return
                sent = self._post(rank, number, step, block, script)
                known = handed.get((step.op, block), (0, 0))[1]
                handed[step.op, block] = (clock, known + sent)
            else:
                needed = len(step.peers) * (HALVES if script.ring and step.op == "exchange" else 1)
                yield from self._until((number, rank, step.op, block), needed)
                clock = max(clock, int(env.now))
                issued, sent = handed.pop((step.op, block), (start, 0))
                spans.append((rank, "wire", step.op, block, start, clock, issued, step.peers, sent, step.size))
        if clock > env.now:
            yield env.timeout(clock - env.now)
        for (op, block), (issued, sent) in handed.items():  # nobody here waited behind them
            spans.append((rank, "wire", op, block, issued, issued, issued, (), sent, 0))

    # -- messages -------------------------------------------------------------------------------------

    def _post(self, rank: int, number: int, step: Timed, block: int, script: Script) -> int:
        """Hand a step's messages over; returns their bytes."""
        if script.ring and step.op == "exchange":
            ring = self._rings.get((number, block))
            if ring is None:
                deliver = functools.partial(self._deliver_exchange, number, block)
                ring = self._rings[number, block] = Ring(self._network, len(step.peers) + 1, deliver)
            if ring.enter(rank, step.size):
                del self._rings[number, block]
        else:
            for peer in step.peers:
                key = (number, peer, step.op, block)
                if script.causal and step.op == "exchange" and block > self._ready.get((number, peer), 0):
                    self._held.setdefault(key, []).append((rank, step.size))
                else:
                    self._send(rank, peer, step.size, key)
        sent = step.size * len(step.peers)
        self.posted_bytes += sent
        return sent

    def _expect(self, number: int, rank: int, block: int) -> None:
        """A rank can take messages up to a block: gloo sends by rendezvous, so an earlier part that runs ahead of a
        later one doesn't fill the link with what nobody takes yet. Others are in step by what they wait for."""
        self._ready[number, rank] = block
        for source, size in self._held.pop((number, rank, "exchange", block), ()):
            self._send(source, rank, size, (number, rank, "exchange", block))

    def _send(self, source: int, target: int, size: int, key: Key) -> None:
        self._network.send(source, target, size, lambda: self._deliver(key))

    def _deliver_exchange(self, number: int, block: int, rank: int) -> None:
        self._deliver((number, rank, "exchange", block))

    def _deliver(self, key: Key) -> None:
        count = self._arrived[key] = self._arrived.get(key, 0) + 1
        waiting = self._waiting.get(key)
        if waiting is not None and count >= waiting[0]:
            del self._waiting[key]
            waiting[1].succeed()

    def _until(self, key: Key, needed: int) -> Process:
        """Wait until `needed` messages of a key have arrived."""
        if self._arrived.get(key, 0) < needed:
            event = self._env.event()
            self._waiting[key] = (needed, event)
            yield event
        del self._arrived[key]


class Ring:
    """gloo's all_gather of one block: a rank's rows go to its right neighbour as two half chunks, and what
    comes from the left is passed on until it has been everywhere. A rendezvous: nothing leaves for a
    neighbour that has not entered."""

    def __init__(self, network: Network, ranks: int, deliver: Callable[[int], None]) -> None:
        self._network, self._ranks, self._deliver = network, ranks, deliver
        self._entered = [False] * ranks
        self._held: list[tuple[int, int, int]] = []  # sender, bytes, hops

    def enter(self, rank: int, size: int) -> bool:
        """Whether all have entered."""
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


def _timed(step: Step, device: Device) -> Timed:
    launch, work = sides(step, device.cost) if step.kind == "work" else (0.0, 0.0)
    moving = bool(work) and device.cost.clock.slowdown > 0
    ns = -1 if moving else round(device.cost.joined(launch, work) * 1e9)
    return Timed(step.kind, step.span, step.op, ns, launch, work, step.size, step.peers)


def _sequence(phases: Phases, blocks: int) -> Iterator[tuple[Timed, int]]:
    before, inside, after = phases
    for step in before:
        yield step, -1
    for block in range(blocks):
        for step in inside:
            yield step, block
    for step in after:
        yield step, blocks
