"""BERT of transformers: the plain encoder and every BertFor... head on top of it."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import BertModel, BertPreTrainedModel

from prism.nn.families.base import parameter_count, refuse, split_heads, text_padding
from prism.partition import Rows
from prism.spec import ModelSpec

# heads that read the pooler's output alone, which is made of the first token
_POOLED = ("BertForSequenceClassification", "BertForNextSentencePrediction", "BertForMultipleChoice")
_REFUSED = {
    "past_key_values": "pass whole texts",
    "cache": "pass whole texts",  # its name since transformers 5.24
    "encoder_hidden_states": "use the encoder alone",
    "output_attentions": "run it locally to read attentions",
    "output_hidden_states": "run it locally to read hidden states",
}


class Bert:
    """Adapter of a BertModel or of a model that has one."""

    causal = False
    forced: Mapping[str, Any] = {}
    rotation = None

    def __init__(self, model: Any) -> None:
        self._model = model
        self._name = type(model).__name__
        self._bert = model if isinstance(model, BertModel) else model.bert
        self.stack_path = "encoder.layer" if isinstance(model, BertModel) else "bert.encoder.layer"
        if model.config.is_decoder:
            raise refuse(self._name, "a decoder (is_decoder=True)", "use a BERT encoder, or GPT-2")

    @classmethod
    def handles(cls, model: nn.Module) -> bool:
        return isinstance(model, BertModel) or (
            isinstance(model, BertPreTrainedModel) and isinstance(getattr(model, "bert", None), BertModel)
        )

    @property
    def spec(self) -> ModelSpec:
        config = self._model.config
        has_head = self._bert is not self._model
        return ModelSpec(
            name=config.name_or_path or self._name,
            family="bert",
            blocks=config.num_hidden_layers,
            width=config.hidden_size,
            heads=config.num_attention_heads,
            mlp_width=config.intermediate_size,
            tokens=config.max_position_embeddings,
            output_width=self._output_width() if has_head else 0,
            head="first" if self._name in _POOLED else "all",
            parameters=parameter_count(self._model),
        )

    def _output_width(self) -> int:
        config = self._model.config
        return config.vocab_size if hasattr(self._model, "cls") else config.num_labels

    def blocks(self) -> Sequence["BertBlock"]:
        return [BertBlock(layer) for layer in self._bert.encoder.layer]

    def padding(self, arguments: Mapping[str, Any]) -> Tensor | None:
        return text_padding(arguments, self._name, _REFUSED)

    def rows(self, arguments: Mapping[str, Any], tokens: int) -> Rows:
        return Rows(start=0, stop=1 if self._name in _POOLED else tokens)

    def place(self, rows_BRD: Tensor, tokens: int) -> Tensor:
        return rows_BRD


class BertBlock:
    """BertLayer: attention on the block's input as it is, norms after each residual sum."""

    def __init__(self, layer: Any) -> None:
        self._layer, self._attn = layer, layer.attention.self
        self.scale: float = self._attn.scaling

    @property
    def dropout(self) -> float:
        return self._attn.dropout.p if self._layer.training else 0.0

    def project(self, x_BnD: Tensor, at: Any = None) -> tuple[Tensor, Tensor, Tensor]:
        return (split_heads(self._attn.query(x_BnD), self._attn.num_attention_heads), *self.project_kv(x_BnD))

    def project_kv(self, z_BMD: Tensor, at: Any = None) -> tuple[Tensor, Tensor]:
        heads = self._attn.num_attention_heads
        return split_heads(self._attn.key(z_BMD), heads), split_heads(self._attn.value(z_BMD), heads)

    def finish(self, x_BnD: Tensor, mixed_BnD: Tensor) -> Tensor:
        return self._layer.feed_forward_chunk(self._layer.attention.output(mixed_BnD, x_BnD))
