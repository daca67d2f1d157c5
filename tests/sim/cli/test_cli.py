"""prism-sim as a user types it, in a process of its own."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from support.profiles import VIT
from support.simulated import FULL, LOCAL, MODELS, simulated

from prism.decide.table import Objective, Observation, table_of
from prism.perfmap import load_map
from prism.plan import Mode
from prism.trace import read_trace, write_trace
from prism.trace.metrics import summarise

ROOT = Path(__file__).parents[3]
RUN = "import sys; from sim.cli.main import app, main; {before}main()"


def run(folder: Path, *arguments: str, code: int = 0, before: str = "") -> str:
    (folder / "vit.json").write_bytes(msgspec.json.encode(VIT))
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(before=before), *arguments],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def test_predict_gives_the_agreed_fields(tmp_path):
    cells = json.loads(run(tmp_path, "predict", "vit.json", "--batch", "8", "--json"))
    assert [cell["mode"] for cell in cells] == ["local", "full", "segment_means", "local", "local"]
    assert cells[3]["replicas"] == cells[4]["stages"] == 2 and cells[4]["devices"] == 2
    wanted = {
        "mode",
        "segments",
        "wire",
        "devices",
        "batch",
        "bandwidth_mbps",
        "latency_ms",
        "interval_ms",
        "energy_j",
        "split_ms",
        "tag",
    }
    for cell in cells:
        assert wanted <= set(cell)
        low, high = cell["interval_ms"]
        assert low <= cell["latency_ms"] <= high
        assert sum(cell["split_ms"].values()) == pytest.approx(cell["latency_ms"], rel=0.02)
    assert cells[2]["segments"] == 10


def test_crossover_gives_the_agreed_fields(tmp_path):
    found = json.loads(run(tmp_path, "crossover", "vit.json", "--over", "batch", "--draws", "4", "--json"))
    assert {"over", "class", "value", "interval", "p_distributed_wins", "tag"} <= set(found)
    assert found["class"] == "at" and 4 < found["value"] <= 8
    text = run(tmp_path, "crossover", "vit.json", "--over", "batch", "--mode", "full", "--draws", "4")
    assert "distributed never wins" in text


def test_plans_that_need_more_memory_than_a_device_has_are_left_out_with_both_figures(tmp_path):
    cells = json.loads(run(tmp_path, "predict", "vit.json", "--memory", "300MB", "--draws", "0", "--json"))
    assert [(cell["mode"], cell.get("stages")) for cell in cells] == [("local", 2)]
    text = run(tmp_path, "predict", "vit.json", "--memory", "300MB", "--draws", "0")
    assert "left out: local: rank 0 needs 352.9 MB for" in text and "the limit is 300 MB; use --stages 2" in text
    told = run(tmp_path, "predict", "vit.json", "--memory", "50MB", code=2)
    assert "needs 352.9 MB" in told and "limit is 50 MB" in told and told.count("\n") == 1
    run(tmp_path, "map", "vit.json", "--stages", "2", "--memory", "300MB", "--output", "map.json")
    assert {cell.plan.stages for cell in load_map(tmp_path / "map.json").cells} == {2}
    assert "limit is 300 MB" in run(tmp_path, "serve-sim", "vit.json", "--memory", "300MB", code=2)


def test_the_table_and_the_page_name_the_plan(tmp_path):
    arguments = ("predict", "vit.json", "--batch", "8", "--draws", "0")
    text = run(tmp_path, *arguments, "--output", "out.html")
    names = ("local", "2 parts, full", "2 parts, means L=10", "2 replicas", "2 stages")
    assert [line.split("  ")[0] for line in text.splitlines()[2:7]] == list(names)
    page = (tmp_path / "out.html").read_text()
    assert all(f"<td>{name}</td>" in page for name in names) and "<th>stages</th>" not in page
    run(tmp_path, *arguments, "--output", "out.csv")
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert [(row["plan"], row["replicas"], row["stages"]) for row in rows][3:] == [
        ("2 replicas", "2", "1"),
        ("2 stages", "1", "2"),
    ]


def test_predict_says_what_replicas_and_stages_sustain_and_need(tmp_path):
    cells = json.loads(run(tmp_path, "predict", "vit.json", "--batch", "8", "--draws", "0", "--json"))
    local, replicas, stages = (cells[k] for k in (0, 3, 4))
    assert (replicas["replicas"], stages["stages"]) == (2, 2) and "replicas" not in local
    assert local["samples_per_s"] == pytest.approx(1e3 / local["per_sample_ms"])
    assert replicas["samples_per_s"] > 1.5 * local["samples_per_s"]
    assert [len(cell["memory_bytes"]) for cell in (local, replicas, stages)] == [1, 2, 2]
    assert max(stages["memory_bytes"]) < 0.62 * local["memory_bytes"][0] < min(replicas["memory_bytes"])


def test_counts_make_a_plan_of_all_devices(tmp_path):
    asked = ["predict", "vit.json", "--batch", "4", "--draws", "0", "--json", "--replicas", "2", "--parts", "2"]
    local, *others = json.loads(run(tmp_path, *asked))
    assert [(cell["mode"], cell["devices"], cell["replicas"]) for cell in others] == [
        ("full", 4, 2),
        ("segment_means", 4, 2),
    ]
    assert local["devices"] == 1
    error = run(tmp_path, "predict", "vit.json", "--replicas", "2", "--devices", "3", code=2)
    assert "--devices 2" in error and error.count("\n") == 1
    run(tmp_path, "trace", "vit.json", "--replicas", "2", "--stages", "2", "--batch", "2", "--trace", "t.jsonl")
    trace = read_trace(tmp_path / "t.jsonl")
    assert not trace.header.oversubscribed and {span.rank for span in trace.spans} == {0, 1, 2, 3}


def test_a_crossover_lies_between_any_two_plans(tmp_path):
    asked = ["crossover", "vit.json", "--over", "bandwidth", "--batch", "8", "--draws", "4"]
    found = json.loads(run(tmp_path, *asked, "--mode", "stages", "--against", "replicas", "--json"))
    assert found["against"]["replicas"] == found["plan"]["stages"] == 2 and found["class"] == "never"
    known = ["--profile", "x86-core", "--json"]
    found = json.loads(run(tmp_path, *asked, "--mode", "stages", "--against", "segment_means", *known))
    assert found["class"] == "at" and found["wins"] == "below" and 50 < found["value"] < 400
    turned = json.loads(run(tmp_path, *asked, "--mode", "segment_means", "--against", "stages", *known))
    assert turned["value"] == pytest.approx(found["value"], rel=0.01) and turned["wins"] == "above"
    assert "stages 2 (never calibrated)" in found["outside"] and "stages 2 (never calibrated)" in turned["outside"]
    text = run(tmp_path, *asked, "--mode", "replicas", "--against", "segment_means")
    assert "2 replicas always wins" in text and "against 2 parts, means L=10" in text
    error = run(tmp_path, *asked, "--mode", "full", "--against", "full", code=2)
    assert "--against" in error


@pytest.mark.cold
def test_no_torch_for_help_or_a_spec_file(tmp_path):
    before = "import atexit; atexit.register(lambda: print('torch' in sys.modules)); "
    for arguments in (
        ["--help"],
        ["predict", "--help"],
        ["predict", "vit.json"],
        ["serve-sim", "vit.json", "--requests", "5"],
    ):
        assert run(tmp_path, *arguments, before=before).splitlines()[-1] == "False"


def test_a_name_needs_no_weights(tmp_path):
    cells = json.loads(run(tmp_path, "predict", "bert-base-uncased", "--tokens", "256", "--draws", "0", "--json"))
    assert cells[0]["tokens"] == 256 and cells[0]["tag"] == "extrapolated"
    cells = json.loads(run(tmp_path, "predict", "vit.json", "--image-size", "384", "--draws", "0", "--json"))
    assert cells[0]["tokens"] == 577


def test_every_command_has_an_example(tmp_path):
    for name in (
        "predict",
        "crossover",
        "what-if",
        "serve-sim",
        "sensitivity",
        "trace",
        "workload",
        "calibrate",
        "compare",
        "map",
        "replay",
    ):
        assert f"Example: prism-sim {name}" in run(tmp_path, name, "--help").replace("\n", " ")


STUDY = 'model = "vit.json"\n[grid]\nbatch = [1, 8]\nbandwidth = ["100Mbps", "400Mbps"]\n'


@pytest.mark.parametrize("suffix", [".json", ".csv", ".html", ".parquet"])
def test_a_study_writes_its_files(tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    (tmp_path / "s.toml").write_text(STUDY)
    run(tmp_path, "what-if", "s.toml", "--output", f"out{suffix}", "--processes", "1")
    data = (tmp_path / f"out{suffix}").read_bytes()
    if suffix == ".html":
        assert b"what-if s.toml" in data and b"simpy " in data and b"max_latency_ms" in data
        assert b"<svg" in data and b"http" not in data.replace(b"http://www.w3.org", b"").replace(
            b"http://purl.org", b""
        ).replace(b"http://creativecommons.org", b"").replace(b"https://matplotlib.org", b"")
    elif suffix == ".json":
        assert len(json.loads(data)["cells"]) == 10
    else:
        pd = pytest.importorskip("pandas")
        read = pd.read_csv if suffix == ".csv" else pd.read_parquet
        assert len(read(tmp_path / f"out{suffix}")) == 10


def test_a_trace_is_read_by_the_code_that_reads_measured_ones(tmp_path):
    run(tmp_path, "trace", "vit.json", "--mode", "full", "--trace", "t.jsonl", "--perfetto", "p.json")
    trace = read_trace(tmp_path / "t.jsonl")
    assert trace.header.source == "simulated"
    assert summarise(trace).coverage == pytest.approx(1.0, abs=0.01)
    assert json.loads((tmp_path / "p.json").read_bytes())["traceEvents"]


def test_a_map_has_every_plan_that_fits(tmp_path):
    flags = [
        "--modes",
        "full,first_and_means",
        "--segments",
        "1,5",
        "--batches",
        "1,2",
        "--bandwidths",
        "50Mbps,400Mbps",
    ]
    run(tmp_path, "map", "vit.json", *flags, "-o", "map.json", "--html", "map.html")
    assert "nothing here was measured" in (tmp_path / "map.html").read_text()
    made = load_map(tmp_path / "map.json")
    assert {(c.plan.mode.value, c.plan.segments) for c in made.cells} == {
        ("local", None),
        ("full", None),
        ("first_and_means", 5),
    }
    assert len(made.cells) == 2 + 2 * 2 * 2 and all(cell.source == "simulated" for cell in made.cells)
    table = table_of([made], made.cells[0].model)
    seen = Observation(batch=2, devices=2, bandwidth_bps=400e6, at_s=0.0)
    assert {each.plan.mode for each in table.at(seen, Objective()).ranked()} == {
        Mode.LOCAL,
        Mode.FULL,
        Mode.FIRST_AND_MEANS,
    }
    asked = ["--batch", "2", "--bandwidth", "400Mbps", "--draws", "0", "--json"]
    said = {row["mode"]: row["latency_ms"] for row in json.loads(run(tmp_path, "predict", "vit.json", *asked))}
    full = next(c for c in made.cells if c.plan.mode is Mode.FULL and c.batch == 2 and c.bandwidth_mbps == 400)
    assert full.latency_ms.p50 == said["full"], "both in the steady state"


def test_serving_and_sensitivity(tmp_path):
    found = json.loads(
        run(
            tmp_path,
            "serve-sim",
            "vit.json",
            "--arrivals",
            "poisson:4",
            "--requests",
            "50",
            "--fail",
            "1@2s",
            "--bandwidth",
            "50Mbps",
            "--json",
            "--output",
            "served.html",
        )
    )
    page = (tmp_path / "served.html").read_text().split("</style>")[1]
    assert "p95" in page and "{" not in page, "no dict in a cell"
    assert any(line.startswith("link_mbps 50") for line in found["outside"])
    assert found["requests"] == 50 and found["latency_ms"]["p50"] <= found["latency_ms"]["p99"]
    assert json.loads(run(tmp_path, "sensitivity", "vit.json", "--json"))[0]["term"]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["predict", "vit.json", "--bandwidth", "400"], "100Mbps"),
        (["predict", "vit.json", "--profile", "orin"], "orin-nano"),
        (["predict", "vit.jsn"], "unknown"),
        (["predict", "vit.json", "--segments", "150"], "segments 150 exceed"),
        (["predict", "vit.json", "--image-size", "225"], "multiple"),
        (["crossover", "vit.json", "--over", "colour"], "colour"),
        (["crossover", "vit.json", "--over", "segments", "--mode", "full"], "segment_means"),
        (["crossover", "vit.json", "--over", "batch", "--values", "1,x"], "1,x"),
        (["crossover", "vit.json", "--over", "bandwidth", "--values", "10,nan"], "finite"),
        (["crossover", "vit.json", "--over", "tokens", "--values", "1,500"], "1 prefix tokens"),
        (["serve-sim", "vit.json", "--fail", "0@1s"], "0 is the leader"),
        (["serve-sim", "vit.json", "--outage", "4s-3s"], "ends before"),
        (["trace", "vit.json"], "nothing to write"),
        (["map", "vit.json", "--modes", "full,halves", "-o", "m.json"], "first_and_means"),
        (["what-if", "none.toml"], "can't be read"),
        (["predict", "vit.json", "-o", "x.xlsx"], ".parquet"),
    ],
)
def test_bad_input_is_one_line(tmp_path, arguments, part):
    error = run(tmp_path, *arguments, code=2)
    assert part in error and len(error.strip().splitlines()) == 1


def measured(folder: Path, name: str, **fields) -> list[str]:
    """A folder of traces, and the flags that name their models' shapes."""
    (folder / name).mkdir()
    for number, trace in enumerate(simulated((LOCAL, FULL), visits=3, noise=0.01, rates_mbps=(50, 400), **fields)):
        write_trace(folder / name / f"{number}.jsonl", trace.header, trace.records)
    flags = []
    for model in MODELS.values():
        (folder / f"{model.name}.json").write_bytes(msgspec.json.encode(model))
        flags += ["--model", f"{model.name}={model.name}.json"]
    return flags


def test_calibrate_then_compare(tmp_path):
    flags = measured(tmp_path, "seen")
    text = run(tmp_path, "calibrate", "seen", "-o", "pair.json", "--html", "pair.html", *flags)
    assert "gemm.s_per_flop" in text and "from the other models alone" in text
    assert "Each model from the others alone" in (tmp_path / "pair.html").read_text()
    measured(tmp_path, "held", batches=(2,))
    arguments = ["compare", "held", "--profile", "pair.json", *flags, "--reference", "seen", "--draws", "20"]
    found = json.loads(run(tmp_path, *arguments, "--json", "-o", "report.html", "--lanes", "lanes.json"))
    assert found["scores"]["latency_mape_pct"] < 5 and len(found["rows"]) == 6
    assert set(found["scores"]["baselines"]) >= {"always local", "nearest profiled model"}
    assert "No trace of this comparison" in (tmp_path / "report.html").read_text()
    lanes = json.loads((tmp_path / "lanes.json").read_text())["traceEvents"]
    assert len({event["pid"] for event in lanes}) in (2, 4), "each rank twice: measured and simulated"
    assert "part of the profile's fit" in run(tmp_path, "compare", "seen", "--profile", "pair.json", *flags)
    predicted = json.loads(run(tmp_path, "predict", "vit192.json", "--profile", "pair.json", "--json"))
    assert predicted[0]["tag"] == "calibrated"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["calibrate", "nowhere"], "doesn't exist"),
        (["calibrate", "seen", "--model", "vit192"], "NAME=SPEC.json"),
        (["calibrate", "seen/0.jsonl", "--model", "vit192=vit192.json"], "1 cells"),
        (["compare", "seen", "--profile", "none.json"], "neither built in nor a file"),
        (["compare", "seen", "--profile", "orin-nano", "-o", "report.txt"], ".html or .json"),
    ],
)
def test_traces_that_carry_no_answer_are_refused_in_one_line(tmp_path, arguments, words):
    flags = measured(tmp_path, "seen")
    error = run(tmp_path, *arguments, *(flags if "none.json" in arguments else []), code=2)
    assert words in error and error.count("\n") == 1


def test_damaged_traces_are_named_and_the_others_used(tmp_path):
    flags = measured(tmp_path, "seen")
    whole = (tmp_path / "seen" / "0.jsonl").read_bytes()
    (tmp_path / "seen" / "old.jsonl").write_bytes(whole.replace(b'"schema":1', b'"schema":99', 1))
    (tmp_path / "seen" / "0.jsonl").write_bytes(whole + b'{"type":"span","batch":1,"ra')
    found = json.loads(run(tmp_path, "calibrate", "seen", "-o", "pair.json", "--json", *flags))
    said = "\n".join(found["messages"])
    assert "old.jsonl" in said and "99" in said
    assert "0.jsonl" in said and "cut short" in said
    assert found["visits"] == 36
