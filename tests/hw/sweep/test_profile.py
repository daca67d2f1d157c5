"""The sweep: which cells, in which order, and what a kill at any moment leaves behind."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from support.simulated import MODELS
from support.waiting import until

from hw.sweep.config import SweepConfig, cells, check, left_out, visits
from prism.config import convert
from prism.errors import ConfigError
from prism.labels import plan_label
from prism.plan import Mode
from prism.trace import read_trace

COMMAND = [sys.executable, "-m", "hw.cli.main", "profile", "--config"]
SWEEP = SweepConfig(
    models=("a", "b"),
    segments=(5, 10),
    batches=(1, 4),
    rates=("100Mbps", "400Mbps"),
    wires=("fp32", "int4"),
    devices=(2, 3),
    repeats=3,
)
TOML = """
models = ["fashion-vit"]
modes = ["local", "full", "segment_means"]
segments = [5]
batches = [1, 10]
rates = ["100Mbps", "400Mbps"]
link = "shaper"
repeats = 2
"""


def profile(path, folder, *flags, text=TOML):
    path.write_text(text)
    return subprocess.run([*COMMAND, str(path), "-o", str(folder), *flags], capture_output=True, text=True, timeout=300)


def test_every_combination_is_a_cell_once():
    found = [config for config, _ in cells(SWEEP)]
    assert len({msgspec.json.encode(config) for config in found}) == len(found)
    shaped = 2 * 2 * 2 * 2 * (1 + 2) * 2  # models, batches, devices, rates, full and two L, wires
    assert len(found) == shaped + 2 * 2
    assert Counter(config.plan.mode for config in found)[Mode.LOCAL] == 4


WAYS = msgspec.structs.replace(SWEEP, models=("a",), devices=(2, 4), replicas=(2,), stages=(2,), microbatches=(2,))


def test_cells_of_replicas_and_stages_stand_beside_those_of_parts():
    before = cells(msgspec.structs.replace(WAYS, replicas=(), stages=(), microbatches=()))
    found = [config for config, _ in cells(WAYS)]
    assert found[: len(before)] == [config for config, _ in before]
    new = Counter(plan_label(config.plan).partition(",")[0] for config in found[len(before) :])
    assert set(new) == {"2 replicas", "2 stages", "2 replicas x 2 stages", "2 replicas x 2 parts", "2 stages x 2 parts"}
    assert all(config.plan.replicas <= config.batch for config in found)
    assert new["2 replicas"] == 2 * 2, "at batch 4 alone; rates, microbatches: no codec crosses"
    assert new["2 stages"] == 2 * 2 * 2 * 2, "batches, rates, codecs, microbatches"


def test_a_batch_that_is_too_small_for_replicas_is_listed():
    texts = left_out(WAYS)
    assert "2 replicas at batch 1: fewer samples than replicas" in texts
    assert all("at batch 1" in text and "replicas" in text for text in texts)
    assert left_out(SWEEP) == []


def test_a_cell_that_a_device_has_no_memory_for_is_refused():
    spec = MODELS["vit768"]
    check(WAYS, {"a": spec}, [1e9] * 4)
    check(WAYS, {"a": spec}, [None] * 4)
    with pytest.raises(ConfigError, match=r"a: local: rank 0 needs [\d.]+ MB .* limit is 1 MB"):
        check(WAYS, {"a": spec}, [1e6, None, None, None])


def test_no_cell_is_visited_twice_before_all_are_once():
    order = visits(SWEEP)
    assert len({visit.file for visit in order}) == len(order) == 3 * len(cells(SWEEP))
    assert [visit.repeat for visit in order] == sorted(visit.repeat for visit in order)
    first, second = ([v.config for v in order if v.repeat == r] for r in (0, 1))
    assert first != second and sorted(map(str, first)) == sorted(map(str, second))
    switches = sum(a.config.model != b.config.model for a, b in itertools.pairwise(order))
    assert switches <= 3 * 4  # a model is loaded once a repeat and number of ranks
    assert visits(SWEEP) == order


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bathces": ["a"]}, "did you mean 'batches'"),
        ({"models": []}, "models is empty"),
        ({"rates": []}, "rates is empty"),
        ({"segments": []}, "segments is empty"),
        ({"batches": [0]}, "batches"),
        ({"batches": [1, 1]}, "names one twice"),
        ({"modes": ["fast"]}, "modes"),
        ({"wires": ["int3"]}, "wires"),
        ({"repeats": 0}, "repeats"),
        ({"link": "loopback"}, "the loopback has none"),
    ],
)
def test_a_bad_sweep_names_the_key(change, words):
    data = {"models": ["a"], "segments": [5], "rates": ["100Mbps"], **change}
    with pytest.raises(ConfigError, match=words):
        convert(data, SweepConfig, "s.toml")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('rates = ["-5Mbps"]', "above 0"),
        ('rates = ["100"]', "Mbps"),
        ("segments = [26]", "at most 25"),
        ('models = ["nope"]', "unknown"),
        ('meter = "ina3221"', "ina3221"),
        ('latency = "2"', "unit"),
    ],
)
def test_a_sweep_that_can_not_run_is_one_line(tmp_path, prism_hw, line, words):
    key = line.split(" =")[0]
    path = tmp_path / "s.toml"
    path.write_text("\n".join(row for row in TOML.splitlines() if not row.startswith(key)) + f"\n{line}\n")
    code, _, errors = prism_hw("profile", "--config", str(path), "-o", str(tmp_path / "out"))
    assert code == 2
    assert words in errors and len(errors.strip().splitlines()) == 1


def test_dry_run_counts_and_measures_nothing(tmp_path, prism_hw):
    path = tmp_path / "s.toml"
    path.write_text(TOML)
    _, shown, _ = prism_hw("profile", "--config", str(path), "-o", str(tmp_path / "out"), "--dry-run", "--json")
    plan = json.loads(shown)
    assert len(plan["cells"]) == 10 and plan["visits"] == 20 and plan["done"] == 0
    assert plan["estimated_s"] == pytest.approx(2 * sum(cell["estimated_s"] for cell in plan["cells"]))
    assert not (tmp_path / "out").exists()


def test_killed_at_any_moment_it_goes_on(tmp_path):
    link = "testbed" if os.geteuid() == 0 else "shaper"  # namespaces need root
    text = TOML.replace("shaper", link)
    config, folder = tmp_path / "s.toml", tmp_path / "out"
    config.write_text(text)
    seen: dict[str, int] = {}
    moments = random.Random(3)
    for number in range(3):
        process = subprocess.Popen(
            [*COMMAND, str(config), "-o", str(folder)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        assert until(lambda wanted=2 * number: len(list(folder.glob("*.jsonl"))) >= wanted)
        time.sleep(moments.uniform(0, 1.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(0.3)
        files = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.jsonl")}
        assert {name: files.get(name) for name in seen} == seen, "a finished visit was lost or measured again"
        assert all(read_trace(folder / name).measured for name in files)
        seen = files
    done = profile(config, folder, "--json", text=text)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["visits"] == 20 and result["new"] == 20 - len(seen)
    assert {path.name for path in folder.glob("*.jsonl")} == {visit.file for visit in visits(convert_toml(text))}
    assert not list(folder.glob("*.part"))
    headers = [read_trace(path).header for path in folder.glob("*.jsonl")]
    assert {header.link for header in headers} == {"loopback", f"{link}:100Mbps", f"{link}:400Mbps"}
    assert all(header.host["tcp_congestion_control"] and header.config_hash for header in headers)


def convert_toml(text: str) -> SweepConfig:
    import tomllib

    return convert(tomllib.loads(text), SweepConfig, "s.toml")


def test_another_sweeps_folder_is_refused_and_more_repeats_are_not(tmp_path, prism_hw):
    short = TOML.replace("repeats = 2", "repeats = 1").replace(
        'modes = ["local", "full", "segment_means"]', 'modes = ["local"]'
    )
    assert profile(tmp_path / "s.toml", tmp_path / "out", text=short).returncode == 0
    more = profile(tmp_path / "s.toml", tmp_path / "out", "--repeats", "2", "--json", text=short)
    assert json.loads(more.stdout)["new"] == 2
    (tmp_path / "s.toml").write_text(short.replace("[1, 10]", "[1]"))
    code, _, errors = prism_hw("profile", "--config", str(tmp_path / "s.toml"), "-o", str(tmp_path / "out"))
    assert code == 2 and "another sweep" in errors


def test_a_folder_has_one_owner(tmp_path, prism_hw):
    import fcntl

    (tmp_path / "s.toml").write_text(TOML)
    folder = tmp_path / "out"
    folder.mkdir()
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, _, errors = prism_hw("profile", "--config", str(tmp_path / "s.toml"), "-o", str(folder))
    assert code == 2 and "in use" in errors


def test_a_full_disk_is_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "hw.cli.main", "run", "fashion-vit", "--trace", "/dev/full"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "No space left" in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_three_ranks_on_two_cores_are_marked(tmp_path):
    text = TOML.replace("repeats = 2", "repeats = 1\ndevices = [3]\nthreads = 2").replace("[1, 10]", "[1]")
    text = text.replace(', "400Mbps"', "").replace(', "segment_means"', "")
    assert profile(tmp_path / "s.toml", tmp_path / "out", text=text).returncode == 0
    cores = len(os.sched_getaffinity(0))
    headers = [read_trace(path).header for path in Path(tmp_path / "out").glob("*.jsonl")]
    assert {header.plan.ranks for header in headers} == {1, 3}
    assert {header.oversubscribed for header in headers} == {cores < 3 * 2}


def test_a_cluster_is_swept_by_its_terminal(tmp_path, prism_hw):
    from hw.comm.interfaces import free_port

    devices = "".join(f'[[devices]]\nname = "{name}"\naddress = "127.0.0.1"\n' for name in "ab")
    cluster = tmp_path / "c.toml"
    cluster.write_text(f"port = {free_port('127.0.0.1')}\n{devices}")
    text = TOML.replace('rates = ["100Mbps", "400Mbps"]', "").replace("shaper", "network").replace("[1, 10]", "[1]")
    (tmp_path / "s.toml").write_text(text)
    code, _, errors = prism_hw("profile", "--config", str(tmp_path / "s.toml"), "-o", str(tmp_path / "out"))
    assert code == 2 and "--cluster" in errors
    worker = [sys.executable, "-m", "hw.cli.main", "worker", "--cluster", str(cluster), "--name", "b"]
    with subprocess.Popen(worker, stderr=subprocess.PIPE, text=True) as other:
        done = profile(tmp_path / "s.toml", tmp_path / "out", "--cluster", str(cluster), "--json", text=text)
        assert done.returncode == 0, done.stderr
        assert other.wait(60) == 0
    assert json.loads(done.stdout)["visits"] == 2 * (1 + 2)
    headers = [read_trace(path).header for path in (tmp_path / "out").glob("*.jsonl")]
    assert {header.link for header in headers} == {"loopback", "network"}


def test_a_share_of_the_lines_is_the_seeds_and_keeps_local():
    half = msgspec.structs.replace(SWEEP, share=0.5, devices=(2,))
    found = [config for config, _ in cells(half)]
    lines = Counter((c.model, c.batch, c.plan) for c in found if c.plan.mode is not Mode.LOCAL)
    assert set(lines.values()) == {len(SWEEP.rates)}, "a line is measured over all rates, for its break-even"
    assert Counter(model for model, *_ in lines) == {"a": 6, "b": 6}
    assert sum(config.plan.mode is Mode.LOCAL for config in found) == 4
    assert found == [config for config, _ in cells(half)]
    other = [config for config, _ in cells(msgspec.structs.replace(half, seed=1))]
    assert [c.plan for c in found] != [c.plan for c in other]


def test_active_profiling_stops_when_its_decisions_are_good_enough(tmp_path):
    done = profile(tmp_path / "s.toml", tmp_path / "out", "--active", "--target", "5", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["visits"] + found["not_needed"] == 2 * found["cells"]
    assert found["visits"] < 2 * found["cells"] or found["expected_regret_pct"]["fashion-vit"] > 5
    assert len(list((tmp_path / "out").glob("*.jsonl"))) == found["visits"]
    again = json.loads(profile(tmp_path / "s.toml", tmp_path / "out", "--active", "--target", "5", "--json").stdout)
    assert again["new"] == 0 or again["expected_regret_pct"]["fashion-vit"] > 5
