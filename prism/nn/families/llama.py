"""Adapt Llama of transformers: the plain decoder and every Llama... head on top of it. Whole prompts, no cache."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import LlamaModel, LlamaPreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, rotate_half

from prism.families import Family
from prism.nn.families.base import Positions, TransformersAdapter, refuse, split_heads
from prism.spec import ModelSpec


class LlamaBlock:
    """LlamaDecoderLayer: RMSNorm first, rotary positions, keys and values shared by groups of heads."""

    def __init__(self, layer: Any) -> None:
        self._layer, self._attn = layer, layer.self_attn
        self.scale: float = self._attn.scaling

    @property
    def dropout(self) -> float:
        return self._attn.attention_dropout if self._layer.training else 0.0

    def project(self, x_BnD: Tensor, at: Positions = None) -> tuple[Tensor, Tensor, Tensor]:
        normed = self._layer.input_layernorm(x_BnD)
        query = split_heads(self._attn.q_proj(normed), self._attn.config.num_attention_heads)
        return (_rotated(query, at), *self._keys_and_values(normed, at))

    def project_kv(self, z_BMD: Tensor, at: Positions = None) -> tuple[Tensor, Tensor]:
        return self._keys_and_values(self._layer.input_layernorm(z_BMD), at)

    def finish(self, x_BnD: Tensor, mixed_BnD: Tensor) -> Tensor:
        layer = self._layer
        x_BnD = x_BnD + self._attn.o_proj(mixed_BnD)
        return x_BnD + layer.mlp(layer.post_attention_layernorm(x_BnD))

    def _keys_and_values(self, normed: Tensor, at: Positions) -> tuple[Tensor, Tensor]:
        attn, heads = self._attn, self._attn.config.num_key_value_heads
        key = _rotated(split_heads(attn.k_proj(normed), heads), at)
        value = split_heads(attn.v_proj(normed), heads)
        # repeated, as CUDA's attention kernels that take a bias take no groups
        group = attn.num_key_value_groups
        return key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)


class Llama(TransformersAdapter):
    """Adapter of a LlamaModel or of a model that has one. Outputs carry no past_key_values."""

    plain, pretrained, layers, block = LlamaModel, LlamaPreTrainedModel, "layers", LlamaBlock
    embeddings = ("embed_tokens",)
    behind = ("norm",)
    forced: ClassVar[Mapping[str, Any]] = {"use_cache": False}
    refused: ClassVar[Mapping[str, str]] = {
        "past_key_values": "pass whole prompts",
        "cache": "pass whole prompts",  # its name since transformers 5.24
        "use_cache": "pass use_cache=False: a cache would stay spread over the ranks",
        "position_ids": "leave them out: tokens are counted from 0, padding too",
        "output_attentions": "run it locally to read attentions",
        "output_hidden_states": "run it locally to read hidden states",
    }

    def __init__(self, model: Any, family: Family) -> None:
        super().__init__(model, family)
        config, rope = model.config, self._inner.rotary_emb.rope_type
        if any(type(layer) is not LlamaDecoderLayer for layer in self._inner.layers):
            raise refuse(self._name, "a layer that isn't LlamaDecoderLayer", "use a plain Llama")
        if "dynamic" in rope or rope == "longrope":
            raise refuse(self._name, f"rope_type {rope}, whose angles depend on the length,", "use another")
        if config.head_dim * config.num_attention_heads != config.hidden_size:
            heads = f"{config.num_attention_heads} heads of {config.head_dim} channels"
            raise refuse(self._name, f"{heads} at width {config.hidden_size}", "use heads that fill the width")

    @property
    def spec(self) -> ModelSpec:
        config = self._model.config
        labels = 0 if self._inner is self._model else config.num_labels
        return self._shape(
            blocks=config.num_hidden_layers,
            width=config.hidden_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            mlp_width=config.intermediate_size,
            tokens=config.max_position_embeddings,
            output_width=config.vocab_size if hasattr(self._model, "lm_head") else labels,
            head="all",
        )

    def rotation(self, positions_BM: Tensor) -> Tensor:
        """Cosines and sines of positions, which may be fractions: [2, B, 1, M, C]."""
        # the model's own module, which takes no more of its first argument than device and type
        like = positions_BM.new_empty(0, dtype=self._inner.norm.weight.dtype)
        return torch.stack(self._inner.rotary_emb(like, positions_BM)).unsqueeze(2)


def _rotated(x_BHnC: Tensor, at: Positions) -> Tensor:
    if at is None:
        raise ValueError("a Llama's rows need their positions; pass what the adapter's `rotation` makes of them")
    cos, sin = at
    return x_BHnC * cos + rotate_half(x_BHnC) * sin
