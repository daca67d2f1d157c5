"""The adaptive runtime: for each batch it observes, decides, runs, and answers whatever happens to the others.

Batches come from one thread. A second one keeps the group alive and, while batches are local, probes the link within a
budget. Whoever sends messages of the group holds Members.using.
"""

import math
import statistics
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec
import torch
from torch import Tensor, nn

from hw.comm.recorder import SpanRecorder
from hw.serving.leader import Group
from prism.decide.link_rate import RateEstimate, RateSample, updated
from prism.decide.log import Answered, Corrected, Entry, LogHeader, decided
from prism.decide.policy import AnyPolicy, Decision, State
from prism.decide.rate_gauge import RateGauge
from prism.decide.table import LOCAL, CellPlace, Objective, Observation, Table
from prism.errors import ConfigError, ExchangeError
from prism.link import CROSSINGS
from prism.nn.distribute import DistributedTransformer, distribute
from prism.nn.families import adapter_for
from prism.plan import ExecutionPlan

TICK_S = 0.02
PROBE_BYTES = 65_536
PROBE_SHARE = 0.02  # of the time that probes may take
PROBE_EVERY_S = 0.5  # at most so often
PROBE_DEVIATION = 0.15  # of a rate from one probe: assumed, not measured
RESIDUALS, ALARM = (
    12,
    0.10,
)  # batches nearest to a cell, and the median deviation from what was expected, for a correction


class Membership(Protocol):
    """What the runtime needs of hw.serving.leader.Members."""

    using: threading.Lock

    def group(self) -> Group | None: ...

    def broken(self, epoch: int, why: str) -> None: ...


class Served(msgspec.Struct, frozen=True):
    """A batch's output, the plan that gave it, milliseconds, the decision, and why another plan failed."""

    output: Any
    ran: ExecutionPlan
    ms: float
    decision: Decision
    failed: str = ""


class DecisionWriter:
    """A decision log, a line at a time."""

    def __init__(self, path: Path, header: LogHeader) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "wb")  # noqa: SIM115
        except OSError as error:
            raise ConfigError(f"{path} can't be written ({error.strerror}); choose another place") from None
        self.write(header)

    def write(self, entry: LogHeader | Entry) -> None:
        self._file.write(msgspec.json.encode(entry) + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class AdaptiveRuntime:
    """Serves one model. timeout_s: what a batch may spend on other devices before it is answered locally. learn: correct
    the table where served latencies keep deviating from it. Used as a context manager."""

    def __init__(
        self,
        model: nn.Module,
        members: Membership,
        recorder: SpanRecorder,
        table: Table,
        policy: AnyPolicy,
        objective: Objective,
        *,
        timeout_s: float = 2.0,
        learn: bool = True,
        log: DecisionWriter | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model, self._members, self._recorder = model, members, recorder
        self._adapter = adapter_for(model)
        self._table = self._first_table = table
        self._gauge = RateGauge(table)
        self._policy, self._objective = policy, objective
        self._timeout_s, self._learn, self._log, self._clock = timeout_s, learn, log, clock
        self._state, self._number = State(), 0
        self._estimate: RateEstimate | None = None
        self._told_bps: float | None = None  # by the batch that ran last, where it was distributed
        self._wrapped: tuple[int, DistributedTransformer] | None = None
        self._residuals: dict[CellPlace, deque[float]] = {}
        self._factors: dict[CellPlace, float] = {}
        self._round_trips: deque[float] = deque(maxlen=16)
        self._all_heard_s = self._next_probe = 0.0
        self._stopping = threading.Event()
        self.last: Served | None = None
        self.served: Counter[str] = Counter()
        self.failures = 0
        self.corrections = 0
        self.probe_s = 0.0

    def __enter__(self) -> "AdaptiveRuntime":
        self._ticker = threading.Thread(target=self._tick, daemon=True)
        self._ticker.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        self._ticker.join()

    @property
    def estimate(self) -> RateEstimate | None:
        return self._estimate

    # -- a batch ------------------------------------------------------------------------------------------

    def run(self, call: Mapping[str, Tensor], queued: int = 0, left_ms: float | None = None) -> Served:
        """Answer a batch. call: the model's keyword arguments, the batch along each one's first dimension."""
        start, number = self._clock(), self._number
        self._number += 1
        group = self._members.group()
        size = len(next(iter(call.values())))
        seen = self._observe(size, group, queued, left_ms, start)
        decision = self._policy.decide(seen, self._table, self._objective, self._state)
        self._state = decision.state
        self._write(decided(number, 0 if group is None else group.epoch, seen, decision))
        output, ran, failed = None, decision.plan, ""
        self._told_bps = None
        if ran.ranks > 1 and group is not None:
            output, failed = self._distributed(group, ran, call, start)
        if ran.ranks == 1 or failed:
            output, ran = self._local(call), LOCAL
        end = self._clock()
        ms = (end - start) * 1e3
        self._write(Answered(number=number, at_s=end, ms=ms, ran=ran, failed=failed))
        self.served[ran.mode.value] += 1
        self.failures += bool(failed)
        if not failed and self._learn:
            self._compare(seen, ran, ms, end)
        self.last = Served(output, ran, ms, decision, failed)
        return self.last

    def _observe(self, size: int, group: Group | None, queued: int, left_ms: float | None, now: float) -> Observation:
        known = self._estimate if group is not None else None
        return Observation(
            batch=size,
            devices=1 if group is None else group.devices,
            queued=queued,
            left_ms=left_ms,
            at_s=now,
            bandwidth_bps=None if known is None else known.rate_bps,
            bandwidth_deviation=0.0 if known is None else known.deviation_at(now),
        )

    def _local(self, call: Mapping[str, Tensor]) -> Any:
        return self._model(**call, **self._adapter.forced)

    def _distributed(
        self, group: Group, plan: ExecutionPlan, call: Mapping[str, Tensor], start: float
    ) -> tuple[Any, str]:
        """The output, or why there is none. Whoever keeps the group alive may hold it; that counts as waiting too."""
        if not self._members.using.acquire(timeout=self._timeout_s):
            return None, "the link did not become free"
        try:
            model = self._of(group)
            if model is None:
                return None, "the group was lost before the batch began"
            model.plan = plan
            group.exchange.deadline_s = time.monotonic() + self._timeout_s - (self._clock() - start)
            output = model(**call)
            if plan.ranks == group.devices:
                self._all_heard_s = self._clock()
        except (ExchangeError, RuntimeError) as error:
            self._recorder.take()
            self._estimate = None  # what was believed of the link no longer holds
            self._members.broken(group.epoch, str(error))
            return None, str(error)
        finally:
            self._members.using.release()
        spans, _, _ = self._recorder.take()
        self._keep_idle_members(group)
        waited_ms = sum(span.end_ns - span.start_ns for span in spans if span.kind == "wire") / 1e6
        self._learn_rate(plan, len(next(iter(call.values()))), waited_ms)
        return output, ""

    def _keep_idle_members(self, group: Group) -> None:
        """Batches without a pause leave the ticker no turn, and a member that takes part in none would hear nothing."""
        if self._clock() - self._all_heard_s > self._timeout_s / 2 and self._members.using.acquire(blocking=False):
            try:
                self._ask(group, probe=False)
            finally:
                self._members.using.release()

    def _of(self, group: Group) -> DistributedTransformer | None:
        """The model over a group that is still there. Members.using is held."""
        if self._members.group() is not group:
            return None
        if self._wrapped is None or self._wrapped[0] != group.epoch:
            model = distribute(self._model, LOCAL, group.exchange, self._recorder, group.epoch)
            self._wrapped = (group.epoch, model)
            self._round_trips.clear()
        return self._wrapped[1]

    def _learn_rate(self, plan: ExecutionPlan, batch: int, waited_ms: float) -> None:
        found = self._gauge.rate_of(plan, batch, waited_ms)
        if found is not None:
            self._told_bps, deviation = found
            self._sampled(RateSample(at_s=self._clock(), rate_bps=self._told_bps, deviation=deviation))

    def _sampled(self, sample: RateSample) -> None:
        self._estimate = updated(self._estimate, sample)

    # -- correcting the table -----------------------------------------------------------------------------

    def _compare(self, seen: Observation, plan: ExecutionPlan, ms: float, now: float) -> None:
        """Served over expected: where the last batches nearest to a cell all say the same, the cell follows them. A
        distributed batch is held against the rate that it told of itself: against what was believed before, each change
        of the link would be taken for a wrong cell."""
        if plan.ranks > 1 and self._told_bps is None:
            return
        at = msgspec.structs.replace(seen, bandwidth_bps=self._told_bps, bandwidth_deviation=0.0)
        near, expected = self._first_table.nearest(plan, at), self._table.at(at, self._objective).of(plan)
        if near is None or expected is None or not self._first_table.mixes(plan, at):
            return
        place = near[0]
        residuals = self._residuals.setdefault(place, deque(maxlen=RESIDUALS))
        residuals.append(math.log(ms / expected.ms))
        if len(residuals) < RESIDUALS or abs(statistics.median(residuals)) < ALARM:
            return
        factor = self._factors[place] = self._factors.get(place, 1.0) * math.exp(statistics.median(residuals))
        residuals.clear()
        self.corrections += 1
        self._table = self._first_table.corrected(self._factors)
        self._write(Corrected(at_s=now, version=self.corrections, place=place, factor=factor, batches=RESIDUALS))

    def _write(self, entry: Entry) -> None:
        if self._log is not None:
            self._log.write(entry)

    # -- between batches ----------------------------------------------------------------------------------

    def _tick(self) -> None:
        torch.set_grad_enabled(False)
        while not self._stopping.wait(TICK_S):
            group, now = self._members.group(), self._clock()
            if group is None:
                self._next_probe = now
                continue
            probe = now >= self._next_probe and (self._estimate is None or now - self._estimate.at_s > PROBE_EVERY_S)
            if not probe and now - self._all_heard_s < self._timeout_s / 4:
                continue
            if self._members.using.acquire(blocking=False):  # else a batch is under way, which does as well
                try:
                    self._ask(group, probe)
                finally:
                    self._members.using.release()

    def _ask(self, group: Group, probe: bool) -> None:
        """Hear of every member, or see how long the link takes for some bytes. Members.using is held."""
        model = self._of(group)
        if model is None:
            return
        group.exchange.deadline_s = time.monotonic() + self._timeout_s
        try:
            started = self._clock()
            if not probe or not self._round_trips:
                model.keep_alive()
                self._all_heard_s = self._clock()
                self._round_trips.append(self._all_heard_s - started)
            else:
                model.probe(PROBE_BYTES)
                self._probed(self._clock() - started)
        except (ExchangeError, RuntimeError) as error:
            self._estimate = None
            self._members.broken(group.epoch, str(error))

    def _probed(self, seconds: float) -> None:
        now = self._clock()
        self.probe_s += seconds
        self._next_probe = now + max(PROBE_EVERY_S, seconds / PROBE_SHARE)
        # a first round trip may be slower than a probe (23 ms were seen): then half of the probe's time is the link's
        crossing = max(seconds - min(self._round_trips), seconds / 2)
        rate = CROSSINGS * 8 * PROBE_BYTES / crossing
        self._sampled(RateSample(at_s=now, rate_bps=rate, deviation=PROBE_DEVIATION, source="probe"))
