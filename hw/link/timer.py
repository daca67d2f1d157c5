"""The link bench's single measurements. Every rank of the group makes the same calls and records its own probes.

Messages go through the Exchange that the model uses, so a shaped link counts as it does in a run. Receives
are posted ahead, as in a run: gloo sends a message only once its receiver is ready. Nothing stays posted
when a call returns.
"""

import random
import threading
import time
from collections.abc import Callable, Sequence

import torch

from hw.comm.control import Control
from hw.link.report import BUSY, IDLE, LOADED
from hw.link.round_trip import Pinger, Trip
from prism.nn.exchange import Exchange, Expected
from prism.plan import Route
from prism.trace import Probe

BYTE: Expected = ((1,), torch.uint8)
PAUSE_S = (0.15, 0.25)  # spread, so as not to step with a beacon every 102.4 ms
PATIENCE_S = 1.0
LOADED_EVERY_S = 0.02


class LinkTimer:
    """One rank's end of every measurement, as probes on this rank's own clock.

    ports: of each rank's UDP echo, by rank; empty where round trips go through the exchange.
    """

    def __init__(
        self,
        control: Control,
        exchange: Exchange,
        addresses: Sequence[str],
        ports: Sequence[int],
        max_bytes: int,
        seed: int,
    ) -> None:
        self._control, self._exchange, self._addresses, self._ports = control, exchange, addresses, ports
        self._payload = torch.zeros(max_bytes, dtype=torch.uint8)
        self._last = torch.ones(max_bytes, dtype=torch.uint8)
        self._random = random.Random(seed)
        self._probes: list[Probe] = []

    @property
    def pings(self) -> bool:
        """Whether round trips have a socket of their own."""
        return bool(self._ports)

    def take(self) -> list[Probe]:
        """Return what this rank recorded since the last call."""
        probes, self._probes = self._probes, []
        return probes

    # -- messages ---------------------------------------------------------------------------------------

    def echoes(self, source: int, target: int, sizes: Sequence[int]) -> list[Trip]:
        """Send messages of `sizes` from source to target, each answered by one byte. Returns the source's times."""
        if self._exchange.rank == target:
            self._answer(source, sizes)
        return self._ask(target, sizes) if self._exchange.rank == source else []

    def _ask(self, target: int, sizes: Sequence[int], pause: Callable[[], None] = lambda: None) -> list[Trip]:
        exchange, trips = self._exchange, list[Trip]()
        exchange.start({}, {target: BYTE}, "ready", 0).wait()
        for size in sizes:
            pause()
            exchange.expect({target: BYTE}, "pong", 0)
            start = time.monotonic_ns()
            exchange.start({target: self._payload[:size]}, {}, "ping", 0)
            exchange.start({}, {target: BYTE}, "pong", 0).wait()
            trips.append((start, time.monotonic_ns()))
        return trips

    def _answer(self, source: int, sizes: Sequence[int]) -> None:
        exchange = self._exchange
        following = [*sizes[1:], 0]
        exchange.expect(_message(source, sizes[0]), f"ping{sizes[0]}", 0)
        exchange.start({source: self._payload[:1]}, {}, "ready", 0)
        for size, after in zip(sizes, following, strict=True):
            exchange.start({}, _message(source, size), f"ping{size}", 0).wait()
            if after:
                exchange.expect(_message(source, after), f"ping{after}", 0)
            exchange.start({source: self._payload[:1]}, {}, "pong", 0)
        exchange.flush()

    def pair(self, source: int, target: int, sizes: Sequence[int]) -> None:
        """Record probes `pair`; one small message first is a warm-up."""
        trips = self.echoes(source, target, [1, *sizes])
        for number, (size, (start, end)) in enumerate(zip([1, *sizes], trips, strict=False)):
            self._keep("pair", (source, target, size), size, start, end, warmup=number == 0)

    def collective(self, op: Route, size: int, number: int) -> None:
        """Record one collective after a barrier, each rank giving `size` bytes. Probes of every rank."""
        exchange, own = self._exchange, self._payload[:size]
        peers = [rank for rank in range(exchange.world_size) if rank != exchange.rank]
        incoming = dict.fromkeys(peers, ((size,), torch.uint8))
        name = f"{op}{size}"
        if op == "mesh":
            exchange.expect(incoming, name, 0)
        self._control.barrier()
        start = time.monotonic_ns()
        if op == "mesh":
            exchange.start(dict.fromkeys(peers, own), incoming, name, 0).wait()
        else:
            exchange.start_ring(own, incoming, name, 0).wait()
        end = time.monotonic_ns()
        exchange.flush()
        self._keep(op, (exchange.world_size, size, number), size, start, end)

    # -- round trips --------------------------------------------------------------------------------------

    def idle_trips(self, a: int, b: int, count: int) -> None:
        """Record small round trips, each after a pause in which nothing is sent."""
        self._trips(a, b, count, IDLE, lambda: time.sleep(self._random.uniform(*PAUSE_S)))

    def busy_trips(self, a: int, b: int, count: int) -> None:
        """Record small round trips back to back."""
        self._trips(a, b, count, BUSY, lambda: None)

    def _trips(self, a: int, b: int, count: int, state: int, pause: Callable[[], None]) -> None:
        trips: list[Trip] = []
        if self._ports and self._exchange.rank == a:
            with self._pinger(a, b) as pinger:
                for _ in range(count):
                    pause()
                    trips.append(pinger.trip(PATIENCE_S))
        elif not self._ports and self._exchange.rank == a:
            trips = self._ask(b, [1] * count, pause)
        elif not self._ports and self._exchange.rank == b:
            self._answer(a, [1] * count)
        self._keep_trips(a, b, state, trips)

    def _pinger(self, a: int, b: int) -> Pinger:
        return Pinger(self._addresses[a], self._addresses[b], self._ports[b])

    def _keep_trips(self, a: int, b: int, state: int, trips: Sequence[Trip]) -> None:
        for start, end in trips:
            self._keep("echo", (a, b, state), 1, start, end or start, calls=int(end > 0))

    # -- a long transfer ----------------------------------------------------------------------------------

    def bulk(self, source: int, target: int, chunk: int, duration_s: float) -> None:
        """Send messages of `chunk` bytes for `duration_s`, one always under way, with UDP round trips meanwhile.

        Probes `bulk` at the target, `echo` in state loaded at the source.
        """
        if self._exchange.rank == target:
            self._swallow(source, chunk)
        elif self._exchange.rank == source and self._ports:
            self._keep_trips(source, target, LOADED, self._pour_and_ping(source, target, chunk, duration_s))
        elif self._exchange.rank == source:
            self._pour(target, chunk, duration_s)

    def _pour(self, target: int, chunk: int, duration_s: float) -> None:
        exchange = self._exchange
        exchange.start({}, {target: BYTE}, "ready", 0).wait()
        until, number, last = time.monotonic() + duration_s, 0, False
        while not last:
            last = time.monotonic() >= until
            payload = (self._last if last else self._payload)[:chunk]
            exchange.start({target: payload}, {}, "bulk", number % 2).wait()  # for the one before it to leave
            number += 1
        # the target has posted one receive past the last message
        exchange.start({target: self._last[:chunk]}, {}, "bulk", number % 2)
        exchange.flush()

    def _swallow(self, source: int, chunk: int) -> None:
        exchange, message = self._exchange, _message(source, chunk)
        exchange.expect(message, "bulk", 0)
        exchange.expect(message, "bulk", 1)
        exchange.start({source: self._payload[:1]}, {}, "ready", 0)
        number, last, before = 0, False, time.monotonic_ns()
        while not last:
            part = exchange.start({}, message, "bulk", number % 2).wait()[source]
            now = time.monotonic_ns()
            self._keep("bulk", (source, exchange.rank, chunk), chunk, before, now)
            last, before, number = bool(part[0]), now, number + 1
            if not last:
                exchange.expect(message, "bulk", (number + 1) % 2)
        exchange.start({}, message, "bulk", number % 2).wait()
        exchange.flush()

    def _pour_and_ping(self, source: int, target: int, chunk: int, duration_s: float) -> list[Trip]:
        trips: list[Trip] = []
        stop = threading.Event()

        def ping() -> None:
            with self._pinger(source, target) as pinger:
                trips.extend(pinger.while_open(stop, LOADED_EVERY_S, PATIENCE_S))

        thread = threading.Thread(target=ping, daemon=True)
        thread.start()
        try:
            self._pour(target, chunk, duration_s)
        finally:
            stop.set()
            thread.join()
        return trips

    def _keep(
        self, op: str, shape: tuple[int, ...], size: int, start: int, end: int, *, calls: int = 1, warmup: bool = False
    ) -> None:
        self._probes.append(
            Probe(
                rank=self._exchange.rank,
                op=op,
                shape=shape,
                flops=0,
                bytes=size,
                start_ns=start,
                end_ns=end,
                calls=calls,
                warmup=warmup,
            )
        )


def _message(source: int, size: int) -> dict[int, Expected]:
    return {source: ((size,), torch.uint8)}
