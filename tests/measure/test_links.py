"""What the link bench finds on links of a known rate and latency."""

import json
import subprocess
import sys

import pytest
from support.link import check, collective_s, measure, stream_share
from support.reference import core_share, judged

from hw.link.report import LinkConfig
from prism.trace import read_trace

pytestmark = [pytest.mark.measure, pytest.mark.slow]
LEAST_STREAM = 0.85  # of a testbed's rate that a plain TCP stream gets where the host serves its medium in time


def measured_link(*args):
    command = [sys.executable, "-m", "hw.cli.main", "link", *args, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.root
@pytest.mark.parametrize(("link", "mbps"), [("testbed:100Mbps", 100), ("testbed:400Mbps,2ms", 400)])
def test_the_link_bench_finds_the_testbeds_rate_and_latency(link, mbps):
    """Never more than the link has, and what a plain stream gets of it just before or after."""
    latency = 2.0 if "2ms" in link else 0.0

    def judge(report, stream):
        (pair,) = report["pairs"]
        share = report["goodput_over_configured"]
        assert 0.95 * min(stream, 1) < share < 1.05
        assert 0.8 * share < pair["beta_mbps"] / (mbps / 2) < 1.2  # a fit over all sizes
        assert 2 * latency < pair["rtt_busy_ms"]["p50"] < 2 * latency + 2
        assert pair["rtt_loaded_ms"]["p50"] > pair["rtt_busy_ms"]["p50"]

    judged(
        lambda: measured_link("--link", link, "--budget", "6"), judge, lambda: stream_share(link), least=LEAST_STREAM
    )


@pytest.mark.root
def test_three_stations_share_the_air(tmp_path):
    raw, link = tmp_path / "raw.jsonl", "testbed:100Mbps"

    def bench():
        measured_link("--link", link, "--devices", "3", "--budget", "8", "--trace", str(raw))
        return read_trace(raw).probes

    def judge(probes, _):
        for op in ("mesh", "ring"):
            size, seconds = collective_s(probes, op)
            # every rank's bytes go to two others: six payloads that cross the air twice
            assert size > 30_000 and 0.95 < seconds / (12 * 8 * size / 100e6) < 1.35

    judged(bench, judge, lambda: stream_share(link), least=LEAST_STREAM)


@pytest.mark.root
def test_buffers_of_a_testbed_do_not_pass_for_the_link(tmp_path):
    link = "testbed:50Mbps"

    def judge(found, stream):
        report, probes = found
        check(report, probes, 2)
        share = report.goodput_over_configured
        assert share is not None and 0.95 * min(stream, 1) < share < 1.05
        (pair,) = report.pairs
        assert pair.rtt_loaded_ms.p50 > pair.rtt_idle_ms.p50  # it waits for the air behind the transfer

    bench = lambda: measure(2, LinkConfig(budget_s=8), tmp_path, link)  # noqa: E731
    judged(bench, judge, lambda: stream_share(link), least=LEAST_STREAM)


def test_a_shaped_link_has_half_of_its_rate_and_its_latency(tmp_path):
    def judge(found, _):
        report, probes = found
        check(report, probes, 2)
        (pair,) = report.pairs
        assert report.goodput_over_configured == pytest.approx(1, abs=0.05)
        assert pair.goodput_mbps == pytest.approx(50, rel=0.05)
        assert pair.curve.lines[-1].beta_bps == pytest.approx(50e6, rel=0.05)
        assert 2.0 <= pair.alpha_ms < 4.0  # the latency once, not twice
        mesh = report.collectives[0]
        assert mesh.curve.lines[-1].beta_bps == pytest.approx(25e6, rel=0.1)  # both directions share the air

    judged(lambda: measure(2, LinkConfig(budget_s=8), tmp_path, "shaper:100Mbps,2ms"), judge, core_share)
