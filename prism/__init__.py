"""Prism: run a Transformer across a few small devices on a slow link, or on one of them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prism.nn.distribute import distribute

__version__ = "0.1.0"
__all__ = ["__version__", "distribute"]


def __getattr__(name: str) -> Any:
    # torch is imported only by those who distribute, so that the simulator's command line starts at once
    if name == "distribute":
        from prism.nn.distribute import distribute

        return distribute
    raise AttributeError(f"module 'prism' has no attribute {name!r}")
