"""Adapt BERT of transformers: the plain encoder and every BertFor... head on top of it."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor
from transformers import BertModel, BertPreTrainedModel

from prism.families import Family
from prism.nn.families.base import Positions, TransformersAdapter, refuse, split_heads
from prism.partition import Rows
from prism.spec import ModelSpec

# heads that read the pooler's output alone, which is made of the first token
_POOLED = ("BertForSequenceClassification", "BertForNextSentencePrediction", "BertForMultipleChoice")


class BertBlock:
    """BertLayer: attention on the block's input as it is, norms after each residual sum."""

    def __init__(self, layer: Any) -> None:
        self._layer, self._attn = layer, layer.attention.self
        self.scale: float = self._attn.scaling

    @property
    def dropout(self) -> float:
        return self._attn.dropout.p if self._layer.training else 0.0

    def project(self, x_BnD: Tensor, at: Positions = None) -> tuple[Tensor, Tensor, Tensor]:
        return (split_heads(self._attn.query(x_BnD), self._attn.num_attention_heads), *self.project_kv(x_BnD))

    def project_kv(self, z_BMD: Tensor, at: Positions = None) -> tuple[Tensor, Tensor]:
        heads = self._attn.num_attention_heads
        return split_heads(self._attn.key(z_BMD), heads), split_heads(self._attn.value(z_BMD), heads)

    def finish(self, x_BnD: Tensor, mixed_BnD: Tensor) -> Tensor:
        return self._layer.feed_forward_chunk(self._layer.attention.output(mixed_BnD, x_BnD))


class Bert(TransformersAdapter):
    """Adapter of a BertModel or of a model that has one."""

    plain, pretrained, layers, block = BertModel, BertPreTrainedModel, "encoder.layer", BertBlock
    embeddings = ("embeddings",)
    behind = ("pooler",)
    refused: ClassVar[Mapping[str, str]] = {
        "past_key_values": "pass whole texts",
        "cache": "pass whole texts",  # its name since transformers 5.24
        "encoder_hidden_states": "use the encoder alone",
        "output_attentions": "run it locally to read attentions",
        "output_hidden_states": "run it locally to read hidden states",
    }

    def __init__(self, model: Any, family: Family) -> None:
        super().__init__(model, family)
        if model.config.is_decoder:
            raise refuse(self._name, "a decoder (is_decoder=True)", "use a BERT encoder, or GPT-2")

    @property
    def spec(self) -> ModelSpec:
        config = self._model.config
        return self._shape(
            blocks=config.num_hidden_layers,
            width=config.hidden_size,
            heads=config.num_attention_heads,
            mlp_width=config.intermediate_size,
            tokens=config.max_position_embeddings,
            output_width=self._output_width(),
            head="first" if self._name in _POOLED else "all",
        )

    def _output_width(self) -> int:
        if self._inner is self._model:
            return 0
        config = self._model.config
        return config.vocab_size if hasattr(self._model, "cls") else config.num_labels

    def rows(self, arguments: Mapping[str, Any], tokens: int) -> Rows:
        return Rows(start=0, stop=1 if self._name in _POOLED else tokens)
