"""The registry of model families."""

from torch import nn

from prism.adapters.base import ModelAdapter
from prism.adapters.bert import Bert
from prism.adapters.gpt2 import GPT2
from prism.adapters.timm_vit import TimmViT
from prism.errors import UnsupportedModelError

FAMILIES: tuple[type[ModelAdapter], ...] = (TimmViT, Bert, GPT2)
SUPPORTED = (
    "timm VisionTransformer (ViT, DeiT, DINOv2; Block or ResPostBlock), "
    "transformers BERT (BertModel, BertFor...), transformers GPT-2 (GPT2Model, GPT2LMHeadModel, GPT2For...)"
)


def adapter_for(model: nn.Module) -> ModelAdapter:
    """The adapter of a model. Raises UnsupportedModelError with the list of what can be distributed."""
    for family in FAMILIES:
        if family.handles(model):
            return family(model)
    raise UnsupportedModelError(f"{type(model).__name__} can't be distributed; supported: {SUPPORTED}")
