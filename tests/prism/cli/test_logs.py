"""Log lines: on stderr, by one level for all of Prism's modules."""

import logging
import os
import subprocess
import sys

import pytest

from prism.cli import logs

LINE = [sys.executable, "-m", "hw.cli.main", "run", "fashion-vit", "--mode", "local", "--batches", "1", "--json"]


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    monkeypatch.setenv(logs.VARIABLE, "")
    yield
    for package in logs.PACKAGES:
        logger = logging.getLogger(package)
        logger.handlers, logger.level = [], logging.NOTSET


def said(capsys) -> list[str]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return [line.rsplit(": ", 1)[-1] for line in captured.err.splitlines()]


def log_all() -> None:
    for name in ("hw.serving.leader", "prism.nn.distribute", "somebody.else"):
        for level in (logging.DEBUG, logging.INFO, logging.WARNING):
            logging.getLogger(name).log(level, "%s", logging.getLevelName(level).lower())


@pytest.mark.parametrize(
    ("verbose", "quiet", "lines"),
    [
        (0, logging.WARNING, 1),
        (1, logging.WARNING, 2),
        (2, logging.WARNING, 3),
        (9, logging.WARNING, 3),
        (0, logging.INFO, 2),
    ],
)
def test_each_v_is_a_level_of_prisms_own_modules(capsys, verbose, quiet, lines):
    logs.configure(verbose, quiet)
    logs.configure(verbose, quiet)  # a second time adds no second handler
    logging.getLogger("somebody.else").addHandler(logging.NullHandler())
    log_all()
    expected = ["debug", "info", "warning"][-lines:]
    assert said(capsys) == expected * 2


def test_a_rank_logs_as_the_command_that_started_it(capsys):
    logs.configure(1)
    logs.configure_rank(3)
    logging.getLogger("hw.run.session").info("hello")
    logs.pass_on("from a rank")
    errors = capsys.readouterr().err.splitlines()
    assert errors[0].startswith("rank 3: ") and errors[0].endswith("hello") and errors[1] == "from a rank"
    os.environ[logs.VARIABLE] = "nonsense"
    logs.configure_rank(3)
    logging.getLogger("hw.run.session").info("hello")
    logs.pass_on("from a rank")
    assert said(capsys) == []


def test_a_verbose_run_shows_what_its_ranks_log_and_a_quiet_one_nothing():
    quiet, verbose = (subprocess.run([*LINE, *more], capture_output=True, text=True) for more in ([], ["-v"]))
    assert quiet.returncode == verbose.returncode == 0
    assert quiet.stderr == ""
    assert "rank 0: " in verbose.stderr and "batches of 1 in mode local" in verbose.stderr
    assert verbose.stdout.startswith("{") and len(verbose.stdout.splitlines()) == 1
