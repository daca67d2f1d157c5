"""What a start of the command line, and of every rank, doesn't pay for."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["hw.run.config", "hw.run.rank_main", "hw.run.session", "hw.cli.main"])
def test_starting_imports_no_scipy(module):
    code = f"import {module}, sys; print([name for name in sys.modules if name.partition('.')[0] == 'scipy'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
