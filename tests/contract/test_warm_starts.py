"""A command that is forked from the template of the tests does what it does when it is started."""

import os
import signal
import subprocess
import sys

import pytest
from support import warm

HW = [sys.executable, "-m", "hw.cli.main"]
SIM = [sys.executable, "-c", "from sim.cli.main import main; main()"]
COMMANDS = {
    "version": [*HW, "--version"],
    "help": [*HW, "run", "--help"],
    "refused": [*HW, "run", "nosuchmodel"],
    "misused": [*HW, "run", "--nosuchoption"],
    "relative path": [*HW, "show", "here.jsonl"],
    "simulator": [*SIM, "predict", "nowhere.json"],
}


def ended(command, folder):
    env = {**os.environ, "COLUMNS": "90"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder, env=env)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_status_and_output_are_those_of_a_start(tmp_path, monkeypatch, name):
    (tmp_path / "here.jsonl").write_text("no trace\n")
    forked = ended(COMMANDS[name], tmp_path)
    monkeypatch.setattr(warm.Popen, "cold", True)
    assert forked == ended(COMMANDS[name], tmp_path)


def test_a_fork_is_a_child_that_can_be_seen_and_killed():
    with subprocess.Popen([*HW, "testbed", "--help"], stdout=subprocess.PIPE, text=True) as process:
        process.send_signal(signal.SIGSTOP)
        with open(f"/proc/{process.pid}/stat") as stat, open(f"/proc/{process.pid}/cmdline") as shown:
            assert int(stat.read().rpartition(")")[2].split()[1]) == os.getpid()
            assert "support.warm" in (line := shown.read()) or line.split("\0")[1:3] == HW[1:]
        process.kill()
    assert process.returncode == -signal.SIGKILL
