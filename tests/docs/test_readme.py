"""Every command block of the README runs as it stands, in the order in which a reader meets it."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from support.shell import Commands

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ("README.md", "benchmarks", "calibration", "docs", "experiments", "hw", "prism", "sim", "tests")
# Lines that set an environment up, or run what has tests of its own. They are left out, and nothing else is.
SKIPPED_LINES = ("pip install ", "make ")
NEEDS_ROOT = "# needs root"  # the first line of a block that only root can run
ENTRY_POINTS = {"prism-hw": "hw.cli.main", "prism-sim": "sim.cli.main"}
BLOCK_TIMEOUT_S = 240


class Block(NamedTuple):
    """A fenced block of the README."""

    language: str
    line: int
    text: str


class Result(NamedTuple):
    """How a block ended."""

    exit_code: int
    output: str


def blocks() -> list[Block]:
    text = (ROOT / "README.md").read_text()
    fences = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [Block(match[1], text.count("\n", 0, match.start()) + 1, match[2]) for match in fences]


def commands(block: Block) -> str:
    """The block without the lines that are skipped."""
    return "".join(line for line in block.text.splitlines(True) if not line.startswith(SKIPPED_LINES))


@contextlib.contextmanager
def working_folder(folder: Path) -> Iterator[Path]:
    """What a clone has, by links, and a `bin` with the commands that an installation makes."""
    for name in SHIPPED:
        (folder / name).symlink_to(ROOT / name)
    with Commands(folder / "bin", ENTRY_POINTS):
        python = folder / "bin" / "python"
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        python.chmod(0o755)
        yield folder


def run(block: Block, folder: Path) -> Result:
    """Run a block in a shell of its own; whatever it leaves running is killed."""
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    if block.language == "python":
        (folder / "readme.py").write_text(block.text)
        shell = ["python", "readme.py"]
    else:
        shell = ["bash", "-e", "-o", "pipefail", "-c", commands(block)]
    output = folder / "output.txt"
    with output.open("w") as file:
        process = subprocess.Popen(
            shell,
            cwd=folder,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            executable=shutil.which(shell[0], path=path),
        )
        try:
            exit_code = process.wait(BLOCK_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            exit_code = -1
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return Result(exit_code, output.read_text())


def needs_root(block: Block) -> bool:
    return block.text.startswith(NEEDS_ROOT)


def failures(chosen: list[Block], folder: Path) -> list[str]:
    """What to say of every block that failed."""
    found = []
    for block in chosen:
        result = run(block, folder)
        if result.exit_code != 0:
            tail = "\n".join(result.output.splitlines()[-15:])
            found.append(f"README.md:{block.line}: exit code {result.exit_code}\n{block.text}---\n{tail}")
    return found


def runnable(language: str) -> list[Block]:
    return [block for block in blocks() if block.language == language]


def test_every_block_says_whether_it_runs():
    assert {block.language for block in blocks()} <= {"sh", "python", "text", "toml"}
    assert len(runnable("python")) == 1


def test_only_set_up_lines_are_skipped():
    skipped = [line for block in runnable("sh") for line in block.text.splitlines() if line.startswith(SKIPPED_LINES)]
    assert [re.split(r"\s{2,}#", line)[0] for line in skipped] == [
        "pip install prism-edge",
        'pip install "prism-edge[hw]"',
        'pip install -e ".[hw]"',
        "make demo",
        "make test",
    ]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_command_blocks_run_in_order(tmp_path):
    if shutil.which("curl") is None:
        pytest.skip("no curl, which the block on serving waits with")
    chosen = [block for block in runnable("sh") if not needs_root(block)]
    with working_folder(tmp_path) as folder:
        assert not (failed := failures(chosen, folder)), "\n\n".join(failed)


@pytest.mark.slow
def test_python_block_runs(tmp_path):
    with working_folder(tmp_path) as folder:
        assert not (failed := failures(runnable("python"), folder)), "\n\n".join(failed)


@pytest.mark.slow
@pytest.mark.root
def test_root_blocks_run(tmp_path):
    chosen = [block for block in runnable("sh") if needs_root(block)]
    with working_folder(tmp_path) as folder:
        assert not (failed := failures(chosen, folder)), "\n\n".join(failed)
