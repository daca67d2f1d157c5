"""The campaign of faults in a short version: real namespaces, a real shaped link, real kills. Needs root."""

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
def test_every_batch_under_faults_is_answered_right(tmp_path):
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "experiments.faults.run",
            "--faults",
            "10",
            "--output",
            str(tmp_path),
            "--seed",
            "5",
            "--slack",
            "5",
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found["faults_injected"] == 10
    assert set(found["by_kind"].values()) == {2}, "each kind in each mode"
    assert found["wrong"] == 0 and found["too_long"] == 0 and found["distributed"] > 20
    assert found["faults_survived"] == 10, ran.stderr[-2000:]
    assert ran.returncode == 0, ran.stdout + ran.stderr
