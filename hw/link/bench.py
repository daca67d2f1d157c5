"""The link bench: alpha, beta and break of every pair and collective, round trips, sustained goodput.

Every rank of a group calls `run_link`; the leader gets the report. Sizes and repeats follow from a first
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

from hw.comm.clocks import estimate_offset
from hw.comm.control import Control
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
from hw.link.timer import LinkTimer
from hw.machine import facts
from prism.errors import ConfigError
from prism.link import LinkSpec
from prism.nn.exchange import Exchange
from prism.plan import Route
from prism.trace import Probe, now_text
from prism.trace.align import shifted

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


class PairEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """A first idea of one pair: seconds of a small message one way, and payload bits per second."""

    alpha_s: float
    rate_bps: float


def run_link(
    control: Control,
    exchange: Exchange,
    addresses: Sequence[str],
    link: LinkSpec,
    config: LinkConfig,
    *,
    keep: Keep = lambda probes: None,
    command: str = "",
) -> LinkReport | None:
    """Measure the links of a group. All ranks call it with the same arguments; returns the report on the leader alone.

    exchange: over the control's group, with a HostStager, or copies to a GPU would count as link. addresses: of each
    rank's interface, by rank. keep: called on the leader with raw probes as they come. Raises ConfigError and
    PeerLostError.
    """
    if len(addresses) != exchange.world_size or exchange.world_size < 2:
        raise ConfigError(
            f"{len(addresses)} addresses for {exchange.world_size} rank(s): a link needs one each of at least 2"
        )
    with Echo(addresses[exchange.rank], addresses) as echo:
        bench = _LinkBench(control, exchange, addresses, config, keep)
        bench.meet(echo.port if link.kind != "shaper" else 0)  # the shaper holds back the exchange alone
        bench.estimate()
        bench.curves()
        bench.round_trips()
        bench.long_transfers()
        control.barrier()  # nobody stops answering before all are done
    return bench.report(link, command) if exchange.rank == 0 else None


class _LinkBench:
    def __init__(
        self, control: Control, exchange: Exchange, addresses: Sequence[str], config: LinkConfig, keep: Keep
    ) -> None:
        self._control, self._exchange, self._addresses = control, exchange, addresses
        self._config, self._keep = config, keep
        self._pairs = list(itertools.combinations(range(exchange.world_size), 2))
        self._random = random.Random(config.seed)
        self._estimates: dict[tuple[int, int], PairEstimate] = {}
        self._probes: list[Probe] = []
        self._count = 0
        self._began = 0.0
        self._offsets: dict[int, int] = {}
        self._timer = self._timer_with(())

    def _timer_with(self, ports: Sequence[int]) -> LinkTimer:
        config = self._config
        return LinkTimer(self._control, self._exchange, self._addresses, ports, config.max_bytes, config.seed)

    # -- before -----------------------------------------------------------------------------------------

    def meet(self, port: int) -> None:
        """Share the ports of the UDP echoes and try them; where one is silent, round trips take the exchange."""
        ports = [int(row[0]) for row in self._control.share([port])]
        self._began = time.monotonic()
        if not all(ports):
            return
        trial = self._timer_with(ports)
        for a, b in self._pairs:
            trial.busy_trips(a, b, 3)
        answered = not (trips := trial.take()) or any(probe.calls for probe in trips)
        if all(row[0] for row in self._control.share([float(answered)])):
            self._timer = trial

    def estimate(self) -> None:
        """Get a first idea of every pair, alike on all ranks."""
        for a, b in self._pairs:
            own = self._estimate(a, b)
            alpha, rate = self._control.share([own.alpha_s, own.rate_bps])[a]
            self._estimates[a, b] = PairEstimate(alpha_s=alpha, rate_bps=rate)

    def _estimate(self, a: int, b: int) -> PairEstimate:
        rank = self._exchange.rank
        if rank not in (a, b):
            return PairEstimate(alpha_s=0.0, rate_bps=0.0)
        small = min(_durations(self._timer.echoes(a, b, [1] * 5)), default=0.0)
        rate = 0.0
        for size in TRIALS:
            took = min(_durations(self._timer.echoes(a, b, [size])), default=0.0)
            rate = 8 * size / max(took - small, 1e-6)
            if rank == a:
                self._control.send(b"more" if took < LONG_S else b"", b)
            elif not self._control.receive(a):
                break
            if rank == a and took >= LONG_S:
                break
        return PairEstimate(alpha_s=small / 2, rate_bps=rate)

    @property
    def _alpha_s(self) -> float:
        return max(estimate.alpha_s for estimate in self._estimates.values())

    @property
    def _rate_bps(self) -> float:
        return min(estimate.rate_bps for estimate in self._estimates.values())

    # -- sizes ------------------------------------------------------------------------------------------

    def _sizes(self, share_of_budget: float, sent: int) -> list[int]:
        """Choose the sizes of a curve: as many as ROUNDS of them fit into their share of the budget.

        A message takes a fixed time, and `sent` times its bytes of a medium that all messages share.
        """
        allowed = share_of_budget * self._config.budget_s / ROUNDS
        sizes = [*SMALL, LEAST_BYTES // 2, LEAST_BYTES]
        while sizes[-1] * 2 <= self._config.max_bytes:
            longer = [*sizes, sizes[-1] * 2]
            if sum(self._cost_s(size, sent) for size in longer) > allowed:
                break
            sizes = longer
        return sizes

    def _cost_s(self, size: int, sent: int) -> float:
        return 2 * self._alpha_s * self._exchange.world_size + 8 * size * sent / self._rate_bps

    def _order(self, sizes: list[int], sent: int) -> list[int]:
        """Shuffle a round's sizes, small ones several times: alike on every rank, by the one seed."""
        repeated = [
            size for size in sizes for _ in range(_between(REPEAT_S / self._cost_s(size, sent), 1, MOST_REPEATS))
        ]
        self._random.shuffle(repeated)
        return repeated

    # -- curves -----------------------------------------------------------------------------------------

    def curves(self) -> None:
        """Measure every pair and collective over sizes, in rounds, until their share of the budget is spent."""
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
            if not self._control.share([float(now + (now - began) < until)])[0][0]:
                return

    def _pair_round(self, sizes: list[int], swap: bool) -> None:
        """Measure each size of each pair; the directions alternate between rounds."""
        for a, b in self._pairs:
            self._timer.pair(*((b, a) if swap else (a, b)), self._order(sizes, 1))
            self._control.barrier()

    def _collective_round(self, sizes: list[int], sent: int) -> None:
        collectives: list[Route] = ["mesh", "ring"]
        for size in self._order(sizes, sent):
            self._random.shuffle(collectives)
            for op in collectives:
                self._count += 1
                self._timer.collective(op, size, self._count)

    # -- round trips and long transfers -----------------------------------------------------------------

    def round_trips(self) -> None:
        """Measure idle and busy round trips of every pair."""
        pairs, budget = len(self._pairs), self._config.budget_s
        trip = 2 * self._alpha_s
        idle = _between(IDLE * budget / pairs / (0.2 + trip), 5, 50)
        busy = _between(BUSY * budget / pairs / trip, 20, 500)
        self._set_clocks()
        for measure, count in ((self._timer.idle_trips, idle), (self._timer.busy_trips, busy)):
            for a, b in self._pairs:
                self._control.barrier()  # no other pair's messages meanwhile
                measure(a, b, count)
        self._gather()

    def long_transfers(self) -> None:
        """Measure the sustained goodput of every pair, and round trips under that load."""
        duration = min(BULK * self._config.budget_s / len(self._pairs), MOST_BULK_S)
        self._set_clocks()
        for a, b in self._pairs:
            size = self._estimates[a, b].rate_bps * CHUNK_S / 8
            self._control.barrier()
            self._timer.bulk(a, b, _between(size, LEAST_BYTES, min(1 << 22, self._config.max_bytes)), duration)
        self._control.barrier()  # answers to the last round trips are waited for
        self._gather()

    # -- records ----------------------------------------------------------------------------------------

    def _set_clocks(self) -> None:
        """Estimate the other ranks' clocks for the records until the next call."""
        control = self._control
        for peer in range(1, control.world_size):
            control.barrier()
            if control.rank in (0, peer):
                self._offsets[peer], _ = estimate_offset(control, peer, CLOCK_TRIPS)

    def _gather(self) -> None:
        """Send every rank's records since the last call to the leader, which shifts them to its own clock."""
        control, own = self._control, self._timer.take()
        if control.rank:
            control.send(msgspec.msgpack.encode(own), 0)
            return
        for peer in range(1, control.world_size):
            theirs = msgspec.msgpack.decode(control.receive(peer), type=list[Probe])
            own += [shifted(probe, self._offsets[peer]) for probe in theirs]
        self._probes += own
        self._keep(own)

    def report(self, link: LinkSpec, command: str) -> LinkReport:
        """Reduce the leader's records to the report."""
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
            power_save=power_save(pairs, facts.wifi_power_save().text),
            rtt_over="udp" if self._timer.pings else "exchange",
            host=facts.describe_machine(torch.get_num_threads()),
            seed=self._config.seed,
            command=command,
        )


def _durations(trips: Sequence[tuple[int, int]]) -> list[float]:
    return [(end - start) / 1e9 for start, end in trips]


def _between(value: float, least: int, most: int) -> int:
    return int(np.clip(value, least, most))
