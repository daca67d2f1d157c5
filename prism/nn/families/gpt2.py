"""GPT-2 of transformers: the plain decoder and every GPT2... head on top of it. Whole prompts, no cache."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Model, GPT2PreTrainedModel

from prism.nn.families.base import parameter_count, refuse, split_heads, text_padding
from prism.partition import Rows
from prism.spec import ModelSpec

_REFUSED = {
    "past_key_values": "pass whole prompts",
    "cache": "pass whole prompts",  # its name since transformers 5.24
    "use_cache": "pass use_cache=False: a cache would stay spread over the ranks",
    "encoder_hidden_states": "use the decoder alone",
    "output_attentions": "run it locally to read attentions",
    "output_hidden_states": "run it locally to read hidden states",
}


class GPT2:
    """Adapter of a GPT2Model or of a model that has one. Outputs carry no past_key_values."""

    causal = True
    forced: Mapping[str, Any] = {"use_cache": False}
    rotation = None

    def __init__(self, model: Any) -> None:
        self._model = model
        self._name = type(model).__name__
        self._gpt2 = model if isinstance(model, GPT2Model) else model.transformer
        self.stack_path = "h" if isinstance(model, GPT2Model) else "transformer.h"
        if model.config.add_cross_attention:
            raise refuse(self._name, "cross-attention", "use a decoder without it")

    @classmethod
    def handles(cls, model: nn.Module) -> bool:
        return isinstance(model, GPT2Model) or (
            isinstance(model, GPT2PreTrainedModel) and isinstance(getattr(model, "transformer", None), GPT2Model)
        )

    @property
    def spec(self) -> ModelSpec:
        config = self._model.config
        has_vocabulary = hasattr(self._model, "lm_head")
        labels = config.num_labels if hasattr(self._model, "score") else 0
        return ModelSpec(
            name=config.name_or_path or self._name,
            family="gpt2",
            blocks=config.n_layer,
            width=config.n_embd,
            heads=config.n_head,
            mlp_width=config.n_inner or 4 * config.n_embd,
            tokens=config.n_positions,
            output_width=config.vocab_size if has_vocabulary else labels,
            head="all",
            causal=True,
            parameters=parameter_count(self._model),
        )

    def blocks(self) -> Sequence["GPT2Block"]:
        return [GPT2Block(block) for block in self._gpt2.h]

    def padding(self, arguments: Mapping[str, Any]) -> Tensor | None:
        return text_padding(arguments, self._name, _REFUSED)

    def rows(self, arguments: Mapping[str, Any], tokens: int) -> Rows:
        keep = arguments.get("logits_to_keep", 0)
        if isinstance(keep, torch.Tensor) or not 0 < keep < tokens:
            return Rows(start=0, stop=tokens)
        return Rows(start=tokens - keep, stop=tokens)

    def place(self, rows_BRD: Tensor, tokens: int) -> Tensor:
        # the model reshapes to all its tokens before it picks the last ones
        return F.pad(rows_BRD, (0, 0, tokens - rows_BRD.shape[1], 0))


class GPT2Block:
    """GPT2Block: norm first, one weight [D, 3 D] for queries, keys and values."""

    def __init__(self, block: Any) -> None:
        self._block, self._attn = block, block.attn
        self.scale: float = self._attn.scaling

    @property
    def dropout(self) -> float:
        return self._attn.attn_dropout.p if self._block.training else 0.0

    def project(self, x_BnD: Tensor, at: Any = None) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = self._attn.c_attn(self._block.ln_1(x_BnD)).chunk(3, dim=-1)
        heads = self._attn.num_heads
        return split_heads(query, heads), split_heads(key, heads), split_heads(value, heads)

    def project_kv(self, z_BMD: Tensor, at: Any = None) -> tuple[Tensor, Tensor]:
        width, c_attn = self._attn.embed_dim, self._attn.c_attn
        rows = self._block.ln_1(z_BMD).flatten(0, 1)
        both = torch.addmm(c_attn.bias[width:], rows, c_attn.weight[:, width:])
        key, value = both.unflatten(0, z_BMD.shape[:2]).chunk(2, dim=-1)
        return split_heads(key, self._attn.num_heads), split_heads(value, self._attn.num_heads)

    def finish(self, x_BnD: Tensor, mixed_BnD: Tensor) -> Tensor:
        block, attn = self._block, self._attn
        x_BnD = x_BnD + attn.resid_dropout(attn.c_proj(mixed_BnD))
        return x_BnD + block.mlp(block.ln_2(x_BnD))
