"""Seams that import-linter can't express."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from prism.config import tomllib

ROOT = Path(__file__).parents[2]


def imported(path: Path) -> set[str]:
    """Every module and name that a file imports, also inside of functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_only_the_transport_knows_torch_distributed():
    """A further transport is a Control and its exchange in hw/comm, and nothing else has to change."""
    users = {
        path.parent.relative_to(ROOT).as_posix()
        for package in ("prism", "hw", "sim", "calibration")
        for path in (ROOT / package).rglob("*.py")
        if any("torch.distributed" in name for name in imported(path))
    }
    assert users == {"hw/comm"}


def test_only_the_group_knows_which_transport_there_is():
    users = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "hw").rglob("*.py")
        if any("hw.comm.gloo" in name for name in imported(path))
    }
    assert users == {"hw/comm/group.py"}


@pytest.mark.cold
def test_the_simulators_command_line_does_not_import_torch():
    code = "import sys, sim.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_contract_on_torch_names_every_other_room_of_prism():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (contract,) = [contract for contract in contracts if contract["name"] == "torch only in prism.nn"]
    entries = {
        path.stem for path in (ROOT / "prism").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert {f"prism.{name}" for name in entries - {"__init__", "nn"}} == {
        name for name in contract["source_modules"] if name.startswith("prism.")
    }
