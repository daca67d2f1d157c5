"""Namespaces, a real shaped link, and what a real model's exchange does on it. Needs root."""

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from support.link import transfer_s
from support.waiting import until

from hw.testbed.access_point import VNET, AccessPoint, TapJob
from hw.testbed.namespaces import NamespaceTestbed, netem_arguments
from prism.errors import ConfigError
from prism.link import LinkSpec
from prism.trace import read_trace
from prism.trace.metrics import bandwidths

root = pytest.mark.root


def interfaces() -> set[str]:
    return set(os.listdir("/sys/class/net"))


@root
@pytest.mark.parametrize(
    ("link", "medium"), [("testbed:100Mbps", "ifb+tbf"), ("testbed:100Mbps,0s,0s,0%,overhead=1B", "tap")]
)
def test_a_payload_takes_two_crossings_at_the_rate(link, medium):
    with NamespaceTestbed(LinkSpec.parse(link), 2) as bed:
        assert bed.facts()["medium"] == medium
        ideal = 2 * 8 * 500_000 / 100e6
        assert transfer_s(bed, 500_000) > ideal * 0.97  # how much longer is measured in tests/measure
        bed.set_rate(400e6)
        assert transfer_s(bed, 500_000) > ideal / 4 * 0.97


@root
def test_latency_counts_once_a_way():
    with NamespaceTestbed(LinkSpec.parse("testbed:1Gbps,5ms"), 2) as bed:
        assert transfer_s(bed, 1) > 0.010


@root
def test_two_testbeds_side_by_side_and_nothing_is_left():
    before = interfaces()
    link = LinkSpec.parse("testbed:100Mbps")
    with NamespaceTestbed(link, 2) as one, NamespaceTestbed(link, 3) as other:
        assert one.addresses == other.addresses[:2]
        assert transfer_s(one, 1000) > 0 and transfer_s(other, 1000) > 0
        assert interfaces() == before
        path = Path(one.stations[0].path)
        assert path.exists()
    assert not path.exists()


@root
def test_a_killed_parent_leaves_nothing():
    command = [sys.executable, "-m", "hw.cli.main", "testbed", "--link", "testbed:50Mbps,2ms", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        said = json.loads(process.stdout.readline())
        assert said["medium"] in ("tap", "ifb+tbf+netem")
        spaces = {os.stat(row["netns"]).st_ino for row in said["stations"]}
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert until(lambda: not spaces & namespaces())


def namespaces() -> set[int]:
    """Network namespaces that a process lives in."""
    alive = set()
    for entry in os.scandir("/proc"):
        with contextlib.suppress(OSError):
            alive.add(os.stat(f"/proc/{entry.name}/ns/net").st_ino)
    return alive


@root
def test_a_rate_trace_drives_the_rate(tmp_path):
    path = tmp_path / "wifi.csv"
    path.write_text("time_s,mbps\n0,400\n0.5,20\n1000,400\n")
    with NamespaceTestbed(LinkSpec.parse(f"testbed:{path}"), 2) as bed:
        bed.play()
        slow = 2 * 8 * 100_000 / 20e6
        assert until(lambda: transfer_s(bed, 100_000, times=1) > 0.97 * slow)


@root
def test_what_a_real_model_sends_crosses_the_medium_twice(tmp_path):
    """Payloads of 640 kB by a trained ViT on real images: bytes arrive at no more than half of the medium's rate."""
    path = tmp_path / "t.jsonl"
    command = [sys.executable, "-m", "hw.cli.main", "run", "fashion-vit", "--json", "--link", "testbed:200Mbps,5ms"]
    flags = ["--batch", "100", "--batches", "2", "--trace", str(path)]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["agreement"] == 1 and seen["bytes_per_exchange"] == 100 * 25 * 64 * 4
    assert seen["host"]["testbed"]["medium"] in ("tap", "ifb+tbf+netem")
    trace = read_trace(path)
    assert max(bandwidths(list(trace.spans))) < 1.02 * 100
    steps = 3 + 6  # the header, the follower's readiness, the rows, and an exchange in each block
    assert min(batch.end_ns - batch.start_ns for batch in trace.batches) > steps * 5e6


def test_without_root_it_is_one_line(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ConfigError, match="needs root"), NamespaceTestbed(LinkSpec.parse("testbed:100Mbps"), 2):
        pass


def test_netem_is_told_the_same():
    link = LinkSpec.parse("testbed:100Mbps,2ms,500us,1%")
    assert netem_arguments(link) == ["delay", "2000us", "500us", "distribution", "normal", "loss", "1%"]
    assert netem_arguments(LinkSpec.parse("testbed:100Mbps")) == []


def frame(target: int, length: int, segment: int = 0) -> bytes:
    head = VNET.pack(0, 1 if segment else 0, 66, segment, 0, 0)
    return head + bytes([2, 0, 0, 0, 0, target]) + bytes(length - 6)


def point(**fields) -> AccessPoint:
    job = dict(files=(-1, -1, -1), rate_bps=1e6, latency_s=0.0, jitter_s=0.0, loss=0.0, overhead_bytes=0)
    return AccessPoint(TapJob(**{**job, **fields}))


def test_the_air_is_one_resource():
    ap = point(latency_s=0.5)
    full = 2 * 1448 * 8 / 1e6
    ap.accept(0, frame(2, 1514), now=0.0)
    ap.accept(1, frame(1, 1514), now=0.0)
    assert [when for when, *_ in sorted(ap.due)] == pytest.approx([full + 0.5, 2 * full + 0.5])
    assert ap.airtime_s(frame(2, 66 + 10 * 1448, segment=1448)) == pytest.approx(10 * full)
    assert point(overhead_bytes=100).airtime_s(frame(2, 1514)) == pytest.approx(2 * 1548 * 8 / 1e6)


def test_broadcast_reaches_all_others_and_loss_loses():
    ap = point()
    ap.accept(0, VNET.pack(0, 0, 0, 0, 0, 0) + b"\xff" * 6 + bytes(60), now=0.0)
    assert sorted(station for _, _, station, _ in ap.due) == [1, 2]
    lossy = point(loss=0.5)
    for _ in range(400):
        lossy.accept(0, frame(2, 100), now=0.0)
    assert 140 < len(lossy.due) < 260
    assert struct.calcsize("<BBHHHH") == VNET.size == 10
