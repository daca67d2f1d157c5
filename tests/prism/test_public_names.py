import pytest

import prism
from prism.nn.distribute import distribute
from prism.plan import ExecutionPlan, Mode
from prism.trace import read_trace


def test_what_a_program_needs_is_importable_from_prism():
    assert (prism.distribute, prism.ExecutionPlan, prism.Mode, prism.read_trace) == (
        distribute,
        ExecutionPlan,
        Mode,
        read_trace,
    )
    assert all(hasattr(prism, name) for name in prism.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = prism.nothing
