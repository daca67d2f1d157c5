"""One rank's protocol, from joining to the last step. The leader (rank 0) decides; the others follow its orders."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import torch

from hw.comm.control import Control, share_addresses
from hw.comm.group import joined_group
from hw.comm.interfaces import address_of
from hw.link.bench import run_link
from hw.machine import facts
from hw.probe.suite import run_probes
from hw.run.executor import Executor
from hw.run.messages import AnyStep, Checked, EndStep, Event, LinkStep, Measured, ProbeStep, RankJob, RunStep, Work
from hw.run.preparation import Preparation
from prism.errors import ExchangeError, PrismError
from prism.link import LinkSpec
from prism.plan import LOCAL
from prism.trace import Probe, TraceHeader, TraceWriter, now_text
from prism.trace.files import trace_file

log = logging.getLogger(__name__)


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """A follower's answer to an order: the hash of the weights it loaded, or why it can't take part.

    meter: whether it samples power.
    """

    fingerprint: str = ""
    failed: str = ""
    meter: bool = False


def run_rank(job: RankJob, steps: Iterator[AnyStep], emit: Callable[[Event], None]) -> None:
    """Run one rank to its end. Only the leader has `steps`. Raises PrismError with what a user should read."""
    torch.set_grad_enabled(False)
    torch.set_num_threads(job.threads)
    preparation = Preparation(job)
    if job.rank == 0:
        _lead(job, preparation, steps, emit)
        return
    with _group(job) as control:
        _follow(job, preparation, control)


def _lead(job: RankJob, preparation: Preparation, steps: Iterator[AnyStep], emit: Callable[[Event], None]) -> None:
    step = next(steps)
    if isinstance(step, EndStep):
        return
    preparation.prepare(step)  # what can be refused is refused before any other rank is needed
    emit(Checked())
    with _group(job) as control:
        executor = Executor(job, preparation, control, emit)
        while not isinstance(step, EndStep):
            _order(control, step)
            preparation.prepare(step)
            metered = _await_ready(control, preparation)
            _perform(job, control, executor, step, metered, emit)
            step = next(steps, EndStep())
        _order(control, step)


def _order(control: Control, step: AnyStep) -> None:
    log.debug("ordering %s", type(step).__name__)
    for peer in range(1, control.world_size):
        control.send(msgspec.msgpack.encode(step), peer)


def _await_ready(control: Control, preparation: Preparation) -> bool:
    """Wait until every rank has loaded the same weights. Returns whether any device has a power meter.

    Raises ExchangeError for a rank that failed or holds other weights.
    """
    metered = preparation.metered
    for peer in range(1, control.world_size):
        ready = _decode(control.receive(peer), Ready, peer)
        if ready.failed:
            raise ExchangeError(f"rank {peer} failed: {ready.failed}")
        if ready.fingerprint != preparation.fingerprint:
            raise ExchangeError(
                f"rank {peer} holds other weights than the leader (hash {ready.fingerprint} against "
                f"{preparation.fingerprint}); copy the leader's model folder there"
            )
        metered = metered or ready.meter
    return metered


def _follow(job: RankJob, preparation: Preparation, control: Control) -> None:
    executor = Executor(job, preparation, control, lambda _: None)
    while True:
        step = _decode(control.receive(0), AnyStep, 0)
        if isinstance(step, EndStep):
            return
        try:
            preparation.prepare(step)
        except PrismError as error:
            control.send(msgspec.msgpack.encode(Ready(failed=str(error))), 0)
            raise
        ready = Ready(fingerprint=preparation.fingerprint, meter=preparation.metered)
        control.send(msgspec.msgpack.encode(ready), 0)
        _perform(job, control, executor, step, False, lambda _: None)


def _perform(
    job: RankJob, control: Control, executor: Executor, step: Work, metered: bool, emit: Callable[[Event], None]
) -> None:
    if isinstance(step, RunStep):
        executor.perform(step, metered)
    elif isinstance(step, LinkStep):
        addresses = share_addresses(control, address_of(job.interface))
        link = LinkSpec.parse(step.link)
        with _probe_file(job, step) as keep:
            report = run_link(
                control, executor.host_exchange(), addresses, link, step.config, keep=keep, command=job.command
            )
        emit(Measured(report=report))
    elif job.rank == 0:
        with _probe_file(job, step) as keep:
            keep(run_probes(step.config, executor.device, job.rank, emit))
        emit(Measured())


@contextlib.contextmanager
def _probe_file(job: RankJob, step: LinkStep | ProbeStep) -> Iterator[Callable[[Sequence[Probe]], None]]:
    """Open the trace of a step's raw probes on the leader. Yields the function that writes them as they come."""
    header = TraceHeader(
        source="measured",
        created=now_text(),
        model="probe",
        weights="none",
        plan=LOCAL,
        batch=1,
        tokens=1,
        link=step.link,
        seed=step.config.seed,
        command=job.command,
        oversubscribed=job.oversubscribed,
        config=msgspec.to_builtins(step.config),
        host={**facts.describe_machine(job.threads), **job.facts},
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


def _group(job: RankJob) -> contextlib.AbstractContextManager[Control]:
    return joined_group(
        job.leader,
        job.port,
        job.rank,
        job.world_size,
        interface=job.interface,
        timeout_s=job.timeout_s,
        serve=job.rank == 0 and job.serve_store,
    )
