"""prism-sim replay on logs that are whole, edited or cut."""

import json
import subprocess
import sys

import msgspec
import pytest
from support.serving import FULL, MODEL, cell

from prism.decide.log import Answered, LogHeader, decided
from prism.decide.policy import PrismPolicy, State
from prism.decide.table import Objective, Observation, table_of
from prism.perfmap import PerformanceMap
from prism.plan import LOCAL


@pytest.fixture
def log(tmp_path):
    cells = [cell(LOCAL, 1, None, 100.0), *(cell(FULL, 1, m, 50.0 + 5000 / m, 5000 / m) for m in (10, 100, 1000))]
    table = table_of([PerformanceMap(created="", command="", cells=tuple(cells))], MODEL)
    policy, state = PrismPolicy(), State()
    lines = [LogHeader(created="", command="", model=MODEL, policy=policy, objective=Objective(), rows=table.rows)]
    for k in range(30):
        seen = Observation(batch=1, devices=2, bandwidth_bps=2e7 if k % 20 < 10 else 8e8, at_s=2.0 * k)
        decision = policy.decide(seen, table, Objective(), state)
        state = decision.state
        lines += [decided(k, 1, seen, decision), Answered(number=k, at_s=2.0 * k + 0.1, ms=90.0, ran=decision.plan)]
    path = tmp_path / "decisions.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    return path


def replay(*arguments):
    return subprocess.run(
        [sys.executable, "-c", "from sim.cli.main import main; main()", "replay", *map(str, arguments)],
        capture_output=True,
        text=True,
    )


def test_a_log_is_decided_again_and_scored(log):
    found = json.loads(replay(log, "--profile", "x86-core", "--json").stdout)
    assert found["replay"] == {"decisions": 30, "identical": True, "first_difference": ""}
    assert found["switches"] == 2 and found["served_ms"] == pytest.approx(2700) and found["failed"] == 0
    assert found["scored"]["decided_ms"] >= found["scored"]["oracle_ms"] > 0


def test_an_edited_log_is_found_out(log):
    lines = log.read_text().splitlines(keepends=True)
    entry = json.loads(lines[5])
    entry["observation"]["bandwidth_bps"] = 9e8
    log.write_text("".join([*lines[:5], json.dumps(entry) + "\n", *lines[6:]]))
    found = replay(log)
    assert found.returncode == 2 and "DIFFERENT" in found.stdout
    assert "decision 2: local" in found.stderr and "Traceback" not in found.stderr


def test_no_log_is_one_line(tmp_path):
    found = replay(tmp_path / "none")
    assert found.returncode == 2 and len(found.stderr.strip().splitlines()) == 1
