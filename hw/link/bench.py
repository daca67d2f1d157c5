"""The link bench: alpha, beta and break of every pair and collective, round trips, sustained goodput.

Every rank of a gloo group calls `run_link`; rank 0 gets the report. Sizes and repeats follow from a first
estimate of the link, so that slow links end in time too. Rounds go over all pairs, sizes and collectives
in a new order each, so that drift hits all alike. hw/link/report.py documents the probes.
"""

import itertools
import random
import time
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import torch

from hw.comm import group as comm
from hw.link.report import (
    LinkConfig,
    LinkReport,
    collective_report,
    expected_goodput_bps,
    goodput_ratio,
    pair_report,
    power_save,
)
from hw.link.round_trip import Echo
from hw.link.timer import LinkTimer, barrier, share
from hw.machine import facts as host
from hw.machine.doctor import wifi_power_save
from prism.errors import ConfigError
from prism.link import LinkSpec
from prism.nn.exchange import Exchange
from prism.plan import Route
from prism.trace import Probe, now_text

Keep = Callable[[Sequence[Probe]], None]
SMALL = (1, 16, 256, 1024, 4096)
LEAST_BYTES = 16_384  # of the largest size, however slow the link is
ROUNDS = 5  # that sizes are chosen for; fast links get up to MOST_ROUNDS
MOST_ROUNDS = 30
REPEAT_S, MOST_REPEATS = 0.01, 5  # a round repeats sizes that take less, so that a median stands on more
CURVES, COLLECTIVES, IDLE, BUSY, BULK = 0.32, 0.23, 0.2, 0.05, 0.15  # of the budget; the rest for estimates
MOST_BULK_S = 5.0
CHUNK_S = 0.02  # of one message of the bulk transfer
TRIALS = (32_768, 131_072, 524_288, 2_097_152)  # until one of them takes long enough
LONG_S = 0.03
CLOCK_TRIPS = 8


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A first idea of one pair: seconds of a small message one way, and payload bits per second."""

    alpha_s: float
    rate_bps: float


def run_link(
    exchange: Exchange,
    addresses: Sequence[str],
    link: LinkSpec,
    config: LinkConfig,
    *,
    keep: Keep = lambda probes: None,
    command: str = "",
) -> LinkReport | None:
    """Measure the current gloo group's links; all ranks call it with the same arguments. The report on
    rank 0, None elsewhere.

    exchange: with a HostStager, or copies to a GPU would count as link. addresses: of each rank's
    interface, by rank. keep: called on rank 0 with raw probes as they come. Raises ConfigError, PeerLostError.
    """
    if len(addresses) != exchange.world_size or exchange.world_size < 2:
        raise ConfigError(
            f"{len(addresses)} addresses for {exchange.world_size} rank(s): a link needs one each of at least 2"
        )
    with Echo(addresses[exchange.rank], addresses) as echo:
        bench = _Bench(exchange, addresses, config, keep)
        bench.meet(echo.port if link.kind != "shaper" else 0)  # the shaper holds back the exchange alone
        bench.estimate()
        bench.curves()
        bench.round_trips()
        bench.long_transfers()
        barrier()  # nobody stops answering before all are done
    return bench.report(link, command) if exchange.rank == 0 else None


class _Bench:
    def __init__(self, exchange: Exchange, addresses: Sequence[str], config: LinkConfig, keep: Keep) -> None:
        self._exchange, self._addresses, self._config, self._keep = exchange, addresses, config, keep
        self._pairs = list(itertools.combinations(range(exchange.world_size), 2))
        self._random = random.Random(config.seed)
        self._estimates: dict[tuple[int, int], Estimate] = {}
        self._probes: list[Probe] = []
        self._count = 0
        self._began = 0.0
        self._offsets: dict[int, int] = {}
        self._timer = self._timer_with(())

    def _timer_with(self, ports: Sequence[int]) -> LinkTimer:
        config = self._config
        return LinkTimer(self._exchange, self._addresses, ports, config.max_bytes, config.seed)

    # -- before -----------------------------------------------------------------------------------------

    def meet(self, port: int) -> None:
        """Learn where everyone's UDP echo is, and whether it answers; without, round trips take the exchange."""
        ports = [int(row[0]) for row in share([port])]
        self._began = time.monotonic()
        if not all(ports):
            return
        trial = self._timer_with(ports)
        for a, b in self._pairs:
            trial.busy_trips(a, b, 3)
        answered = not (found := trial.take()) or any(probe.calls for probe in found)
        if all(row[0] for row in share([float(answered)])):
            self._timer = trial

    def estimate(self) -> None:
        for a, b in self._pairs:
            found = self._estimate(a, b)
            alpha, rate = share([found.alpha_s, found.rate_bps])[a]
            self._estimates[a, b] = Estimate(alpha_s=alpha, rate_bps=rate)

    def _estimate(self, a: int, b: int) -> Estimate:
        rank = self._exchange.rank
        if rank not in (a, b):
            return Estimate(alpha_s=0.0, rate_bps=0.0)
        small = min(_durations(self._timer.echoes(a, b, [1] * 5)), default=0.0)
        rate = 0.0
        for size in TRIALS:
            took = min(_durations(self._timer.echoes(a, b, [size])), default=0.0)
            rate = 8 * size / max(took - small, 1e-6)
            if rank == a:
                comm.send_bytes(b"more" if took < LONG_S else b"", b)
            elif not comm.receive_bytes(a):
                break
            if rank == a and took >= LONG_S:
                break
        return Estimate(alpha_s=small / 2, rate_bps=rate)

    @property
    def _alpha_s(self) -> float:
        return max(estimate.alpha_s for estimate in self._estimates.values())

    @property
    def _rate_bps(self) -> float:
        return min(estimate.rate_bps for estimate in self._estimates.values())

    # -- sizes ------------------------------------------------------------------------------------------

    def _sizes(self, share_of_budget: float, sent: int) -> list[int]:
        """Sizes of a curve: up to the largest that ROUNDS of them fit in for, where one takes a fixed time
        and `sent` times its bytes of a medium that all messages share."""
        allowed = share_of_budget * self._config.budget_s / ROUNDS
        sizes = [*SMALL, LEAST_BYTES // 2, LEAST_BYTES]
        while sizes[-1] * 2 <= self._config.max_bytes:
            longer = [*sizes, sizes[-1] * 2]
            cost = sum(
                2 * self._alpha_s * self._exchange.world_size + 8 * size * sent / self._rate_bps for size in longer
            )
            if cost > allowed:
                break
            sizes = longer
        return sizes

    def _cost_s(self, size: int, sent: int) -> float:
        return 2 * self._alpha_s * self._exchange.world_size + 8 * size * sent / self._rate_bps

    def _order(self, sizes: list[int], sent: int) -> list[int]:
        """A round's sizes, small ones several times, shuffled: alike on every rank, by the one seed."""
        repeated = [
            size for size in sizes for _ in range(_between(REPEAT_S / self._cost_s(size, sent), 1, MOST_REPEATS))
        ]
        self._random.shuffle(repeated)
        return repeated

    # -- curves -----------------------------------------------------------------------------------------

    def curves(self) -> None:
        ranks = self._exchange.world_size
        sizes = self._sizes(CURVES / len(self._pairs), 1)
        gathered = self._sizes(COLLECTIVES / 2, ranks * (ranks - 1))
        until = time.monotonic() + (CURVES + COLLECTIVES) * self._config.budget_s
        for number in range(MOST_ROUNDS):
            began = time.monotonic()
            self._set_clocks()
            self._pair_round(sizes, swap=number % 2 == 1)
            self._collective_round(gathered, ranks * (ranks - 1))
            self._gather()
            now = time.monotonic()
            if number == 0:  # the second round measures the other direction, however long the first took
                continue
            if not share([float(now + (now - began) < until)])[0][0]:
                return

    def _pair_round(self, sizes: list[int], swap: bool) -> None:
        """Each size of each pair; the directions take turns."""
        for a, b in self._pairs:
            self._timer.pair(*((b, a) if swap else (a, b)), self._order(sizes, 1))
            barrier()

    def _collective_round(self, sizes: list[int], sent: int) -> None:
        collectives: list[Route] = ["mesh", "ring"]
        for size in self._order(sizes, sent):
            self._random.shuffle(collectives)
            for op in collectives:
                self._count += 1
                self._timer.collective(op, size, self._count)

    # -- round trips and long transfers -----------------------------------------------------------------

    def round_trips(self) -> None:
        pairs, budget = len(self._pairs), self._config.budget_s
        trip = 2 * self._alpha_s
        idle = _between(IDLE * budget / pairs / (0.2 + trip), 5, 50)
        busy = _between(BUSY * budget / pairs / trip, 20, 500)
        self._set_clocks()
        for measure, count in ((self._timer.idle_trips, idle), (self._timer.busy_trips, busy)):
            for a, b in self._pairs:
                barrier()  # no other pair's messages meanwhile
                measure(a, b, count)
        self._gather()

    def long_transfers(self) -> None:
        duration = min(BULK * self._config.budget_s / len(self._pairs), MOST_BULK_S)
        self._set_clocks()
        for a, b in self._pairs:
            size = self._estimates[a, b].rate_bps * CHUNK_S / 8
            barrier()
            self._timer.bulk(a, b, _between(size, LEAST_BYTES, min(1 << 22, self._config.max_bytes)), duration)
        barrier()  # answers to the last round trips are waited for
        self._gather()

    # -- records ----------------------------------------------------------------------------------------

    def _set_clocks(self) -> None:
        """Offsets of the workers' clocks for the records until the next call."""
        rank = self._exchange.rank
        for worker in range(1, self._exchange.world_size):
            barrier()
            if rank in (0, worker):
                offset, _ = comm.estimate_offset(rank, worker, CLOCK_TRIPS)
                self._offsets[worker] = offset

    def _gather(self) -> None:
        """Everyone's records since the last call to rank 0, on its clock."""
        own = self._timer.take()
        if self._exchange.rank:
            comm.send_bytes(msgspec.msgpack.encode(own), 0)
            return
        for worker in range(1, self._exchange.world_size):
            theirs = msgspec.msgpack.decode(comm.receive_bytes(worker), type=list[Probe])
            own += [_shifted(probe, self._offsets[worker]) for probe in theirs]
        self._probes += own
        self._keep(own)

    def report(self, link: LinkSpec, command: str) -> LinkReport:
        expected = expected_goodput_bps(link)
        pairs = tuple(pair_report(self._probes, a, b) for a, b in self._pairs)
        ranks = self._exchange.world_size
        return LinkReport(
            link=str(link),
            ranks=ranks,
            created=now_text(),
            seconds=time.monotonic() - self._began,
            pairs=pairs,
            collectives=tuple(collective_report(self._probes, op, ranks) for op in ("mesh", "ring")),
            configured_mbps=None if link.rate_bps is None else link.rate_bps / 1e6,
            expected_goodput_mbps=None if expected is None else expected / 1e6,
            goodput_over_configured=goodput_ratio(pairs, expected),
            power_save=power_save(pairs, wifi_power_save().found),
            rtt_over="udp" if self._timer.pings else "exchange",
            host=host.describe(torch.get_num_threads()),
            seed=self._config.seed,
            command=command,
        )


def _durations(trips: Sequence[tuple[int, int]]) -> list[float]:
    return [(end - start) / 1e9 for start, end in trips]


def _between(value: float, least: int, most: int) -> int:
    return int(np.clip(value, least, most))


def _shifted(probe: Probe, offset_ns: int) -> Probe:
    return msgspec.structs.replace(probe, start_ns=probe.start_ns - offset_ns, end_ns=probe.end_ns - offset_ns)
