"""Prism: run a Transformer across a few small devices on a slow link, or on one of them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prism.nn.distribute import distribute
    from prism.plan import ExecutionPlan, Mode
    from prism.trace import Trace, read_trace

__version__ = "0.1.0"
__all__ = ["ExecutionPlan", "Mode", "Trace", "__version__", "distribute", "read_trace"]


def __getattr__(name: str) -> Any:
    # each is imported when it is asked for: only `distribute` needs torch, and a command line starts at once
    if name == "distribute":
        from prism.nn.distribute import distribute

        return distribute
    if name in ("ExecutionPlan", "Mode"):
        from prism import plan

        return getattr(plan, name)
    if name in ("Trace", "read_trace"):
        from prism import trace

        return getattr(trace, name)
    raise AttributeError(f"module 'prism' has no attribute {name!r}")
