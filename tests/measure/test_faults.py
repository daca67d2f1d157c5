"""The campaign of faults in a short version: real namespaces, a real shaped link, real kills."""

import json
import subprocess
import sys

import pytest
from support.reference import core_share, judged

pytestmark = [pytest.mark.measure, pytest.mark.slow, pytest.mark.root, pytest.mark.cold]
FLAGS = ["--faults", "10", "--seed", "5", "--slack", "5"]


def test_every_batch_under_faults_is_answered_right_and_in_time(tmp_path):
    """What is right is asked of every campaign, and how soon of one on a machine at rest."""

    def campaign():
        command = [sys.executable, "-m", "experiments.faults.run", *FLAGS, "--output", str(tmp_path)]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
        summary = json.loads((tmp_path / "summary.json").read_text())
        if summary["wrong"]:
            pytest.fail(f"{summary['wrong']} wrong answers\n{ran.stderr[-2000:]}")
        return summary, ran

    def judge(found, _):
        summary, ran = found
        assert summary["faults_injected"] == 10
        assert set(summary["by_kind"].values()) == {2}, "each kind in each mode"
        assert summary["too_long"] == 0 and summary["distributed"] > 20
        assert summary["faults_survived"] == 10, ran.stderr[-2000:]
        assert ran.returncode == 0, ran.stdout + ran.stderr

    judged(campaign, judge, core_share)
