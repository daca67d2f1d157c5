"""Run ranks as SimPy processes that go through a Script, and the group that runs batch after batch.

A rank yields to SimPy only where ranks interact, and keeps a private clock in between, which may run ahead of the
environment's. Waiting for a slower rank is not modelled; it emerges.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec
import simpy

from prism.partition import HEADER_BYTES
from prism.trace import Kind, Span, aligned
from sim.engine.collectives import Collective, Mailboxes, Mesh, RendezvousMesh, RingGather, SimProcess
from sim.engine.device import SimulatedDevice
from sim.engine.network import Network
from sim.engine.script import Phase, Script, ScriptStep, StepKind, sides


class TimedStep(msgspec.Struct, frozen=True):
    """A ScriptStep with its nanoseconds, and the collective that its messages take.

    ns: -1 where the device's clock moves, so that a computation's time depends on when it starts.
    """

    kind: StepKind
    span: Kind
    op: str
    ns: int
    launch_s: float
    device_s: float
    size: int
    peers: tuple[int, ...]
    collective: Collective


class TimedPhase(NamedTuple):
    """A Phase with timed steps."""

    steps: tuple[TimedStep, ...]
    first_block: int
    blocks: int
    inside: bool
    micro: int


class TimedScript(NamedTuple):
    """A Script with the timed phases of each rank, and of what is left to the leader in the end.

    later_stages: ranks that take rows from the stage before theirs.
    """

    script: Script
    phases: tuple[tuple[TimedPhase, ...], ...]
    closing: tuple[TimedPhase, ...]
    later_stages: frozenset[int]


Message = tuple[str, int, int]  # op, block, microbatch
Posted = dict[Message, tuple[int, int]]  # when messages were handed over, and their bytes
ALL = float("inf")
BEGUN = ("inputs", "rows", "answer")  # messages that leave when their receiver has begun the batch, or microbatch


class RankGroup:
    """The ranks of one process group. record: keep the spans of each batch until `records` takes them."""

    def __init__(self, env: simpy.Environment, devices: list[SimulatedDevice], network: Network, record: bool) -> None:
        self._env, self._devices, self._record = env, devices, record
        self._uneven = devices[0].cost.uneven(len(devices))
        self._mailboxes = Mailboxes(env)
        self._mesh = Mesh(network, self._mailboxes)
        self._rendezvous = RendezvousMesh(network, self._mailboxes, free=0)
        self._begun = RendezvousMesh(network, self._mailboxes, free=-ALL)
        self._ring = RingGather(network, self._mailboxes)
        self._busy: dict[int, simpy.Process] = {}
        self._timed_scripts: dict[int, TimedScript] = {}  # by identity: hashing walks the whole script
        self._spans: dict[int, list[Span] | None] = {}
        self.down_from: dict[int, int] = {}  # ranks that fall silent, and when

    def batch(self, number: int, script: Script) -> SimProcess:
        """Run one batch; ends when the leader has its answer."""
        yield from self.own_part(number, script)
        yield from self.closing(number, script)

    def own_part(self, number: int, script: Script) -> SimProcess:
        """Begin a batch; ends when the leader has done its own part, so that it could begin with the next.

        Another rank starts when it has finished the batch before and the header is there.
        """
        timed, ranks = self._timed(script), len(script.phases)
        spans = self._spans[number] = [] if self._record else None
        if ranks > 1:
            for rank in range(1, ranks):
                follow = self._follow(rank, number, timed, self._busy.get(rank))
                self._busy[rank] = self._env.process(follow)
                self._mesh.send(0, (number, rank, "header", -1, 0), HEADER_BYTES)
            if spans is not None:
                now, size = int(self._env.now), HEADER_BYTES * (ranks - 1)
                spans += _unanswered(number, 0, {("header", -1, 0): (now, size)})
        yield from self._walk(0, number, timed, timed.phases[0])

    def closing(self, number: int, script: Script) -> SimProcess:
        """Take the answers of the other ranks to a batch."""
        timed = self._timed(script)
        yield from self._walk(0, number, timed, timed.closing)

    def records(self, number: int) -> list[Span]:
        """Take the spans of a batch that every rank has finished, with waiting and moving told apart."""
        return aligned(self._spans.pop(number) or [], {})

    def idle(self) -> SimProcess:
        """Wait until every rank has finished its batch."""
        for process in list(self._busy.values()):
            if process.is_alive:
                yield process

    def _timed(self, script: Script) -> TimedScript:
        """Time the script for each rank's device, once."""
        timed = self._timed_scripts.get(id(script))
        if timed is None:
            exchange = self._exchange(script)
            phases = tuple(
                tuple(self._timed_phases(phases, device, exchange))
                for device, phases in zip(self._devices, script.phases, strict=False)
            )
            closing = tuple(self._timed_phases(script.closing, self._devices[0], exchange))
            later = frozenset(rank for rank, mine in enumerate(phases) if _takes_rows(mine))
            timed = self._timed_scripts[id(script)] = TimedScript(script, phases, closing, later)
        return timed

    def _exchange(self, script: Script) -> Collective:
        """Choose the collective of a script's exchanges."""
        if script.ring:
            return self._ring
        return self._rendezvous if script.causal else self._mesh

    def _timed_phases(
        self, phases: Iterable[Phase], device: SimulatedDevice, exchange: Collective
    ) -> Iterator[TimedPhase]:
        for phase in phases:
            steps = tuple(self._timed_steps(phase.steps, device, exchange))
            yield TimedPhase(steps, phase.first_block, phase.blocks, phase.inside, phase.micro)

    def _timed_steps(
        self, steps: Iterable[ScriptStep], device: SimulatedDevice, exchange: Collective
    ) -> Iterator[TimedStep]:
        ways: dict[str, Collective] = {"exchange": exchange, **dict.fromkeys(BEGUN, self._begun)}
        for step in steps:
            if device.staged or step.span not in ("stage_d2h", "stage_h2d"):
                launch, work = sides(step, device.cost) if step.kind == "work" else (0.0, 0.0)
                moving = bool(work) and device.cost.clock.slowdown > 0
                ns = -1 if moving else round(device.cost.joined(launch, work) * 1e9)
                way = ways.get(step.op, self._mesh)
                yield TimedStep(step.kind, step.span, step.op, ns, launch, work, step.size, step.peers, way)

    # -- one rank -------------------------------------------------------------------------------------

    def _follow(self, rank: int, number: int, timed: TimedScript, before: simpy.Process | None) -> SimProcess:
        if before is not None and before.is_alive:
            yield before
        yield from self._mailboxes.until((number, rank, "header", -1, 0), 1)
        yield from self._walk(rank, number, timed, timed.phases[rank])

    def _walk(self, rank: int, number: int, timed: TimedScript, phases: tuple[TimedPhase, ...]) -> SimProcess:
        """Go through a rank's steps of one batch. Ends early where the rank falls silent."""
        env, spans, shared = self._env, self._spans[number], self._devices[rank].shared
        clock = int(env.now)
        posted: Posted = {}
        self._begun.enter(rank, (number, 0 if rank in timed.later_stages else ALL, ALL))
        for phase, block in _sequence(phases):
            if timed.script.causal and phase.inside:  # receives of the next block are posted now
                if clock > env.now:
                    yield env.timeout(clock - env.now)
                self._rendezvous.enter(rank, (number, phase.micro, block + 1))
            for step in phase.steps:
                start = clock
                if step.kind == "work":
                    ns = self._work_ns(rank, step, block, phase.inside, clock)
                    if shared:
                        clock = yield from self._devices[rank].queued(env, clock, step.span, ns)
                    else:
                        clock += ns
                    if spans is not None:
                        spans.append(
                            Span(
                                batch=number,
                                rank=rank,
                                kind=step.span,
                                op=step.op,
                                block=block,
                                start_ns=start,
                                end_ns=clock,
                            )
                        )
                elif step.kind == "post":
                    if clock > env.now:
                        yield env.timeout(clock - env.now)
                    if clock >= self.down_from.get(rank, clock + 1):
                        return
                    step.collective.post((number, rank, step.op, block, phase.micro), step.peers, step.size)
                    _, before = posted.get((step.op, block, phase.micro), (0, 0))
                    posted[step.op, block, phase.micro] = (clock, before + step.size * len(step.peers))
                else:
                    needed = step.collective.messages(len(step.peers))
                    yield from self._mailboxes.until((number, rank, step.op, block, phase.micro), needed)
                    clock = max(clock, int(env.now))
                    if step.op == "rows":  # the receive of the next microbatch's is posted now
                        self._begun.enter(rank, (number, phase.micro + 1, ALL))
                    issued, sent = posted.pop((step.op, block, phase.micro), (start, 0))
                    if spans is not None:
                        spans.append(_awaited(number, rank, step, block, start, clock, issued, sent))
        if clock > env.now:
            yield env.timeout(clock - env.now)
        if spans is not None:
            spans += _unanswered(number, rank, posted)

    def _work_ns(self, rank: int, step: TimedStep, block: int, inside: bool, clock: int) -> int:
        """Compute how long a step of work takes that starts at `clock`."""
        ns = step.ns if step.ns >= 0 else self._devices[rank].compute_ns(clock, step.launch_s, step.device_s)
        if inside and step.span == "compute":
            ns = round(ns * self._uneven[(rank + block) % len(self._uneven)])
        return ns


def _takes_rows(phases: Iterable[TimedPhase]) -> bool:
    return any(step.kind == "await" and step.op == "rows" for phase in phases for step in phase.steps)


def _awaited(number: int, rank: int, step: TimedStep, block: int, start: int, end: int, issued: int, sent: int) -> Span:
    return Span(
        batch=number,
        rank=rank,
        kind="wire",
        op=step.op,
        block=block,
        start_ns=start,
        end_ns=end,
        issued_ns=issued,
        sources=step.peers,
        sent_bytes=sent,
        received_bytes=step.size,
    )


def _unanswered(number: int, rank: int, posted: Posted) -> Iterator[Span]:
    """Make spans of messages after which the rank awaited none."""
    for (op, block, _), (issued, sent) in posted.items():
        yield Span(
            batch=number,
            rank=rank,
            kind="wire",
            op=op,
            block=block,
            start_ns=issued,
            end_ns=issued,
            issued_ns=issued,
            sent_bytes=sent,
        )


def _sequence(phases: Iterable[TimedPhase]) -> Iterator[tuple[TimedPhase, int]]:
    """Yield each phase with each of its blocks."""
    for phase in phases:
        for block in range(phase.first_block, phase.first_block + phase.blocks):
            yield phase, block
