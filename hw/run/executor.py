"""One rank's workbench: the loaded model and its inputs, and the batches of a step on it."""

import functools
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch

from hw.comm import group as comm
from hw.comm.clocks import Clocks
from hw.comm.recorder import SpanRecorder
from hw.comm.staging import CudaStager, HostStager
from hw.energy.meters import PowerSampler, find_meter
from hw.inputs.samples import Sample
from hw.inputs.score import Tally, score
from hw.probe.pace import Pace
from hw.run.config import Event, Progress, RankJob, RunConfig, RunStep, Work
from hw.run.outcome import outcome, trace_header
from hw.run.workpiece import Workpiece
from prism.errors import InputError, PrismError
from prism.nn.distribute import DistributedTransformer, distribute
from prism.nn.exchange import Exchange
from prism.trace import Batch, Idle, Record, Span, Trace, TraceWriter, aligned, aligned_power
from prism.trace.files import trace_file
from prism.trace.metrics import summarise

PERIOD_S = 0.01  # between two power samples
IDLE_S = 1.2  # how long an idle device is measured, once a model
WINDOW_S = 1.25 * 100 * PERIOD_S  # an energy figure needs 100 samples, and a busy machine misses some


class Tail(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker reports after a step's last batch."""

    memory: int
    power: list[Record]
    pace: list[Record]


class Bench:
    """Prepared for a step it holds the step's model, and keeps it for the next one."""

    def __init__(self, job: RankJob, emit: Callable[[Event], None]) -> None:
        self._job, self._emit = job, emit
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        cuda = self.device.type == "cuda"
        self.recorder = SpanRecorder(job.rank, torch.cuda.synchronize if cuda else lambda: None)
        self.stager = CudaStager(self.device, self.recorder) if cuda else HostStager()
        self.exchange: Exchange  # given by the session once the group has formed
        self._clocks = Clocks(job.rank)
        self._sampler: PowerSampler | None = None
        self._meter: list[Record] = []
        self._held: tuple[Any, ...] = ()
        self._idled = False
        self._piece: Workpiece

    @property
    def fingerprint(self) -> str:
        """Of the weights that are loaded; empty before any are."""
        return self._piece.fingerprint if self._held else ""

    @property
    def metered(self) -> bool:
        return self._sampler is not None

    # -- preparing --------------------------------------------------------------------------------------

    def prepare(self, step: Work) -> None:
        """Load the step's model and inputs unless they are the last step's. Raises PrismError."""
        if not isinstance(step, RunStep):
            return
        config = step.config
        if self._held != Workpiece.key(config):
            self._held = ()
            self._piece = Workpiece(config, self.device, self._job.rank == 0 or config.embed == "each")
            self._held, self._idled = Workpiece.key(config), False
        config.plan().partition(self._piece.tokens())
        if self._job.meter_covers and self._sampler is None:
            meter = find_meter(config.meter, hwmon=Path(self._job.hwmon))
            if meter is not None:
                self._sampler = PowerSampler(meter, self._job.rank, self._job.meter_covers, PERIOD_S)
                self._meter = self._sampler.take()  # says what is sampled: every step's trace begins with it
                self._sampler.start()

    def host_exchange(self) -> Exchange:
        """An exchange over the same group whose tensors stay in host memory."""
        if isinstance(self.exchange, comm.GlooExchange):
            return self.exchange.with_stager(HostStager())
        return self.exchange

    # -- a step -----------------------------------------------------------------------------------------

    def perform(self, step: RunStep, metered: bool) -> None:
        """Run a prepared step. `metered`, on the terminal: some device samples power, so batches go on
        until an energy figure has samples enough."""
        model = distribute(self._piece.loaded.model, step.config.plan(), self.exchange, self.recorder)
        self._power()  # what was sampled between steps belongs to none
        if self._job.rank == 0:
            self._terminal(model, step, metered)
        else:
            self._worker(model, step.config)

    def _worker(self, model: DistributedTransformer, config: RunConfig) -> None:
        schedule = self._schedule(config, metered=True) if config.embed == "each" else None
        pace = self._paced(config)
        if self._job.rank < config.plan().ranks:
            self._clocks.refresh(config.plan().ranks)
        while model.follow(**(self._piece.call(next(schedule, (0, False, ()))[2]) if schedule else {})):
            spans, _, _ = self.recorder.take()
            comm.send_bytes(msgspec.msgpack.encode(spans), 0)
            self._clocks.refresh(config.plan().ranks)
        tail = Tail(memory=_peak_memory(), power=self._power(), pace=[*pace, *self._paced(config)])
        comm.send_bytes(msgspec.msgpack.encode(tail), 0)

    @functools.cached_property
    def _pace(self) -> Pace:
        return Pace(self.device, self._job.rank)

    def _paced(self, config: RunConfig) -> list[Record]:
        """This rank's pace now, where a trace is kept. All ranks of the session time it together, also in local mode: it compares
        sessions of equally many ranks."""
        return [*self._pace.timed()] if config.trace else []

    def _power(self) -> list[Record]:
        return [*self._meter, *self._sampler.take()] if self._sampler else []

    def _terminal(self, model: DistributedTransformer, step: RunStep, metered: bool) -> None:
        config, tally = step.config, Tally()
        header = trace_header(config, self._job, self._piece)
        records: list[Record] = []
        with trace_file(config.trace) as file:
            writer = TraceWriter(file, header) if file else None

            def keep(new: list[Record]) -> None:
                records.extend(new)
                if writer:
                    writer.write(new)

            keep(self._paced(config))
            self._clocks.refresh(model.plan.ranks)
            keep(self._clocks.known())
            if metered and not self._idled:
                keep([self._idle()])
            self._batches(model, step, metered, keep, tally)
            memory = self._finish(model, config, keep)
        whole = [record for record in records if not isinstance(record, Batch) or record.size == config.batch]
        summary = summarise(Trace(header=header, records=tuple(whole)))
        self._emit(outcome(header, summary, tally, memory, self._piece))

    def _batches(
        self,
        model: DistributedTransformer,
        step: RunStep,
        metered: bool,
        keep: Callable[[list[Record]], None],
        tally: Tally,
    ) -> None:
        config, scored = step.config, set[str]()
        total = config.warmups + self._measured(config)
        unscored: list[tuple[Any, dict[str, Any], tuple[Sample, ...]]] = []
        for number, warmup, samples in self._schedule(config, metered):
            call = self._piece.call(samples)
            output = self._measure(model, call, len(samples), warmup, keep)
            key = samples[0].name
            if step.score and not warmup and key not in scored:
                scored.add(key)
                unscored.append((output, call, samples))
            if not metered:  # between batches it would break the window that an energy figure needs
                self._score(tally, unscored)
            self._emit(Progress(done=number + 1, total=max(total, number + 1)))
        self._score(tally, unscored)

    def _score(self, tally: Tally, unscored: list[tuple[Any, dict[str, Any], tuple[Sample, ...]]]) -> None:
        """Compare with the local model's outputs, and empty the list."""
        labels = self._piece.loaded.labels
        while unscored:
            output, call, samples = unscored.pop(0)
            score(tally, output, self._piece.reference(call), _to_cpu(call), samples, labels)

    def _idle(self) -> Idle:
        self._idled = True
        start = time.monotonic_ns()
        time.sleep(IDLE_S)
        return Idle(start_ns=start, end_ns=time.monotonic_ns())

    def _schedule(self, config: RunConfig, metered: bool) -> Iterator[tuple[int, bool, tuple[Sample, ...]]]:
        """Number, whether it is a warm-up, and the samples of each batch. The same on every rank; where
        power is sampled it goes on until the window is long enough."""
        if self._piece.inputs is None:
            raise InputError("this rank has no inputs; use embed terminal")
        for index in range(config.warmups):
            yield index, True, self._piece.inputs.batch(index, config.batch, wrap=True)
        index, began = 0, time.monotonic()
        while index < self._measured(config) or (metered and time.monotonic() - began < WINDOW_S):
            wrap = config.batches > 0 or index >= self._measured(config)
            yield config.warmups + index, False, self._piece.inputs.batch(index, config.batch, wrap)
            index += 1

    def _measured(self, config: RunConfig) -> int:
        count = len(self._piece.inputs.samples) if self._piece.inputs else 0
        return config.batches or -(-count // config.batch)

    def _measure(
        self,
        model: DistributedTransformer,
        call: dict[str, Any],
        size: int,
        warmup: bool,
        keep: Callable[[list[Record]], None],
    ) -> Any:
        """One batch: run it, gather every rank's spans, write them. A batch that fails is written too."""
        try:
            output = model(**call)
        except PrismError as error:
            spans, start, end = self.recorder.take()
            number = spans[0].batch if spans else 0
            failed = Batch(batch=number, size=size, start_ns=start, end_ns=end, warmup=warmup, failed=str(error))
            keep([*aligned(spans, {}), failed])
            raise
        spans, start, end = self.recorder.take()
        for peer in range(1, model.plan.ranks):
            spans = spans + msgspec.msgpack.decode(comm.receive_bytes(peer), type=list[Span])
        done = Batch(batch=spans[0].batch, size=size, start_ns=start, end_ns=end, warmup=warmup)
        keep([*aligned(spans, self._clocks.offsets_ns), done, *self._clocks.refresh(model.plan.ranks)])
        return output

    def _finish(
        self, model: DistributedTransformer, config: RunConfig, keep: Callable[[list[Record]], None]
    ) -> dict[int, int]:
        """End the step on every rank: peak memory by rank, and everyone's power samples and pace kept."""
        memory = {0: _peak_memory()}
        keep(self._power())
        if self._job.world_size > 1:
            model.stop()
        keep(self._paced(config))
        for peer in range(1, self._job.world_size):
            tail = msgspec.msgpack.decode(comm.receive_bytes(peer), type=Tail)
            memory[peer] = tail.memory
            keep([*aligned_power(tail.power, self._clocks.offsets_ns), *tail.pace])
        return memory


def _to_cpu(call: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor.cpu() for name, tensor in call.items()}


def _peak_memory() -> int:
    """Peak resident bytes of this process (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
