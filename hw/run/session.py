"""What one rank does, from joining to the last step. The terminal (rank 0) decides; the others follow its orders."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import torch
import torch.distributed as dist

from hw.comm import group as comm
from hw.comm.shaper import SharedMedium
from hw.link.bench import run_link
from hw.machine import facts as host
from hw.probe.suite import run_probes
from hw.run.config import Checked, EndStep, Event, LinkStep, Measured, ProbeStep, RankJob, RunStep, Step, Work
from hw.run.executor import Bench
from prism.errors import ExchangeError, PeerLostError, PrismError
from prism.nn.exchange import InProcessExchange
from prism.plan import ExecutionPlan, Mode
from prism.spec import LinkSpec
from prism.trace import Probe, TraceHeader, TraceWriter, now_text
from prism.trace.files import trace_file


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's answer to an order: the hash of the weights it loaded, or why it can't."""

    fingerprint: str = ""
    failed: str = ""
    meter: bool = False


def run_rank(job: RankJob, steps: Iterator[Step], emit: Callable[[Event], None]) -> None:
    """Run one rank to its end. Only the terminal has `steps`. Raises PrismError with what a user should read."""
    torch.set_grad_enabled(False)
    torch.set_num_threads(job.threads)
    bench = Bench(job, emit)
    if job.rank == 0:
        _lead(job, bench, steps, emit)
    else:
        with _group(job, bench):
            _follow(job, bench)


def _lead(job: RankJob, bench: Bench, steps: Iterator[Step], emit: Callable[[Event], None]) -> None:
    first = next(steps)
    if isinstance(first, EndStep):
        return
    bench.prepare(first)  # what can be refused is refused before any other rank is needed
    emit(Checked())
    with _group(job, bench):
        step: Step = first
        while not isinstance(step, EndStep):
            _order(job, step)
            bench.prepare(step)
            metered = _await_ready(job, bench)
            _perform(job, bench, step, metered, emit)
            step = next(steps, EndStep())
        _order(job, step)


def _order(job: RankJob, step: Step) -> None:
    for peer in range(1, job.world_size):
        comm.send_bytes(msgspec.msgpack.encode(step), peer)


def _await_ready(job: RankJob, bench: Bench) -> bool:
    """Whether any device has a power meter, once every rank has loaded the same. Raises ExchangeError."""
    metered = bench.metered
    for peer in range(1, job.world_size):
        ready = _decode(comm.receive_bytes(peer), Ready, peer)
        if ready.failed:
            raise ExchangeError(f"rank {peer} failed: {ready.failed}")
        if ready.fingerprint != bench.fingerprint:
            raise ExchangeError(
                f"rank {peer} holds other weights than the terminal (hash {ready.fingerprint} against "
                f"{bench.fingerprint}); copy the terminal's model folder there"
            )
        metered = metered or ready.meter
    return metered


def _follow(job: RankJob, bench: Bench) -> None:
    while True:
        step = _decode(comm.receive_bytes(0), Step, 0)
        if isinstance(step, EndStep):
            return
        try:
            bench.prepare(step)
        except PrismError as error:
            comm.send_bytes(msgspec.msgpack.encode(Ready(failed=str(error))), 0)
            raise
        ready = Ready(fingerprint=bench.fingerprint, meter=bench.metered)
        comm.send_bytes(msgspec.msgpack.encode(ready), 0)
        _perform(job, bench, step, False, lambda _: None)


def _perform(job: RankJob, bench: Bench, step: Work, metered: bool, emit: Callable[[Event], None]) -> None:
    if isinstance(step, RunStep):
        bench.perform(step, metered)
    elif isinstance(step, LinkStep):
        addresses = comm.share_addresses(job.rank, job.world_size, job.interface)
        with _probe_file(job, step) as keep:
            report = run_link(
                bench.host_exchange(), addresses, LinkSpec.parse(step.link), step.config, keep=keep, command=job.command
            )
        emit(Measured(report=report))
    elif job.rank == 0:
        with _probe_file(job, step) as keep:
            keep(run_probes(step.config, bench.device, job.rank, emit))
        emit(Measured())


@contextlib.contextmanager
def _probe_file(job: RankJob, step: LinkStep | ProbeStep) -> Iterator[Callable[[Sequence[Probe]], None]]:
    """What keeps the raw probes of a step, on the terminal, as they come."""
    header = TraceHeader(
        source="measured",
        created=now_text(),
        model="probe",
        weights="none",
        plan=ExecutionPlan(mode=Mode.LOCAL),
        batch=1,
        tokens=1,
        link=step.link,
        seed=step.config.seed,
        command=job.command,
        oversubscribed=job.oversubscribed,
        config=msgspec.to_builtins(step.config),
        host={**host.describe(job.threads), **job.facts},
    )
    with trace_file(step.trace if job.rank == 0 else None) as file:
        if file is None:
            yield lambda probes: None
        else:
            yield TraceWriter(file, header).write


def _decode(raw: bytes, type_: Any, peer: int) -> Any:
    try:
        return msgspec.msgpack.decode(raw, type=type_)
    except msgspec.DecodeError as error:
        raise ExchangeError(
            f"rank {peer} speaks another version ({error}); install the same version of Prism on every device"
        ) from None


@contextlib.contextmanager
def _group(job: RankJob, bench: Bench) -> Iterator[None]:
    """Join the others, and give the bench its exchange."""
    if job.world_size == 1:
        bench.exchange = InProcessExchange.group(1)[0]
        yield
        return
    store = comm.open_store(job.leader, job.port, job.rank == 0 and job.serve_store, job.timeout_s)
    try:
        store.set(f"joined/{job.rank}", "")
        comm.await_ranks(store, range(job.world_size), "joined", job.timeout_s)
    except dist.DistError as error:
        raise PeerLostError(f"the terminal was lost while rank {job.rank} joined ({error}); see what it says") from None
    with comm.process_group(store, job.rank, job.world_size, interface=job.interface, timeout_s=job.timeout_s):
        bench.exchange = comm.GlooExchange(bench.stager, bench.recorder, _medium(job))
        yield


def _medium(job: RankJob) -> SharedMedium | None:
    return SharedMedium(job.medium, job.rank, job.world_size) if job.medium else None
