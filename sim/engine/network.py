"""Simulate the media that messages share, and a message's way over them.

A medium shares its rate equally among the messages on it (processor sharing), as hw's shaper does. An
access point's air is ONE medium that a message between two stations crosses twice; a switch has a
medium for each direction of each cable. A message has arrived when every medium on its way has carried
it, plus the latencies of the way.
"""

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import simpy

from prism.link import LinkSpec
from sim.engine.topology import Graph, Routes, routes_of

FRAME_BYTES = 1448  # TCP payload of one Ethernet frame


class SimulatedMedium:
    """One shared resource. `served` is what each message on it has got since the medium was last empty,
    in bits: a message that joins at v with b bits leaves when served reaches v + b."""

    def __init__(self, env: simpy.Environment, rate_bps: float) -> None:
        self._env, self._rate, self.nominal_bps = env, rate_bps / 1e9, rate_bps
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._served, self._at, self._due = 0.0, 0, -1
        self._number = itertools.count()
        self.carried_bits = 0.0

    def join(self, bits: float, done: Callable[[], None]) -> None:
        """Put a message on the medium; `done` is called when it has been carried."""
        self._advance()
        self.carried_bits += bits
        heapq.heappush(self._heap, (self._served + bits, next(self._number), done))
        self._arm()

    def set_rate(self, rate_bps: float) -> None:
        """Change the rate from now on; 0 is an outage."""
        self._advance()
        self._rate = rate_bps / 1e9
        self._arm()

    def _advance(self) -> None:
        now = int(self._env.now)
        if self._heap and self._rate < math.inf:
            self._served += (now - self._at) * self._rate / len(self._heap)
        elif not self._heap:
            self._served = 0.0
        self._at = now

    def _left_ns(self) -> float:
        """Compute the time until the next message leaves, if none joins."""
        if self._rate == math.inf:
            return 0.0
        return (self._heap[0][0] - self._served) * len(self._heap) / self._rate

    def _arm(self) -> None:
        if not self._heap or self._rate <= 0:
            return
        due = self._at + max(0, math.ceil(self._left_ns() - 1e-3))
        if self._due < 0 or due < self._due:  # a later one is found when the earlier wake comes
            self._due = due
            event = self._env.timeout(due - self._at)
            event.callbacks.append(self._wake)

    def _wake(self, _: Any) -> None:
        if self._env.now != self._due:
            return  # an earlier one has been set since
        self._due = -1
        self._advance()
        ready = []
        while self._heap and self._rate > 0 and self._left_ns() <= 1e-3:
            ready.append(heapq.heappop(self._heap)[2])
        for done in ready:
            done()
        self._arm()


class Network:
    """Messages between ranks over a topology. Randomness (jitter, loss) comes from `seed` alone."""

    def __init__(
        self,
        env: simpy.Environment,
        graph: Graph,
        ranks: int,
        link: LinkSpec,
        seed: int,
        message_s: float,
        routes: Routes | None = None,
    ) -> None:
        self._env, self._link = env, link
        self._rng = np.random.default_rng(seed) if link.jitter_s or link.loss else None
        self.media: dict[Any, SimulatedMedium] = {}
        self._ways: dict[tuple[int, int], tuple[list[tuple[SimulatedMedium, int]], int]] = {}
        for ends, hops in (routes_of(graph, ranks) if routes is None else routes).items():
            self._ways[ends] = self._way(graph, hops, message_s)

    def _way(self, graph: Graph, hops: Sequence[Any], message_s: float) -> Any:
        """Find the media of a way, each with its crossings, and the latency in nanoseconds."""
        names = Counter(graph.edges[hop]["medium"] or hop for hop in hops)
        for hop in hops:
            name = graph.edges[hop]["medium"] or hop
            if name not in self.media:
                self.media[name] = SimulatedMedium(self._env, graph.edges[hop]["rate_bps"])
        latency = message_s + sum(graph.edges[hop]["latency_s"] for hop in hops)
        return [(self.media[name], count) for name, count in names.items()], round(latency * 1e9)

    def scale(self, factor: float) -> None:
        """Set every medium to `factor` of its rate from now on; 0 is an outage."""
        for medium in self.media.values():
            medium.set_rate(medium.nominal_bps * factor)

    def replay(self, rates: Sequence[tuple[float, float]]) -> Any:
        """Follow shares of the nominal rate at their seconds, and start again after the last one; a generator."""
        began = 0.0
        while True:
            for at_s, factor in rates:
                moment = round((began + at_s) * 1e9)
                if moment > self._env.now:
                    yield self._env.timeout(moment - int(self._env.now))
                self.scale(factor)
            if rates[-1][0] <= 0:
                return
            began += rates[-1][0]

    def send(self, source: int, target: int, size: int, arrived: Callable[[], None]) -> None:
        """Hand a message over; `arrived` is called when all of it is at the target."""
        media, latency = self._ways[source, target]
        frames = -(-size // FRAME_BYTES)
        size += frames * self._link.overhead_bytes
        if self._rng is not None:
            resent, delay = self._noise(frames, latency)
            size += resent * (FRAME_BYTES + self._link.overhead_bytes)
            latency = delay
        if not size:
            return self._deliver(latency, arrived)
        left = len(media)

        def carried() -> None:
            nonlocal left
            left -= 1
            if not left:
                self._deliver(latency, arrived)

        for medium, crossings in media:
            medium.join(8.0 * size * crossings, carried)

    def _deliver(self, latency: int, arrived: Callable[[], None]) -> None:
        if latency <= 0:
            arrived()
            return
        event = self._env.timeout(latency)
        event.callbacks.append(lambda _: arrived())

    def _noise(self, frames: int, latency: int) -> tuple[int, int]:
        """Draw the number of frames that are sent again, and the latency in nanoseconds.

        The latency has jitter, and one round trip for each round of retransmissions: the largest of `frames` geometric
        draws.
        """
        rng, link = self._rng, self._link
        if rng is None:
            return 0, latency
        delay = max(0.0, latency + rng.normal(0.0, link.jitter_s * 1e9)) if link.jitter_s else float(latency)
        if not link.loss or not frames:
            return 0, round(delay)
        resent = int(rng.negative_binomial(frames, 1.0 - link.loss))
        # P(all frames through after k tries) = (1 - loss^k)^frames, inverted at a uniform draw
        once = -math.expm1(math.log(max(rng.random(), 1e-300)) / frames)
        tries = max(1, math.ceil(math.log(max(once, 1e-300)) / math.log(link.loss)))
        rounds = max(tries - 1, 1) if resent else 0
        return resent, round(delay + rounds * 2 * latency)
