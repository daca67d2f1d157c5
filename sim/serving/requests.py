"""Simulate requests: their arrival, their batching, and the queue between.

The arrival patterns are those of MLPerf inference: single-stream and multi-stream send the next query when
the last one is answered, server is a Poisson process, offline has everything at once.
"""

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import simpy

from prism.errors import ConfigError
from prism.rates import read_numbers
from sim.engine.collectives import SimProcess

Pattern = Literal["single-stream", "multi-stream", "server", "poisson", "trace", "offline"]


class Arrivals(msgspec.Struct, frozen=True, kw_only=True):
    """A pattern of arrivals. rate_per_s: server, poisson. samples: of a multi-stream query. times_s: trace."""

    pattern: Pattern
    requests: int
    rate_per_s: float = 0.0
    samples: int = 1
    times_s: tuple[float, ...] = ()

    @property
    def closed(self) -> bool:
        """Whether the next query waits for the answer of the last one."""
        return self.pattern in ("single-stream", "multi-stream")

    def times_ns(self, seed: int) -> list[int]:
        """Draw when each request of an open pattern arrives."""
        if self.pattern == "offline":
            return [0] * self.requests
        if self.pattern == "trace":
            return [round(t * 1e9) for t in self.times_s]
        gaps = np.random.default_rng([seed, 1]).exponential(1e9 / self.rate_per_s, self.requests)
        return [int(t) for t in np.cumsum(gaps)]


def parse_arrivals(text: str, requests: int) -> Arrivals:
    """Read "poisson:20", "server:20" (per second), "single-stream", "multi-stream:8" (samples a query),
    "offline" or "trace:FILE.csv" (a column of seconds). Raises ConfigError."""
    pattern, _, rest = text.partition(":")
    if pattern in ("poisson", "server"):
        return Arrivals(pattern=pattern, requests=requests, rate_per_s=_positive(rest, text))  # type: ignore[arg-type]
    if pattern == "multi-stream":
        return Arrivals(pattern="multi-stream", requests=requests, samples=int(_positive(rest, text)))
    if pattern in ("single-stream", "offline") and not rest:
        return Arrivals(pattern=pattern, requests=requests)  # type: ignore[arg-type]
    if pattern == "trace" and rest:
        times = _arrival_times(Path(rest))
        return Arrivals(pattern="trace", requests=len(times), times_s=times)
    raise ConfigError(
        f"arrivals {text!r} are unknown; use poisson:RATE, server:RATE, single-stream, multi-stream:SAMPLES, "
        f"offline or trace:FILE.csv"
    )


def _arrival_times(path: Path) -> tuple[float, ...]:
    """Read the column time_s. Raises ConfigError where it is empty or not in order."""
    rows = read_numbers(path, ("time_s",))
    if not rows:
        raise ConfigError(f"{path}: holds no times; write one a line below the header time_s")
    for before, row in itertools.pairwise(rows):
        if row.values < before.values:
            raise ConfigError(f"{path}: line {row.line}: times must not fall; sort the column time_s")
    return tuple(row.values[0] for row in rows)


def _positive(text: str, whole: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ConfigError(f"arrivals {whole!r}: {text!r} is no number above 0; write it like poisson:20")
    return value


class Batching(msgspec.Struct, frozen=True, kw_only=True):
    """Up to `largest` requests go together; the first of them waits for others at most `patience_s`."""

    largest: int = 1
    patience_s: float = 0.0


class SimulatedRequest(msgspec.Struct):
    """One sample: nanoseconds of its arrival, of the start of its batch, and of its answer; -1 before."""

    arrived_ns: int
    started_ns: int = -1
    ended_ns: int = -1


class Queue:
    """Requests in order of arrival. `length_ns` is the integral of its length over time."""

    def __init__(self, env: simpy.Environment) -> None:
        self._env = env
        self.waiting: deque[SimulatedRequest] = deque()
        self.all: list[SimulatedRequest] = []
        self.longest = 0
        self.length_ns = 0
        self._since = 0
        self._news: simpy.Event | None = None
        self.closed = False

    def put(self, count: int = 1) -> list[SimulatedRequest]:
        """Add requests that arrive now."""
        self._count()
        new = [SimulatedRequest(arrived_ns=int(self._env.now)) for _ in range(count)]
        self.waiting += new
        self.all += new
        self.longest = max(self.longest, len(self.waiting))
        self._tell()
        return new

    def put_back(self, requests: Sequence[SimulatedRequest]) -> None:
        """Return requests whose batch failed to the front."""
        self._count()
        self.waiting.extendleft(reversed(requests))

    def close(self) -> None:
        """Say that no request will come."""
        self.closed = True
        self._tell()

    def take(self, batching: Batching) -> SimProcess:
        """Wait for the next batch; a generator that returns it, empty when nothing will come."""
        while not self.waiting and not self.closed:
            yield self._wait()
        if not self.waiting:
            return []
        deadline = self.waiting[0].arrived_ns + round(batching.patience_s * 1e9)
        while len(self.waiting) < batching.largest and self._env.now < deadline and not self.closed:
            yield self._wait() | self._env.timeout(deadline - int(self._env.now))
        self._count()
        return [self.waiting.popleft() for _ in range(min(batching.largest, len(self.waiting)))]

    def _count(self) -> None:
        self.length_ns += len(self.waiting) * (int(self._env.now) - self._since)
        self._since = int(self._env.now)

    def _wait(self) -> simpy.Event:
        if self._news is None or self._news.triggered:
            self._news = self._env.event()
        return self._news

    def _tell(self) -> None:
        if self._news is not None and not self._news.triggered:
            self._news.succeed()


def arrive(env: simpy.Environment, queue: Queue, arrivals: Arrivals, seed: int) -> SimProcess:
    """Put the requests of an open pattern into the queue at their times."""
    for moment in arrivals.times_ns(seed):
        if moment > env.now:
            yield env.timeout(moment - int(env.now))
        queue.put()
    queue.close()


def serve_queue(
    env: simpy.Environment,
    queue: Queue,
    arrivals: Arrivals,
    batching: Batching,
    run: Callable[[list[SimulatedRequest]], SimProcess],
) -> SimProcess:
    """Run one batch after another until all requests are answered.

    run: returns why a batch failed, or an empty text; the requests of a failed one go first again.
    """
    if arrivals.closed:
        batching = Batching(largest=arrivals.samples)
    queries = arrivals.requests
    while True:
        if arrivals.closed and not queue.waiting:
            if queries <= 0:
                return
            queries -= 1
            queue.put(arrivals.samples)
        batch: list[SimulatedRequest] = yield from queue.take(batching)
        if not batch:
            return
        for request in batch:
            request.started_ns = int(env.now)
        if (yield from run(batch)):
            queue.put_back(batch)
            continue
        for request in batch:
            request.ended_ns = int(env.now)
