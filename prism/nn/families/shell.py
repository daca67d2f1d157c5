"""Copy a model with some modules replaced, and all parameters shared (docs/decisions/0001-shell-model.md)."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn


def with_replaced(model: nn.Module, runs: Mapping[str, Callable[..., Tensor]]) -> nn.Module:
    """A copy of the model that shares every parameter, with the module at each path replaced by one that calls `run`.

    Only the modules on the way to a path are new, so a call costs no weights.
    """
    shell = copy.copy(model)
    shell._modules = dict(model._modules)
    inside: dict[str, dict[str, Callable[..., Tensor]]] = {}
    for path, run in runs.items():
        name, _, rest = path.partition(".")
        if rest:
            inside.setdefault(name, {})[rest] = run
        else:
            shell._modules[name] = nn.Sequential(_StandIn(run)) if _is_stack(model._modules[name]) else _StandIn(run)
    for name, deeper in inside.items():
        child = model._modules[name]
        if child is not None:
            shell._modules[name] = with_replaced(child, deeper)
    return shell


def _is_stack(module: nn.Module | None) -> bool:
    """Whether the model goes through a module's children itself."""
    return isinstance(module, nn.Sequential | nn.ModuleList)


class _StandIn(nn.Module):
    """Stands in for a module, with any arguments."""

    def __init__(self, run: Callable[..., Tensor]) -> None:
        super().__init__()
        self._run = run

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._run(*args, **kwargs)
