"""The command as a user runs it: real processes, real weights, real images, and every way to fail."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest
from support.waiting import until

from hw.probe.pace import STRETCHES
from prism.trace import PACE, Span, read_trace
from prism.trace.metrics import pace_ms, summarise

COMMAND = [sys.executable, "-m", "hw.cli.main", "run"]


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    """The place of a run's own files, by which its ranks are told from those of other runs."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def prism(*args, timeout=120):
    return subprocess.run([*COMMAND, *args], capture_output=True, text=True, timeout=timeout)


def ranks(scratch) -> dict[int, int]:
    """Find the rank processes of this test, by rank."""
    found = {}
    for entry in os.scandir("/proc"):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{entry.name}/cmdline").read_text().split("\0")
            job = next((word for word in words if word.startswith(str(scratch))), "")
            if "hw.run.rank_main" in words and job:
                found[int(Path(job).stem.rpartition("-")[2])] = int(entry.name)
    return found


def test_modes_agree_and_the_bytes_are_the_formulas(tmp_path):
    results = {}
    for name, flags in {
        "local": ["--mode", "local"],
        "full": ["--mode", "full", "--trace", str(tmp_path / "full.jsonl"), "--perfetto", str(tmp_path / "p.json")],
        "means": ["--segments", "10", "--wire", "int4", "--link", "shaper:200Mbps,1ms"],
    }.items():
        done = prism("fashion-vit", "--batch", "10", "--batches", "10", "--json", *flags)
        assert done.returncode == 0, done.stderr
        results[name] = json.loads(done.stdout)
    local, full, means = results["local"], results["full"], results["means"]
    assert local["top1"] > 0.8
    assert full["top1"] == local["top1"]
    assert full["agreement"] == 1 and full["max_rel_error"] < 1e-4
    assert full["bytes_per_exchange"] == 10 * 25 * 64 * 4
    assert means["bytes_per_exchange"] == 10 * 10 * 64 // 32 * 20
    assert means["link"] == "shaper:200Mbps,1ms" and means["latency_ms"]["p50"] > 6  # a latency per block
    assert set(full["split_ms"]) == {"compute", "stage_d2h", "wait", "wire", "stage_h2d"}
    assert full["energy_j"] is None
    trace = read_trace(tmp_path / "full.jsonl")
    assert 0.98 < summarise(trace).coverage <= 1.0
    counts = Counter((probe.rank, probe.warmup) for probe in trace.probes if probe.op == PACE)
    assert counts == {(rank, warmup): 2 if warmup else 2 * STRETCHES for rank in (0, 1) for warmup in (False, True)}
    assert {*pace_ms(trace)} == {0, 1} and min(pace_ms(trace).values()) > 0
    sent = [s.sent_bytes for s in trace.records if isinstance(s, Span) and s.op == "exchange" and s.kind == "wire"]
    assert sent and set(sent) == {10 * 25 * 64 * 4}
    assert json.loads((tmp_path / "p.json").read_bytes())["traceEvents"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["nosuchmodel"], "unknown"),
        (["vit_base_patch16_224"], "--weights random"),
        (["--segments", "26"], "at most 25"),
        (["--devices", "51"], "at most 50 devices"),
        (["--batch", "0"], "batch 0"),
        (["--images", "/nowhere"], "is no folder"),
        (["--interface", "wlan9"], "doesn't exist"),
        (["--link", "shaper:100"], "Mbps"),
        (["--mode", "nope"], "segment_means"),
        (["--trace", "/nowhere/t.jsonl"], "can't be written"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(prism_hw, scratch, flags, words):
    model = [] if flags[0] in ("nosuchmodel", "vit_base_patch16_224") else ["fashion-vit"]
    code, _, errors = prism_hw("run", *model, *flags)
    assert code == 2
    assert words in errors
    assert len(errors.strip().splitlines()) == 1
    assert not ranks(scratch)


def test_unreadable_and_mixed_images(tmp_path):
    from PIL import Image

    Image.new("L", (28, 28)).save(tmp_path / "a.png")
    Image.new("L", (40, 28)).save(tmp_path / "b.png")
    assert "--resize" in prism("fashion-vit", "--images", str(tmp_path)).stderr
    (tmp_path / "b.png").write_bytes(b"no image")
    done = prism("fashion-vit", "--images", str(tmp_path))
    assert done.returncode == 2 and "b.png" in done.stderr


@pytest.fixture
def started(request, tmp_path):
    """A long run that has written some batches, killed at the end.

    Ctrl-C reaches it even where the tests run in the background of a shell, whose children ignore it.
    """
    trace = tmp_path / "t.jsonl"
    timeout = "60" if request.node.get_closest_marker("cold") else "3"  # it also bounds the start
    flags = ["fashion-vit", "--batches", "1000000", "--timeout", timeout, "--trace", str(trace)]
    process = subprocess.Popen(
        [*COMMAND, *flags],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    try:
        while not (trace.exists() and trace.read_bytes().count(b'"type":"batch"') > 5):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.1)
        yield process, trace
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_peer_that_dies_or_freezes(started, scratch, how):
    process, trace = started
    os.kill(ranks(scratch)[1], how)
    assert process.wait(60) == 2
    assert "rank 1" in process.stderr.read()
    assert not ranks(scratch)
    assert len(read_trace(trace).batches) > 5


@pytest.mark.cold
def test_ctrl_c_ends_every_rank(started, scratch):
    process, trace = started
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert not ranks(scratch)
    assert read_trace(trace).batches


def test_no_orphan_when_the_parent_is_killed(started, scratch):
    process, _ = started
    assert len(ranks(scratch)) == 2
    process.kill()
    process.wait()
    assert until(lambda: not ranks(scratch))


def test_a_port_in_use_and_a_peer_that_never_comes(tmp_path):
    import socket

    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        done = prism("fashion-vit", "--port", str(port))
        assert done.returncode == 2 and "--port" in done.stderr
    devices = "".join(f'[[devices]]\nname = "{name}"\naddress = "127.0.0.1"\n' for name in "ab")
    (tmp_path / "c.toml").write_text(f"port = {port}\n{devices}")
    done = prism("fashion-vit", "--cluster", str(tmp_path / "c.toml"), "--timeout", "2")
    assert done.returncode == 2 and "rank 1 of 2 did not come" in done.stderr


def test_a_cluster_file_says_what_memory_a_device_has(tmp_path):
    path = tmp_path / "c.toml"
    devices = [f'[[devices]]\nname = "{name}"\naddress = "127.0.0.1"\n' for name in "ab"]
    path.write_text("port = 29512\n" + "".join(devices) + 'memory = "500kB"\n')
    done = prism("fashion-vit", "--cluster", str(path), "--replicas", "2", "--batch", "2")
    assert done.returncode == 2 and "2 replicas: rank 1 needs" in done.stderr and "limit is 500 kB" in done.stderr
    path.write_text("port = 29512\n" + "".join(devices) + 'memory = "500"\n')
    done = prism("fashion-vit", "--cluster", str(path))
    assert done.returncode == 2 and "devices[1]" in done.stderr and "as in 8GB" in done.stderr


@pytest.mark.cold
def test_a_cluster_of_two_commands(tmp_path):
    from hw.comm.interfaces import free_port

    devices = "".join(f'[[devices]]\nname = "{name}"\naddress = "127.0.0.1"\n' for name in "ab")
    path = tmp_path / "c.toml"
    path.write_text(f"port = {free_port('127.0.0.1')}\n{devices}")
    worker = [sys.executable, "-m", "hw.cli.main", "worker", "--cluster", str(path), "--name", "b"]
    with subprocess.Popen(worker, stderr=subprocess.PIPE, text=True) as other:
        done = prism("fashion-vit", "--cluster", str(path), "--json")
        assert done.returncode == 0, done.stderr
        assert other.wait(60) == 0
    assert json.loads(done.stdout)["agreement"] == 1
