"""Find the adapter of a model: one module here for each row of prism.families."""

from importlib import import_module

from torch import nn

from prism.errors import UnsupportedModelError
from prism.families import FAMILIES
from prism.nn.families.base import Adapter

SUPPORTED = ", ".join(family.supported for family in FAMILIES.values())


def adapter_for(model: nn.Module) -> Adapter:
    """Wrap a model in its family's adapter. Raises UnsupportedModelError with the list of what can be distributed."""
    # by the library first: a ViT alone shouldn't cost the seconds that importing transformers takes
    libraries = {cls.__module__.partition(".")[0] for cls in type(model).__mro__}
    for family in FAMILIES.values():
        if family.library in libraries:
            adapter: type[Adapter] = getattr(import_module(f"prism.nn.families.{family.module}"), family.adapter)
            if adapter.handles(model):
                return adapter(model, family)
    raise UnsupportedModelError(f"{type(model).__name__} can't be distributed; supported: {SUPPORTED}")
