"""The batches of a step on one rank."""

import functools
import logging
import resource
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec
import torch

from hw.comm.clocks import Clocks
from hw.comm.control import Control
from hw.comm.shaper import SharedMedium
from hw.comm.staging import HostStager
from hw.inputs.samples import Sample
from hw.inputs.score import score
from hw.inputs.tally import Tally
from hw.probe.pace import Pace
from hw.run.config import RunConfig
from hw.run.messages import Event, RankJob, RunStep
from hw.run.outcome import outcome, trace_header
from hw.run.preparation import PERIOD_S, Preparation
from hw.run.workpiece import Workpiece
from prism.cli.progress import Progress
from prism.errors import InputError, PrismError
from prism.nn.answers import Answer
from prism.nn.distribute import DistributedTransformer, distribute
from prism.nn.exchange import Exchange
from prism.trace import Batch, Idle, Record, Span, Trace, TraceWriter, aligned, aligned_power
from prism.trace.files import trace_file
from prism.trace.metrics import summarise

log = logging.getLogger(__name__)

IDLE_S = 1.2  # how long an idle device is measured, once a model
WINDOW_S = 1.25 * 100 * PERIOD_S  # an energy figure needs 100 samples, and a busy machine misses some

Keep = Callable[[list[Record]], None]


class Tail(msgspec.Struct, frozen=True, kw_only=True):
    """What a follower reports after a step's last batch. memory: peak, in bytes."""

    memory: int
    power: list[Record]
    pace: list[Record]


class _Task(NamedTuple):
    """A step about to run. metered: some device samples power."""

    step: RunStep
    piece: Workpiece
    model: DistributedTransformer
    metered: bool

    @property
    def config(self) -> RunConfig:
        return self.step.config


class Executor:
    """Runs prepared steps in a group that has formed. Clocks and pace outlive a step."""

    def __init__(self, job: RankJob, preparation: Preparation, control: Control, emit: Callable[[Event], None]) -> None:
        self._job, self._preparation, self._control, self._emit = job, preparation, control, emit
        self._recorder = preparation.recorder
        self._medium = SharedMedium(job.medium, job.rank, job.world_size) if job.medium else None
        self._exchange: Exchange = control.exchange(preparation.stager, self._recorder, self._medium)
        self._clocks = Clocks(control)
        self._idle_of: Workpiece | None = None  # the model that was loaded when the idle device was measured

    @property
    def device(self) -> torch.device:
        """What this rank computes on."""
        return self._preparation.device

    def host_exchange(self) -> Exchange:
        """Open an exchange over the same group whose tensors stay in host memory."""
        return self._control.exchange(HostStager(), self._recorder, self._medium)

    # -- a step -----------------------------------------------------------------------------------------

    def perform(self, step: RunStep, metered: bool) -> None:
        """Run a prepared step, and emit its outcome on the leader.

        metered: some device samples power, so the leader goes on until an energy figure has samples enough.
        """
        piece = self._preparation.workpiece(step.config, step.shares)
        model = distribute(piece.loaded.model, step.config.plan, self._exchange, self._recorder, adapter=piece.adapter)
        task = _Task(step, piece, model, metered)
        self._preparation.power()  # what was sampled between steps belongs to none
        if self._job.rank == 0:
            self._lead(task)
        else:
            self._follow(task)

    def _follow(self, task: _Task) -> None:
        config, control, ranks = task.config, self._control, task.config.plan.ranks
        schedule = self._schedule(task._replace(metered=True)) if config.plan.embed == "each" else None
        pace = self._paced(config)
        if self._job.rank < ranks:
            self._clocks.refresh(ranks)
        while task.model.follow(**(task.piece.call(next(schedule, (0, False, ()))[2]) if schedule else {})):
            spans, _, _ = self._recorder.take()
            if config.in_flight > 1:
                continue  # the leader is at another batch
            control.send(msgspec.msgpack.encode(spans), 0)
            self._clocks.refresh(ranks)
        pace += self._paced(config)
        tail = Tail(memory=_peak_memory(), power=self._preparation.power(), pace=pace)
        control.send(msgspec.msgpack.encode(tail), 0)

    @functools.cached_property
    def _pace(self) -> Pace:
        return Pace(self._preparation.device, self._job.rank)

    def _paced(self, config: RunConfig) -> list[Record]:
        """Time this rank's pace where a trace is kept.

        All ranks of the session do it together, also in local mode, so that sessions of equally many ranks compare.
        """
        return [*self._pace.timed()] if config.trace else []

    def _lead(self, task: _Task) -> None:
        config, tally = task.config, Tally()
        header = trace_header(config, self._job, task.piece)
        records: list[Record] = []
        with trace_file(config.trace) as file:
            writer = TraceWriter(file, header) if file else None

            def keep(new: list[Record]) -> None:
                records.extend(new)
                if writer:
                    writer.write(new)

            keep(self._paced(config))
            self._clocks.refresh(task.model.plan.ranks)
            keep(self._clocks.latest())
            if task.metered and self._idle_of is not task.piece:
                keep([self._idle()])
                self._idle_of = task.piece
            self._batches(task, keep, tally)
            memory = self._finish(task, keep)
        whole = [record for record in records if not isinstance(record, Batch) or record.size == config.batch]
        summary = summarise(Trace(header=header, records=tuple(whole)))
        self._emit(outcome(header, summary, tally, memory, task.piece))

    def _batches(self, task: _Task, keep: Keep, tally: Tally) -> None:
        config, scored = task.config, set[str]()
        total = config.warmups + _measured(config, task.piece)
        unscored: list[_Answered] = []
        log.info("%d batches of %d in mode %s", total, config.batch, config.plan.mode.value)
        answered = self._stream(task, keep) if config.in_flight > 1 else self._one_by_one(task, keep)
        for number, warmup, (output, call, samples) in answered:
            key = samples[0].name
            if task.step.score and not warmup and key not in scored:
                scored.add(key)
                unscored.append(_Answered(output, call, samples))
            if not task.metered:  # between batches it would break the window that an energy figure needs
                _score(task.piece, tally, unscored)
            self._emit(Progress(done=number + 1, total=max(total, number + 1)))
        _score(task.piece, tally, unscored)

    def _one_by_one(self, task: _Task, keep: Keep) -> Iterator[tuple[int, bool, "_Answered"]]:
        """Run each batch when the one before is answered."""
        for number, warmup, samples in self._schedule(task):
            call = task.piece.call(samples)
            output = self._measure(task.model, call, len(samples), warmup, keep)
            yield number, warmup, _Answered(output, call, samples)

    def _stream(self, task: _Task, keep: Keep) -> Iterator[tuple[int, bool, "_Answered"]]:
        """Begin further batches before the first is answered. Their spans are not recorded: they would overlap."""
        begun: deque[tuple[int, bool, dict[str, Any], tuple[Sample, ...], int, Answer]] = deque()
        schedule = self._schedule(task)
        while True:
            step = next(schedule, None)
            if step is not None:
                number, warmup, samples = step
                call, start = task.piece.call(samples), time.monotonic_ns()
                begun.append((number, warmup, call, samples, start, task.model.start(**call)))
            if not begun:
                return
            if step is None or len(begun) == task.config.in_flight:
                number, warmup, call, samples, start, answer = begun.popleft()
                output, end = answer.wait(), time.monotonic_ns()
                keep([Batch(batch=number, size=len(samples), start_ns=start, end_ns=end, warmup=warmup)])
                yield number, warmup, _Answered(output, call, samples)

    def _idle(self) -> Idle:
        start = time.monotonic_ns()
        time.sleep(IDLE_S)
        return Idle(start_ns=start, end_ns=time.monotonic_ns())

    def _schedule(self, task: _Task) -> Iterator[tuple[int, bool, tuple[Sample, ...]]]:
        """Yield number, whether it is a warm-up, and the samples of each batch: the same on every rank.

        Where power is sampled it goes on until the window is long enough.
        """
        config, piece = task.config, task.piece
        if piece.inputs is None:
            raise InputError("this rank has no inputs; use embed terminal")
        for index in range(config.warmups):
            yield index, True, piece.inputs.batch(index, config.batch, wrap=True)
        index, began, measured = 0, time.monotonic(), _measured(config, piece)
        while index < measured or (task.metered and time.monotonic() - began < WINDOW_S):
            wrap = config.batches > 0 or index >= measured
            yield config.warmups + index, False, piece.inputs.batch(index, config.batch, wrap)
            index += 1

    def _measure(self, model: DistributedTransformer, call: dict[str, Any], size: int, warmup: bool, keep: Keep) -> Any:
        """Run one batch, gather every rank's spans, and keep them. A batch that fails is kept too."""
        try:
            output = model(**call)
        except PrismError as error:
            spans, start, end = self._recorder.take()
            number = spans[0].batch if spans else 0
            failed = Batch(batch=number, size=size, start_ns=start, end_ns=end, warmup=warmup, failed=str(error))
            keep([*aligned(spans, {}), failed])
            raise
        spans, start, end = self._recorder.take()
        for peer in range(1, model.plan.ranks):
            spans = spans + msgspec.msgpack.decode(self._control.receive(peer), type=list[Span])
        done = Batch(batch=spans[0].batch, size=size, start_ns=start, end_ns=end, warmup=warmup)
        keep([*aligned(spans, self._clocks.offsets_ns), done, *self._clocks.refresh(model.plan.ranks)])
        return output

    def _finish(self, task: _Task, keep: Keep) -> dict[int, int]:
        """End the step on every rank, and keep everyone's power samples and pace. Returns peak memory by rank."""
        memory = {0: _peak_memory()}
        keep(self._preparation.power())
        if self._job.world_size > 1:
            task.model.stop()
        keep(self._paced(task.config))
        for peer in range(1, self._job.world_size):
            tail = msgspec.msgpack.decode(self._control.receive(peer), type=Tail)
            memory[peer] = tail.memory
            keep([*aligned_power(tail.power, self._clocks.offsets_ns), *tail.pace])
        return memory


class _Answered(NamedTuple):
    """A batch's output that waits to be compared with the local model's."""

    output: Any
    call: dict[str, Any]
    samples: tuple[Sample, ...]


def _score(piece: Workpiece, tally: Tally, unscored: list[_Answered]) -> None:
    """Compare outputs with the local model's, and empty the list."""
    while unscored:
        output, call, samples = unscored.pop(0)
        score(tally, output, piece.reference(call), _to_cpu(call), samples, piece.loaded.labels)


def _measured(config: RunConfig, piece: Workpiece) -> int:
    """Count the measured batches: 0 in the configuration is once over all inputs."""
    count = len(piece.inputs.samples) if piece.inputs else 0
    return config.batches or -(-count // config.batch)


def _to_cpu(call: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor.cpu() for name, tensor in call.items()}


def _peak_memory() -> int:
    """Read the peak resident bytes of this process (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
