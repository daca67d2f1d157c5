"""Adapt GPT-2 of transformers: the plain decoder and every GPT2... head on top of it. Whole prompts, no cache."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2Model, GPT2PreTrainedModel

from prism.families import Family
from prism.nn.families.base import Positions, TransformersAdapter, refuse, split_heads
from prism.spec import ModelSpec


class GPT2Block:
    """GPT2Block: norm first, one weight [D, 3 D] for queries, keys and values."""

    def __init__(self, block: Any) -> None:
        self._block, self._attn = block, block.attn
        self.scale: float = self._attn.scaling

    @property
    def dropout(self) -> float:
        return self._attn.attn_dropout.p if self._block.training else 0.0

    def project(self, x_BnD: Tensor, at: Positions = None) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = self._attn.c_attn(self._block.ln_1(x_BnD)).chunk(3, dim=-1)
        heads = self._attn.num_heads
        return split_heads(query, heads), split_heads(key, heads), split_heads(value, heads)

    def project_kv(self, z_BMD: Tensor, at: Positions = None) -> tuple[Tensor, Tensor]:
        width, c_attn = self._attn.embed_dim, self._attn.c_attn
        rows = self._block.ln_1(z_BMD).flatten(0, 1)
        both = torch.addmm(c_attn.bias[width:], rows, c_attn.weight[:, width:])
        key, value = both.unflatten(0, z_BMD.shape[:2]).chunk(2, dim=-1)
        return split_heads(key, self._attn.num_heads), split_heads(value, self._attn.num_heads)

    def finish(self, x_BnD: Tensor, mixed_BnD: Tensor) -> Tensor:
        block, attn = self._block, self._attn
        x_BnD = x_BnD + attn.resid_dropout(attn.c_proj(mixed_BnD))
        return x_BnD + block.mlp(block.ln_2(x_BnD))


class GPT2(TransformersAdapter):
    """Adapter of a GPT2Model or of a model that has one. Outputs carry no past_key_values."""

    plain, pretrained, layers, block = GPT2Model, GPT2PreTrainedModel, "h", GPT2Block
    embeddings = ("wte", "wpe")
    behind = ("ln_f",)
    forced: ClassVar[Mapping[str, Any]] = {"use_cache": False}
    refused: ClassVar[Mapping[str, str]] = {
        "past_key_values": "pass whole prompts",
        "cache": "pass whole prompts",  # its name since transformers 5.24
        "use_cache": "pass use_cache=False: a cache would stay spread over the ranks",
        "encoder_hidden_states": "use the decoder alone",
        "output_attentions": "run it locally to read attentions",
        "output_hidden_states": "run it locally to read hidden states",
    }

    def __init__(self, model: Any, family: Family) -> None:
        super().__init__(model, family)
        if model.config.add_cross_attention:
            raise refuse(self._name, "cross-attention", "use a decoder without it")

    @property
    def spec(self) -> ModelSpec:
        config = self._model.config
        labels = config.num_labels if hasattr(self._model, "score") else 0
        return self._shape(
            blocks=config.n_layer,
            width=config.n_embd,
            heads=config.n_head,
            mlp_width=config.n_inner or 4 * config.n_embd,
            tokens=config.n_positions,
            output_width=config.vocab_size if hasattr(self._model, "lm_head") else labels,
            head="all",
        )

    def place(self, rows_BRD: Tensor, tokens: int) -> Tensor:
        # the model reshapes to all its tokens before it picks the last ones
        return F.pad(rows_BRD, (0, 0, tokens - rows_BRD.shape[1], 0))
