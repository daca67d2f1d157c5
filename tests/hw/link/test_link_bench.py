"""The link bench over real groups of processes, and its arithmetic on made-up samples."""

import socket
import threading

import msgspec
import pytest
from support.link import check, measure

from hw.link.report import (
    BUSY,
    IDLE,
    LinkConfig,
    collective_times,
    expected_goodput_bps,
    goodput_bps,
    one_way,
    pair_report,
    power_save,
    trips_ms,
)
from hw.link.round_trip import Echo, Pinger
from hw.link.view import link_page
from prism.errors import TraceError
from prism.link import LinkSpec
from prism.trace import Probe


@pytest.mark.parametrize("ranks", [2, 3])
def test_every_figure_is_measured_on_the_loopback(tmp_path, ranks):
    report, probes = measure(ranks, LinkConfig(budget_s=2, max_bytes=1 << 20), tmp_path)
    check(report, probes, ranks)
    assert report.rtt_over == "udp"
    assert all(pair.rtt_loaded_ms is not None for pair in report.pairs)
    assert report.configured_mbps is None and report.goodput_over_configured is None
    page = link_page(report, probes)
    assert page.count("<svg") == 2 and "src=" not in page and 'href="http' not in page  # needs no other file


def test_a_shaped_link_is_measured_through_its_medium(tmp_path):
    report, probes = measure(2, LinkConfig(budget_s=2), tmp_path, "shaper:100Mbps,2ms")
    check(report, probes, 2)
    (pair,) = report.pairs
    assert (report.configured_mbps, report.expected_goodput_mbps) == (100, 50)
    assert pair.alpha_ms >= 2.0
    assert report.rtt_over == "exchange" and pair.rtt_loaded_ms is None  # its medium sees the exchange alone


def probe(op, shape, start_s, end_s, *, rank=0, size=0, calls=1, warmup=False):
    return Probe(
        rank=rank,
        op=op,
        shape=shape,
        flops=0,
        bytes=size,
        start_ns=round(1e9 * start_s),
        end_ns=round(1e9 * end_s),
        calls=calls,
        warmup=warmup,
    )


def test_half_of_the_smallest_echo_is_the_way_back():
    probes = [probe("pair", (0, 1, 1), 0, 0.002), probe("pair", (1, 0, 1000), 0, 0.011)]
    probes.append(probe("pair", (0, 1, 1), 0, 1.0, warmup=True))
    sizes, seconds = one_way(probes, 0, 1)
    assert sizes == [1, 1000] and seconds == pytest.approx([0.001, 0.010])
    with pytest.raises(TraceError, match="ranks 0 and 2"):
        one_way(probes, 0, 2)


def test_the_slowest_rank_counts():
    probes = [probe("mesh", (2, 64, 1), 1.0, 1.5), probe("mesh", (2, 64, 1), 1.1, 1.7, rank=1)]
    probes.append(probe("mesh", (2, 64, 2), 2.0, 2.5))  # the other rank's record is missing
    sizes, seconds = collective_times(probes, "mesh")
    assert sizes == [64] and seconds == pytest.approx([0.6])


def test_goodput_leaves_out_the_ramp_and_is_not_bent_by_clumps():
    slow = [probe("bulk", (0, 1, 1000), k, k + 1, size=1000) for k in range(10)]
    clumps = [
        probe("bulk", (0, 1, 1000), at, at + (0.4 if k == 0 else 0), size=1000)
        for at in [10 + 0.4 * number for number in range(100)]
        for k in range(4)
    ]
    assert goodput_bps(slow + clumps, 0, 1) == pytest.approx(8e3 * 4 / 0.4, rel=0.01)
    assert goodput_bps([], 0, 1) is None


def test_lost_round_trips_are_counted_and_left_out():
    probes = [probe("echo", (0, 1, IDLE), k, k + 0.01) for k in range(4)]
    probes.append(probe("echo", (0, 1, IDLE), 9, 9, calls=0))
    assert trips_ms(probes, 0, 1, IDLE) == (pytest.approx([10] * 4), 1)


def samples(idle_s):
    probes = [probe("pair", (0, 1, size), 0, 0.002 + 8 * size / 1e8) for size in (1, 1000, 100_000) for _ in range(3)]
    probes += [probe("echo", (0, 1, BUSY), k, k + 0.001) for k in range(4)]
    return probes + [probe("echo", (0, 1, IDLE), k, k + idle_s) for k in range(4)]


def test_a_sleeping_radio_is_found_by_its_idle_round_trips():
    asleep = power_save([pair_report(samples(0.055), 0, 1)], "off")
    assert asleep.checked and asleep.found and asleep.extra_ms == pytest.approx(54)
    awake = power_save([pair_report(samples(0.0015), 0, 1)], "off")
    assert awake.checked and awake.found is False


def test_what_was_not_measured_is_null():
    report = pair_report(samples(0.001), 0, 1)
    plain = msgspec.to_builtins(report)
    assert plain["rtt_loaded_ms"] is None and plain["goodput_mbps"] is None
    assert plain["jitter_ms"] == pytest.approx(0)
    assert expected_goodput_bps(LinkSpec.parse("loopback")) is None


def test_an_echo_answers_stations_only():
    with Echo("127.0.0.1", ["127.0.0.1"]) as echo, Pinger("127.0.0.1", "127.0.0.1", echo.port) as pinger:
        start, end = pinger.trip(5.0)
        assert end > start
    with Echo("127.0.0.1", ["192.0.2.1"]) as echo, Pinger("127.0.0.1", "127.0.0.1", echo.port) as pinger:
        assert pinger.trip(0.3)[1] == 0


def test_packets_without_an_answer_are_lost_not_waited_for():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
        deaf.bind(("127.0.0.1", 0))
        stop = threading.Event()
        threading.Timer(0.2, stop.set).start()
        with Pinger("127.0.0.1", "127.0.0.1", deaf.getsockname()[1]) as pinger:
            trips = pinger.while_open(stop, 0.01, 0.1)
    assert len(trips) > 3 and all(end == 0 for _, end in trips)
