"""Run each batch by the plan that is expected to be best, and answer it whatever happens to the other devices.

Batches come from one thread. A second one keeps the group alive and, while batches are local, probes the link within a
budget. A thread that sends messages of the group holds Membership.using.
"""

import contextlib
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor

from hw.serving.device import ServedModel
from hw.serving.membership import LiveGroup, Membership
from prism.decide.corrections import Corrections
from prism.decide.link_rate import RateEstimate, RateSample, updated
from prism.decide.log import Answered, Entry, LogHeader, decided
from prism.decide.policy import AnyPolicy, Decision, State
from prism.decide.rate_gauge import RateGauge
from prism.decide.table import Objective, Observation, Table
from prism.errors import ConfigError, ExchangeError
from prism.labels import mode_label, plan_label
from prism.link import CROSSINGS
from prism.nn.distribute import DistributedTransformer
from prism.plan import LOCAL, ExecutionPlan

log = logging.getLogger(__name__)

TICK_S = 0.02
PROBE_BYTES = 65_536
PROBE_SHARE = 0.02  # of the time that probes may take
PROBE_EVERY_S = 0.5  # between two probes at least
PROBE_DEVIATION = 0.15  # of a rate from one probe: assumed, not measured


class ServedBatch(msgspec.Struct, frozen=True):
    """A batch's output and how it came about. ran: the plan that gave it. failed: why another plan did not."""

    output: Any
    ran: ExecutionPlan
    ms: float
    decision: Decision
    failed: str = ""


class DecisionWriter:
    """Writes a decision log, a line at a time. Raises ConfigError where the file can't be written."""

    def __init__(self, path: Path, header: LogHeader) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "wb")  # noqa: SIM115
        except OSError as error:
            raise ConfigError(f"{path} can't be written ({error.strerror}); choose another place") from None
        self.write(header)

    def write(self, entry: LogHeader | Entry) -> None:
        """Write one line at once."""
        self._file.write(msgspec.json.encode(entry) + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Strategy(NamedTuple):
    """What a runtime decides by. learn: correct the table where served latencies keep deviating from it."""

    table: Table
    policy: AnyPolicy
    objective: Objective = Objective()
    learn: bool = True


class AdaptiveRuntime:
    """Serves one model. Used as a context manager.

    timeout_s: what a batch may spend on other devices before it is answered locally.
    """

    def __init__(
        self,
        served: ServedModel,
        membership: Membership,
        strategy: Strategy,
        *,
        timeout_s: float = 2.0,
        decisions: DecisionWriter | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model, self._membership, self._strategy = served, membership, strategy
        self._timeout_s, self._decisions, self._clock = timeout_s, decisions, clock
        self._corrections = Corrections(strategy.table, strategy.objective)
        self._gauge = RateGauge(strategy.table)
        self._state, self._number = State(), 0
        self._estimate: RateEstimate | None = None
        self._inferred_bps: float | None = None  # from the batch that ran last, where it was distributed
        self._wrapped: tuple[int, DistributedTransformer] | None = None
        self._round_trips: deque[float] = deque(maxlen=16)
        self._all_heard_s = self._next_probe = 0.0
        self._stopping = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)
        self._present = LOCAL  # the plan of the last decision
        self.last: ServedBatch | None = None
        self.served: Counter[str] = Counter()
        self.failures = 0
        self.probe_s = 0.0

    def __enter__(self) -> "AdaptiveRuntime":
        self._ticker.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        self._ticker.join()

    @property
    def estimate(self) -> RateEstimate | None:
        """The present estimate of the link's rate, if any."""
        return self._estimate

    @property
    def corrections(self) -> int:
        """How often the table was corrected."""
        return self._corrections.count

    # -- a batch ------------------------------------------------------------------------------------------

    def run(self, call: Mapping[str, Tensor], queued: int = 0, left_ms: float | None = None) -> ServedBatch:
        """Answer a batch. call: the model's keyword arguments, the batch along each one's first dimension.

        queued: requests that wait behind it. left_ms: until its deadline.
        """
        start, number = self._clock(), self._number
        self._number += 1
        group = self._membership.group()
        size = len(next(iter(call.values())))
        seen = self._observe(size, group, queued, left_ms, start)
        decision = self._decide(number, group, seen)
        output, ran, failed = None, decision.plan, ""
        self._inferred_bps = None
        if ran.ranks > 1 and group is not None:
            output, failed = self._distributed(group, ran, call, start)
        if ran.ranks == 1 or failed:
            output, ran = self._local(call), LOCAL
        end = self._clock()
        ms = (end - start) * 1e3
        self._write(Answered(number=number, at_s=end, ms=ms, ran=ran, failed=failed))
        self.served[mode_label(ran)] += 1
        self.failures += bool(failed)
        if not failed and self._strategy.learn:
            self._compare(seen, ran, ms, end)
        self.last = ServedBatch(output, ran, ms, decision, failed)
        return self.last

    def _decide(self, number: int, group: LiveGroup | None, seen: Observation) -> Decision:
        strategy = self._strategy
        decision = strategy.policy.decide(seen, self._corrections.table, strategy.objective, self._state)
        self._state = decision.state
        self._write(decided(number, 0 if group is None else group.epoch, seen, decision))
        if decision.plan != self._present:
            log.info("plan changed to %s: %s", plan_label(decision.plan), decision.why)
            self._present = decision.plan
        return decision

    def _observe(
        self, size: int, group: LiveGroup | None, queued: int, left_ms: float | None, now: float
    ) -> Observation:
        estimate = self._estimate if group is not None else None
        return Observation(
            batch=size,
            devices=1 if group is None else group.devices,
            queued=queued,
            left_ms=left_ms,
            at_s=now,
            bandwidth_bps=None if estimate is None else estimate.rate_bps,
            bandwidth_deviation=0.0 if estimate is None else estimate.deviation_at(now),
        )

    def _local(self, call: Mapping[str, Tensor]) -> Any:
        return self._model.model(**call, **self._model.adapter.forced)

    def _distributed(
        self, group: LiveGroup, plan: ExecutionPlan, call: Mapping[str, Tensor], start: float
    ) -> tuple[Any, str]:
        """Run a batch on the group. Returns the output, or why there is none.

        The wait for the keep-alive thread to release the group counts towards the timeout too.
        """
        if not self._membership.using.acquire(timeout=self._timeout_s):
            return None, "the link did not become free"
        try:
            model = self._over(group)
            if model is None:
                return None, "the group was lost before the batch began"
            model.plan = plan
            group.exchange.deadline_s = time.monotonic() + self._timeout_s - (self._clock() - start)
            output = model(**call)
            if plan.ranks == group.devices:
                self._all_heard_s = self._clock()
        except (ExchangeError, RuntimeError) as error:
            self._model.recorder.take()
            self._lost(group, error)
            return None, str(error)
        finally:
            self._membership.using.release()
        spans, _, _ = self._model.recorder.take()
        self._keep_idle_followers(group)
        waited_ms = sum(span.end_ns - span.start_ns for span in spans if span.kind == "wire") / 1e6
        self._learn_rate(plan, len(next(iter(call.values()))), waited_ms)
        return output, ""

    def _lost(self, group: LiveGroup, error: Exception) -> None:
        self._estimate = None  # the link may be another one when a group is there again
        self._membership.broken(group.epoch, str(error))

    @contextlib.contextmanager
    def _if_free(self) -> Iterator[bool]:
        """Hold the group's lock where nobody else does. Yields whether it is held."""
        held = self._membership.using.acquire(blocking=False)
        try:
            yield held
        finally:
            if held:
                self._membership.using.release()

    def _keep_idle_followers(self, group: LiveGroup) -> None:
        """Back-to-back batches starve the keep-alive thread, so followers that take no part would time out."""
        if self._clock() - self._all_heard_s > self._timeout_s / 2:
            with self._if_free() as held:
                if held:
                    self._ask(group, probe=False)

    def _over(self, group: LiveGroup) -> DistributedTransformer | None:
        """Wrap the model for a group that is still there. Caller holds Membership.using."""
        if self._membership.group() is not group:
            return None
        if self._wrapped is None or self._wrapped[0] != group.epoch:
            self._wrapped = (group.epoch, self._model.distributed(group.exchange, group.epoch, recorded=True))
            self._round_trips.clear()
        return self._wrapped[1]

    def _learn_rate(self, plan: ExecutionPlan, batch: int, waited_ms: float) -> None:
        inferred = self._gauge.rate_of(plan, batch, waited_ms)
        if inferred is not None:
            self._inferred_bps, deviation = inferred
            self._sampled(RateSample(at_s=self._clock(), rate_bps=self._inferred_bps, deviation=deviation))

    def _sampled(self, sample: RateSample) -> None:
        self._estimate = updated(self._estimate, sample)

    def _compare(self, seen: Observation, plan: ExecutionPlan, ms: float, now: float) -> None:
        corrected = self._corrections.compare(seen, plan, ms, self._inferred_bps, now)
        if corrected is not None:
            log.info("the map was corrected by a factor of %.2f for %s", corrected.factor, plan_label(plan))
            self._write(corrected)

    def _write(self, entry: Entry) -> None:
        if self._decisions is not None:
            self._decisions.write(entry)

    # -- between batches ----------------------------------------------------------------------------------

    def _tick(self) -> None:
        torch.set_grad_enabled(False)
        while not self._stopping.wait(TICK_S):
            group, now = self._membership.group(), self._clock()
            if group is None:
                self._next_probe = now
                continue
            probe = now >= self._next_probe and (self._estimate is None or now - self._estimate.at_s > PROBE_EVERY_S)
            if not probe and now - self._all_heard_s < self._timeout_s / 4:
                continue
            with self._if_free() as held:  # else a batch is under way, which does as well
                if held:
                    self._ask(group, probe)

    def _ask(self, group: LiveGroup, probe: bool) -> None:
        """Let every follower answer, or time some bytes over the link. Caller holds Membership.using."""
        model = self._over(group)
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
            self._lost(group, error)

    def _probed(self, seconds: float) -> None:
        now = self._clock()
        self.probe_s += seconds
        self._next_probe = now + max(PROBE_EVERY_S, seconds / PROBE_SHARE)
        # a first round trip may be slower than a probe (23 ms were seen): then half of the probe's time is the link's
        crossing = max(seconds - min(self._round_trips), seconds / 2)
        rate = CROSSINGS * 8 * PROBE_BYTES / crossing
        self._sampled(RateSample(at_s=now, rate_bps=rate, deviation=PROBE_DEVIATION, source="probe"))
