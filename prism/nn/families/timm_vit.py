"""Adapt timm's VisionTransformer.

ViT, DeiT (not distilled), DINOv2 with registers and LayerScale; pre- and post-norm blocks, any number of prefix
tokens, class-token and pooled heads.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from timm.layers import Attention
from timm.models import vision_transformer as vit
from torch import Tensor, nn
from torch.nn import functional as F

from prism.errors import UnsupportedModelError
from prism.families import Family
from prism.nn.families.base import Adapter, Positions, parameter_count, refuse, split_heads
from prism.nn.inputs import Pixels
from prism.partition import Rows
from prism.spec import ModelSpec


class TimmViT(Adapter):
    """Adapter of a timm VisionTransformer."""

    stack_path = "blocks"

    def __init__(self, model: Any, family: Family) -> None:
        super().__init__(model, family)
        self._name = model.__dict__.get("pretrained_cfg", {}).get("architecture") or type(model).__name__
        for block in model.blocks:
            _check_block(self._name, block)
        if type(model.patch_drop) is not nn.Identity and model.training:
            raise refuse(self._name, "patch dropout in training", "call model.eval()")

    @classmethod
    def handles(cls, model: nn.Module) -> bool:
        return type(model) is vit.VisionTransformer

    @property
    def spec(self) -> ModelSpec:
        model, block = self._model, self._model.blocks[0]
        patch = model.patch_embed.proj
        prefix = model.num_prefix_tokens
        return ModelSpec(
            name=self._name,
            family=self._family.name,
            blocks=len(model.blocks),
            width=model.embed_dim,
            heads=block.attn.num_heads,
            mlp_width=block.mlp.fc1.out_features,
            tokens=model.patch_embed.num_patches + prefix,
            prefix_tokens=prefix,
            patch_values=patch.weight[0].numel(),
            output_width=model.num_classes,
            head={"token": "first", "mean": "mean", "all": "all"}[self._head()],  # type: ignore[arg-type]
            parameters=parameter_count(model),
        )

    @property
    def ends(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        before = ("cls_token", "reg_token", "pos_embed", "patch_embed", "norm_pre")
        return before, ("norm", "fc_norm", "head", "attn_pool")

    def head_arguments(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        return {}

    def head(self, x_BRD: Tensor, arguments: Mapping[str, Any]) -> Any:
        return self._model.forward_head(self._model.norm(x_BRD))

    @property
    def pixels(self) -> Pixels | None:
        config = self._model.__dict__.get("pretrained_cfg", {})
        return Pixels(tuple(config["mean"]), tuple(config["std"])) if config.get("mean") else None

    def _head(self) -> str:
        model = self._model
        if model.attn_pool is None and model.global_pool == "token":
            return "token"
        averages = model.attn_pool is None and model.global_pool == "avg" and not model.pool_include_prefix
        # a norm before the pooling isn't linear: only then the mean of the parts' means is the mean
        return "mean" if averages and isinstance(model.norm, nn.Identity) else "all"

    def blocks(self) -> Sequence["TimmBlock"]:
        return [TimmBlock(block) for block in self._model.blocks]

    def padding(self, arguments: Mapping[str, Any]) -> Tensor | None:
        if arguments.get("attn_mask") is not None or arguments.get("is_causal"):
            raise refuse(self._name, "attn_mask or is_causal", "call the model with images only")
        return None

    def rows(self, arguments: Mapping[str, Any], tokens: int) -> Rows:
        head = self._head()
        if head == "token":
            return Rows(start=0, stop=1)
        return Rows(start=0, stop=tokens, mean_from=self._model.num_prefix_tokens if head == "mean" else -1)


class TimmBlock:
    """Block (norm first) or ResPostBlock (norm on the branch's output)."""

    def __init__(self, block: Any) -> None:
        self._block, self._attn = block, block.attn
        self._post = isinstance(block, vit.ResPostBlock)
        self.scale: float = self._attn.scale

    @property
    def dropout(self) -> float:
        return self._attn.attn_drop.p if self._block.training else 0.0

    def project(self, x_BnD: Tensor, at: Positions = None) -> tuple[Tensor, Tensor, Tensor]:
        attn = self._attn
        query, key, value = attn.qkv(self._normed(x_BnD)).chunk(3, dim=-1)
        heads = attn.num_heads
        return (attn.q_norm(split_heads(query, heads)), attn.k_norm(split_heads(key, heads)), split_heads(value, heads))

    def project_kv(self, z_BMD: Tensor, at: Positions = None) -> tuple[Tensor, Tensor]:
        attn, qkv, width = self._attn, self._attn.qkv, self._attn.attn_dim
        bias = None if qkv.bias is None else qkv.bias[width:]
        key, value = F.linear(self._normed(z_BMD), qkv.weight[width:], bias).chunk(2, dim=-1)
        return attn.k_norm(split_heads(key, attn.num_heads)), split_heads(value, attn.num_heads)

    def finish(self, x_BnD: Tensor, mixed_BnD: Tensor) -> Tensor:
        block, attn = self._block, self._attn
        branch = attn.proj_drop(attn.proj(attn.norm(mixed_BnD)))
        if self._post:
            x_BnD = x_BnD + block.drop_path1(block.norm1(branch))
            return x_BnD + block.drop_path2(block.norm2(block.mlp(x_BnD)))
        x_BnD = x_BnD + block.drop_path1(block.ls1(branch))
        return x_BnD + block.drop_path2(block.ls2(block.mlp(block.norm2(x_BnD))))

    def _normed(self, x: Tensor) -> Tensor:
        return x if self._post else self._block.norm1(x)


def _check_block(name: str, block: nn.Module) -> None:
    if type(block) not in (vit.Block, vit.ResPostBlock):
        raise UnsupportedModelError(
            f"{name}: blocks of type {type(block).__name__} can't be distributed; use a model of Block or ResPostBlock"
        )
    attn: Any = block.attn
    if type(attn) is not Attention or attn.gate is not None:
        kind = "gated attention" if type(attn) is Attention else f"attention of type {type(attn).__name__}"
        raise UnsupportedModelError(f"{name}: {kind} can't be distributed; use a model of plain Attention")
