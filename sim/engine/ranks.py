"""Run ranks as SimPy processes that go through a Script, and the group that runs batch after batch.

A rank yields to SimPy only where ranks interact, and keeps a private clock in between, which may run ahead of the
environment's. Waiting for a slower rank is not modelled; it emerges.
"""

from collections.abc import Iterator

import msgspec
import simpy

from prism.partition import HEADER_BYTES
from prism.plan import ExecutionPlan
from prism.trace import Kind, Span, aligned
from sim.engine.collectives import Collective, Mailboxes, Mesh, RendezvousMesh, RingGather, SimProcess
from sim.engine.device import SimulatedDevice
from sim.engine.network import Network
from sim.engine.script import Script, ScriptStep, StepKind, sides


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


Phases = tuple[tuple[TimedStep, ...], ...]
Posted = dict[tuple[str, int], tuple[int, int]]  # by op and block: when messages were handed over, and their bytes


class RankGroup:
    """The ranks of one process group. record: keep the spans of each batch until `records` takes them."""

    def __init__(self, env: simpy.Environment, devices: list[SimulatedDevice], network: Network, record: bool) -> None:
        self._env, self._devices, self._record = env, devices, record
        self._uneven = devices[0].cost.uneven(len(devices))
        self._mailboxes = Mailboxes(env)
        self._mesh = Mesh(network, self._mailboxes)
        self._rendezvous = RendezvousMesh(network, self._mailboxes)
        self._ring = RingGather(network, self._mailboxes)
        self._busy: dict[int, simpy.Process] = {}
        self._timed_scripts: dict[int, tuple[Script, list[Phases]]] = {}  # by identity: hashing walks the whole script
        self._spans: dict[int, list[Span] | None] = {}
        self.down_from: dict[int, int] = {}  # ranks that fall silent, and when

    def batch(self, number: int, plan: ExecutionPlan, script: Script) -> SimProcess:
        """Run one batch; ends when the leader has its answer.

        Another rank starts when it has finished the batch before and the header is there.
        """
        phases = self._phases(script)
        spans = self._spans[number] = [] if self._record else None
        if plan.ranks > 1:
            for rank in range(1, plan.ranks):
                follow = self._follow(rank, number, script, phases[rank], self._busy.get(rank))
                self._busy[rank] = self._env.process(follow)
                self._mesh.send(0, (number, rank, "header", -1), HEADER_BYTES)
            if spans is not None:
                now, size = int(self._env.now), HEADER_BYTES * (plan.ranks - 1)
                spans += _unanswered(number, 0, {("header", -1): (now, size)})
        yield from self._walk(0, number, script, phases[0])

    def records(self, number: int) -> list[Span]:
        """Take the spans of a batch that every rank has finished, with waiting and moving told apart."""
        return aligned(self._spans.pop(number) or [], {})

    def idle(self) -> SimProcess:
        """Wait until every rank has finished its batch."""
        for process in list(self._busy.values()):
            if process.is_alive:
                yield process

    def _phases(self, script: Script) -> list[Phases]:
        """Time the script for each rank's device, once."""
        timed = self._timed_scripts.get(id(script))
        if timed is None:
            exchange = self._exchange(script)
            phases = [
                tuple(tuple(self._timed(phase, device, exchange)) for phase in steps)
                for device, steps in zip(self._devices, script.steps, strict=False)
            ]
            timed = self._timed_scripts[id(script)] = (script, phases)
        return timed[1]

    def _exchange(self, script: Script) -> Collective:
        """Choose the collective of a script's exchanges."""
        if script.ring:
            return self._ring
        return self._rendezvous if script.causal else self._mesh

    def _timed(
        self, phase: tuple[ScriptStep, ...], device: SimulatedDevice, exchange: Collective
    ) -> Iterator[TimedStep]:
        for step in phase:
            if device.staged or step.span not in ("stage_d2h", "stage_h2d"):
                launch, work = sides(step, device.cost) if step.kind == "work" else (0.0, 0.0)
                moving = bool(work) and device.cost.clock.slowdown > 0
                ns = -1 if moving else round(device.cost.joined(launch, work) * 1e9)
                collective = exchange if step.op == "exchange" else self._mesh
                yield TimedStep(step.kind, step.span, step.op, ns, launch, work, step.size, step.peers, collective)

    # -- one rank -------------------------------------------------------------------------------------

    def _follow(
        self, rank: int, number: int, script: Script, phases: Phases, before: simpy.Process | None
    ) -> SimProcess:
        if before is not None and before.is_alive:
            yield before
        yield from self._mailboxes.until((number, rank, "header", -1), 1)
        yield from self._walk(rank, number, script, phases)

    def _walk(self, rank: int, number: int, script: Script, phases: Phases) -> SimProcess:
        """Go through a rank's steps of one batch. Ends early where the rank falls silent."""
        env, spans = self._env, self._spans[number]
        clock = int(env.now)
        posted: Posted = {}
        entered = -1
        for step, block in _sequence(phases, script.blocks):
            if script.causal and entered < block < script.blocks:  # receives of the next block are posted now
                entered = block
                if clock > env.now:
                    yield env.timeout(clock - env.now)
                self._rendezvous.enter(number, rank, block + 1)
            start = clock
            if step.kind == "work":
                ns = self._work_ns(rank, step, block, script.blocks, clock)
                if self._devices[rank].shared:
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
                step.collective.post((number, rank, step.op, block), step.peers, step.size)
                _, before = posted.get((step.op, block), (0, 0))
                posted[step.op, block] = (clock, before + step.size * len(step.peers))
            else:
                needed = step.collective.messages(len(step.peers))
                yield from self._mailboxes.until((number, rank, step.op, block), needed)
                clock = max(clock, int(env.now))
                issued, sent = posted.pop((step.op, block), (start, 0))
                if spans is not None:
                    spans.append(_awaited(number, rank, step, block, start, clock, issued, sent))
        if clock > env.now:
            yield env.timeout(clock - env.now)
        if spans is not None:
            spans += _unanswered(number, rank, posted)

    def _work_ns(self, rank: int, step: TimedStep, block: int, blocks: int, clock: int) -> int:
        """Compute how long a step of work takes that starts at `clock`."""
        ns = step.ns if step.ns >= 0 else self._devices[rank].compute_ns(clock, step.launch_s, step.device_s)
        if step.span == "compute" and 0 <= block < blocks:
            ns = round(ns * self._uneven[(rank + block) % len(self._uneven)])
        return ns


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
    for (op, block), (issued, sent) in posted.items():
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


def _sequence(phases: Phases, blocks: int) -> Iterator[tuple[TimedStep, int]]:
    """Yield each step with its block: -1 before the blocks, `blocks` after them."""
    before, inside, after = phases
    for step in before:
        yield step, -1
    for block in range(blocks):
        for step in inside:
            yield step, block
    for step in after:
        yield step, blocks
