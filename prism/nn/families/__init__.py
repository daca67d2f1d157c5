"""The registry of model families."""

from importlib import import_module

from torch import nn

from prism.errors import UnsupportedModelError
from prism.nn.families.base import ModelAdapter

# module and class of each adapter, by the library that a model's class comes from: a ViT alone
# shouldn't cost the seconds that importing transformers takes
FAMILIES = {
    "timm": (("timm_vit", "TimmViT"),),
    "transformers": (("bert", "Bert"), ("gpt2", "GPT2"), ("llama", "Llama")),
}
SUPPORTED = (
    "timm VisionTransformer (ViT, DeiT, DINOv2; Block or ResPostBlock), "
    "transformers BERT (BertModel, BertFor...), transformers GPT-2 (GPT2Model, GPT2LMHeadModel, GPT2For...), "
    "transformers Llama (LlamaModel, LlamaFor...)"
)


def adapter_for(model: nn.Module) -> ModelAdapter:
    """The adapter of a model. Raises UnsupportedModelError with the list of what can be distributed."""
    libraries = {cls.__module__.partition(".")[0] for cls in type(model).__mro__}
    for library in FAMILIES.keys() & libraries:
        for module, name in FAMILIES[library]:
            family: type[ModelAdapter] = getattr(import_module(f"prism.nn.families.{module}"), name)
            if family.handles(model):
                return family(model)
    raise UnsupportedModelError(f"{type(model).__name__} can't be distributed; supported: {SUPPORTED}")
