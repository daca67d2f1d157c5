"""What the partitioned forward pass needs to know of a model family. One file a family stands beside.

An adapter finds the stack of blocks inside a model and splits a block into the steps around the
exchange. The rest of the model (embedding, head, output type) runs as its authors wrote it.

Shapes: B batch, n own tokens, M rows received, H heads, C channels of a head, D width.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from prism.errors import UnsupportedModelError
from prism.partition import Rows
from prism.spec import ModelSpec


class Block(Protocol):
    """One Transformer block in steps. `scale` multiplies the logits, `dropout` is for training."""

    @property
    def scale(self) -> float: ...

    @property
    def dropout(self) -> float: ...

    def project(self, x_BnD: Tensor, at: Any = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of own rows, each [B, H, n, C]. `at`: what the adapter's `rotation` made
        of their positions."""
        ...

    def project_kv(self, z_BMD: Tensor, at: Any = None) -> tuple[Tensor, Tensor]:
        """Keys and values of received rows, each [B, H, M, C]."""
        ...

    def finish(self, x_BnD: Tensor, mixed_BnD: Tensor) -> Tensor:
        """The block's output rows from its input rows and the attention's, heads joined."""
        ...


class ModelAdapter(Protocol):
    """A model of one family, wrapped. Constructing it refuses what the family can't do."""

    stack_path: str
    causal: bool
    forced: Mapping[str, Any]  # arguments that every distributed call gets
    # where blocks need positions: makes of [B or 1, M] positions, maybe fractions, what blocks take as `at`
    rotation: Callable[[Tensor], Tensor] | None

    def __init__(self, model: Any) -> None: ...

    @classmethod
    def handles(cls, model: nn.Module) -> bool: ...

    @property
    def spec(self) -> ModelSpec: ...

    def blocks(self) -> Sequence[Block]: ...

    def padding(self, arguments: Mapping[str, Any]) -> Tensor | None:
        """The [B, N] mask of real tokens (1) and padding (0), or None without padding. Raises
        UnsupportedModelError for arguments that the partitioned pass can't honour."""
        ...

    def rows(self, arguments: Mapping[str, Any], tokens: int) -> Rows:
        """The rows of the last block that this call's head reads."""
        ...

    def place(self, rows_BRD: Tensor, tokens: int) -> Tensor:
        """The rows where the head looks for them."""
        ...


def split_heads(x_BnD: Tensor, heads: int) -> Tensor:
    """[B, n, H * C] to [B, H, n, C], a view."""
    return x_BnD.unflatten(-1, (heads, -1)).transpose(1, 2)


def bind(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """A call's arguments by the names of the model's own forward."""
    try:
        bound = inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise UnsupportedModelError(f"the call doesn't fit {type(model).__name__}.forward: {error}") from None
    arguments = dict(bound.arguments)
    return {**arguments.pop("kwargs", {}), **arguments}


def refuse(name: str, feature: str, remedy: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"{name}: {feature} can't be distributed; {remedy}")


def text_padding(arguments: Mapping[str, Any], name: str, refused: Mapping[str, str]) -> Tensor | None:
    """The padding mask of a transformers call; `refused` arguments (name to remedy) must be unset."""
    for argument, remedy in refused.items():
        if (value := arguments.get(argument)) is not None and value is not False:
            raise refuse(name, f"{argument}={type(value).__name__}", remedy)
    mask = arguments.get("attention_mask")
    if mask is None:
        return None
    if mask.ndim > 3 or (mask.ndim == 3 and "MultipleChoice" not in name):
        raise refuse(name, f"an attention_mask of {mask.ndim} dimensions", "pass the [batch, tokens] mask")
    mask = mask.reshape(-1, mask.shape[-1])
    return None if bool((mask != 0).all()) else (mask != 0).to(torch.uint8)


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
