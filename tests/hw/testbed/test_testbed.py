"""Namespaces, a real shaped link, and what a real model's exchange does on it. Needs root."""

import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from support.link import connection, stream_share

from hw.testbed.access_point import VNET, AccessPoint, TapJob
from hw.testbed.namespaces import NamespaceTestbed, netem_arguments
from prism.errors import ConfigError
from prism.link import LinkSpec
from prism.trace import read_trace
from prism.trace.metrics import bandwidths, summarise

root = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
RUN = [sys.executable, "-m", "hw.cli.main", "run", "fashion-vit", "--json"]


def interfaces() -> set[str]:
    return set(os.listdir("/sys/class/net"))


def transfer_s(bed: NamespaceTestbed, size: int) -> float:
    """Best of a few: a payload from station 0 to station 1, until the answer that it is there."""
    times = []
    with connection(bed) as (client, peer):

        def answer() -> None:
            for _ in range(6):
                left = size
                while left and (got := len(peer.recv(min(left, 1 << 20)))):
                    left -= got
                peer.sendall(b"!")

        other = threading.Thread(target=answer)
        other.start()
        for _ in range(6):
            began = time.perf_counter()
            client.sendall(bytes(size))
            assert client.recv(1)
            times.append(time.perf_counter() - began)
        other.join()
    return min(times)


@root
@pytest.mark.parametrize(
    ("link", "medium"), [("testbed:100Mbps", "ifb+tbf"), ("testbed:100Mbps,0s,0s,0%,overhead=1B", "tap")]
)
def test_a_payload_takes_two_crossings_at_the_rate(link, medium):
    with NamespaceTestbed(LinkSpec.parse(link), 2) as bed:
        assert bed.facts()["medium"] == medium
        ideal = 2 * 8 * 500_000 / 100e6
        assert ideal * 0.97 < transfer_s(bed, 500_000) < ideal * 1.1
        bed.set_rate(400e6)
        assert ideal / 4 * 0.97 < transfer_s(bed, 500_000) < ideal / 4 * 1.15


@root
def test_latency_counts_once_a_way():
    with NamespaceTestbed(LinkSpec.parse("testbed:1Gbps,5ms"), 2) as bed:
        assert 0.010 < transfer_s(bed, 1) < 0.014


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
    time.sleep(0.3)
    alive = set()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                alive.add(os.stat(f"/proc/{entry.name}/ns/net").st_ino)
            except OSError:
                continue
    assert not spaces & alive


@root
def test_a_rate_trace_drives_the_rate(tmp_path):
    path = tmp_path / "wifi.csv"
    path.write_text("time_s,mbps\n0,400\n0.5,100\n100,400\n")
    with NamespaceTestbed(LinkSpec.parse(f"testbed:{path}"), 2) as bed:
        fast = transfer_s(bed, 400_000)
        bed.play()
        time.sleep(0.8)
        assert 3.4 < transfer_s(bed, 400_000) / fast < 4.6


def run(link: str, trace: Path, *flags: str) -> dict:
    done = subprocess.run(
        [*RUN, "--link", link, "--trace", str(trace), *flags], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert 0.98 < summarise(read_trace(trace)).coverage <= 1
    return json.loads(done.stdout)


@root
@pytest.mark.parametrize(("mbps", "batches"), [(100, 5), (400, 12)])
def test_what_a_real_model_sends_takes_its_time(tmp_path, mbps, batches):
    """Payloads of 640 kB by a trained ViT on real images: bytes arrive at half of the medium's rate, both directions
    together. What a batch shows is a lower bound (ranks in unequal step), so the best counts; and a busy host's medium loses
    rate, which a plain stream just before or after shows as well."""
    path, link = tmp_path / "t.jsonl", f"testbed:{mbps}Mbps"
    before = stream_share(link)
    seen = run(link, path, "--batch", "100", "--batches", str(batches))
    assert seen["bytes_per_exchange"] == 100 * 25 * 64 * 4
    assert 0.9 * min(before, stream_share(link), 1) < max(bandwidths(list(read_trace(path).spans))) / (mbps / 2) < 1.02


@root
def test_latency_is_added_once_a_dependent_step(tmp_path):
    flags = ["--segments", "5", "--batches", "5"]
    plain = run("testbed:400Mbps", tmp_path / "t.jsonl", *flags)
    late = run("testbed:400Mbps,20ms", tmp_path / "t.jsonl", *flags)
    # the header, the worker's word that it is ready, the rows, an exchange in each block; the head reads a row
    # that the leader has
    steps = 3 + 6
    added = late["latency_ms"]["p50"] - plain["latency_ms"]["p50"]
    assert 0.85 < added / (20 * steps) < 1.15
    assert late["host"]["testbed"]["medium"] in ("tap", "ifb+tbf+netem")


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
