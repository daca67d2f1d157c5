import subprocess
import sys

import pytest

import prism
from prism.nn.distribute import distribute
from prism.plan import ExecutionPlan, Mode
from prism.trace import Trace, read_trace


def test_what_a_program_needs_is_importable_from_prism():
    assert (prism.distribute, prism.ExecutionPlan, prism.Mode) == (distribute, ExecutionPlan, Mode)
    assert (prism.Trace, prism.read_trace) == (Trace, read_trace)
    assert all(hasattr(prism, name) for name in prism.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = prism.nothing


@pytest.mark.cold
def test_a_plan_needs_no_torch():
    code = "import sys, prism; prism.Mode, prism.ExecutionPlan, prism.Trace; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
