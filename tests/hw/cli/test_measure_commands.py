"""link, probe and map as a user runs them."""

import json
import os
import subprocess
import sys

import pytest
from support.link import collective_s
from support.simulated import FULL, LOCAL, simulated
from support.warm import REPLACES

from prism.perfmap import build_map, load_map
from prism.perfmap.pooling import read_traces
from prism.trace import read_trace, write_trace

LIGHT_CELLS = """
from hw.probe import suite
every = suite.cells
suite.cells = lambda cuda: [cell for cell in every(cuda) if cell.flops < 5e8][::3]
"""


def prism(*args, timeout=200, replaces=""):
    command = [sys.executable, "-m", "hw.cli.main", *args]
    env = {**os.environ, REPLACES: replaces}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=env)


def test_a_map_is_shown_again_and_a_simulated_one_too(tmp_path):
    for number, trace in enumerate(simulated((LOCAL, FULL), rates_mbps=(50, 400))):
        write_trace(tmp_path / f"{number}.jsonl", trace.header, trace.records)
    build_map(read_traces([tmp_path])).save(tmp_path / "map.json")
    done = prism("map", str(tmp_path / "map.json"), "--html", str(tmp_path / "map.html"))
    assert done.returncode == 0, done.stderr
    assert "latency over local" in done.stdout and "<svg" in (tmp_path / "map.html").read_text()
    again = prism("map", str(tmp_path / "map.json"), "--json")
    assert json.loads(again.stdout)["map"] == json.loads((tmp_path / "map.json").read_text())
    (tmp_path / "map.json").write_text("{}")
    refused = prism("map", str(tmp_path / "map.json"))
    assert refused.returncode == 2 and "no performance map" in refused.stderr


@pytest.mark.root
def test_links_of_a_testbed_are_measured_each_and_together(tmp_path):
    page, raw = tmp_path / "link.html", tmp_path / "raw.jsonl"
    flags = ["--link", "testbed:100Mbps", "--devices", "3", "--budget", "3", "--output", str(page), "--trace", str(raw)]
    done = prism("link", *flags, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [(pair["a"], pair["b"]) for pair in report["pairs"]] == [(0, 1), (0, 2), (1, 2)]
    assert report["configured_mbps"] == 100 and report["expected_goodput_mbps"] == 50
    assert {row["collective"] for row in report["collectives"]} == {"mesh", "ring"}
    assert page.read_text().count("<svg") == 2
    probes = read_trace(raw).probes
    assert {probe.op for probe in probes} == {"pair", "mesh", "ring", "echo", "bulk"}
    for op in ("mesh", "ring"):
        size, seconds = collective_s(probes, op)
        # every rank's bytes go to two others: six payloads that cross the air twice
        assert seconds > 0.95 * 12 * 8 * size / 100e6


def test_probe_covers_operations_and_exchanges(tmp_path):
    output = tmp_path / "probe.jsonl"
    done = prism("probe", "--output", str(output), "--budget", "1", "--json", replaces=LIGHT_CELLS)
    assert done.returncode == 0, done.stderr
    trace = read_trace(output)
    ops = {probe.op for probe in trace.probes}
    assert {"gemm", "attention", "norm", "elementwise", "block", "pack", "unpack", "pair", "mesh", "ring"} <= ops
    assert all(probe.end_ns > probe.start_ns for probe in trace.probes if probe.calls)
    assert json.loads(done.stdout)["probes"]["gemm"] > 0


def test_a_sweep_becomes_a_map(tmp_path):
    sweep = tmp_path / "s.toml"
    sweep.write_text(
        'models = ["fashion-vit"]\nsegments = [5]\nbatches = [1, 10]\nrates = ["50Mbps", "800Mbps"]\n'
        'link = "shaper"\nrepeats = 2\n'
    )
    assert prism("profile", "--config", str(sweep), "--output", str(tmp_path / "out")).returncode == 0
    target, page = tmp_path / "map.json", tmp_path / "map.html"
    done = prism("map", str(tmp_path / "out"), "--output", str(target), "--html", str(page))
    assert done.returncode == 0, done.stderr
    assert "means L=5" in done.stdout and "not measured" in done.stdout
    built = load_map(target)
    assert len(built.cells) == 2 + 2 * 2 * 2
    assert all(cell.visits == 2 and cell.batches == 4 for cell in built.cells)
    assert page.read_text().count("<svg") >= 2
    again = prism("map", str(tmp_path / "out"), "--against", str(target), "--json")
    comparison = json.loads(again.stdout)["comparison"]
    assert comparison["share"] == 1 and len(comparison["differences"]) == 10


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["map", "/nowhere"], "/nowhere"),
        (["link", "--link", "testbed:fast"], "100Mbps"),
        (["testbed", "--link", "loopback"], "testbed:RATE"),
        (["profile", "--config", "/nowhere.toml"], "can't be read"),
        (["probe", "--budget", "0"], "budget"),
    ],
)
def test_bad_input_is_one_line(args, words):
    done = prism(*args)
    assert done.returncode == 2
    assert words in done.stderr and len(done.stderr.strip().splitlines()) == 1
