"""How near a testbed comes to its rate and latency, and what a real model's exchange takes on it."""

import json
import subprocess
import sys
import time

import pytest
from support.link import stream_share, transfer_s
from support.reference import core_share, judged

from hw.testbed.namespaces import NamespaceTestbed
from prism.link import LinkSpec
from prism.trace import read_trace
from prism.trace.metrics import bandwidths, summarise

pytestmark = [pytest.mark.measure, pytest.mark.root]


@pytest.mark.parametrize("link", ["testbed:100Mbps", "testbed:100Mbps,0s,0s,0%,overhead=1B"], ids=["ifb+tbf", "tap"])
def test_a_payload_takes_two_crossings_at_the_rate(link):
    def measure():
        with NamespaceTestbed(LinkSpec.parse(link), 2) as bed:
            slow = transfer_s(bed, 500_000)
            bed.set_rate(400e6)
            return slow, transfer_s(bed, 500_000)

    def judge(found, _):
        ideal = 2 * 8 * 500_000 / 100e6
        assert ideal * 0.97 < found[0] < ideal * 1.1
        assert ideal / 4 * 0.97 < found[1] < ideal / 4 * 1.15

    judged(measure, judge, core_share)


def test_latency_counts_once_a_way():
    def measure():
        with NamespaceTestbed(LinkSpec.parse("testbed:1Gbps,5ms"), 2) as bed:
            return transfer_s(bed, 1)

    def judge(seconds, _):
        assert 0.010 < seconds < 0.014

    judged(measure, judge, core_share)


def test_a_rate_trace_drives_the_rate(tmp_path):
    path = tmp_path / "wifi.csv"
    path.write_text("time_s,mbps\n0,400\n0.5,100\n100,400\n")

    def measure():
        with NamespaceTestbed(LinkSpec.parse(f"testbed:{path}"), 2) as bed:
            fast = transfer_s(bed, 400_000)
            bed.play()
            time.sleep(0.8)
            return transfer_s(bed, 400_000) / fast

    def judge(ratio, _):
        assert 3.4 < ratio < 4.6

    judged(measure, judge, core_share)


def run(link, path, *flags):
    command = [
        sys.executable,
        "-m",
        "hw.cli.main",
        "run",
        "fashion-vit",
        "--json",
        "--link",
        link,
        "--trace",
        str(path),
    ]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), read_trace(path)


@pytest.mark.slow
@pytest.mark.parametrize(("mbps", "batches"), [(100, 5), (400, 12)])
def test_what_a_real_model_sends_takes_its_time(tmp_path, mbps, batches):
    """Bytes arrive at half of the medium's rate, both directions together.

    A batch shows a lower bound, as its ranks are in unequal step, so the best one counts.
    """
    link = f"testbed:{mbps}Mbps"

    def judge(found, stream):
        seen, trace = found
        assert seen["bytes_per_exchange"] == 100 * 25 * 64 * 4
        assert 0.98 < summarise(trace).coverage <= 1
        assert 0.9 * min(stream, 1) < max(bandwidths(list(trace.spans))) / (mbps / 2) < 1.02

    flags = ["--batch", "100", "--batches", str(batches)]
    judged(lambda: run(link, tmp_path / "t.jsonl", *flags), judge, lambda: stream_share(link), least=0.85)


def test_latency_is_added_once_a_dependent_step(tmp_path):
    flags = ["--segments", "5", "--batches", "5"]

    def measure():
        latencies = []
        for link in ("testbed:400Mbps", "testbed:400Mbps,20ms"):
            seen, trace = run(link, tmp_path / "t.jsonl", *flags)
            assert 0.98 < summarise(trace).coverage <= 1
            latencies.append(seen["latency_ms"]["p50"])
        return latencies[1] - latencies[0]

    def judge(added, _):
        # the header, the follower's readiness, the rows, an exchange in each block; the head reads a row
        # that the leader has
        assert 0.85 < added / (20 * (3 + 6)) < 1.15

    judged(measure, judge, core_share)
