"""Say what the partitioned forward pass needs to know of a model family. One module a family stands beside.

An adapter finds the stack of blocks inside a model and splits a block into the steps around the
exchange. The rest of the model (embedding, head, output type) runs as its authors wrote it.

Shapes: B batch, N tokens, n own tokens, M rows received, R rows the head reads, H heads, C channels of a head, D width.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from prism.errors import UnsupportedModelError
from prism.families import Family
from prism.nn.families.shell import with_replaced
from prism.nn.inputs import Pixels
from prism.partition import Rows
from prism.spec import ModelSpec

# cosines and sines of rows' positions, [2, B or 1, 1, M, C]; None in a family whose blocks need no positions
Positions = Tensor | None


class Block(Protocol):
    """One Transformer block in steps. `scale` multiplies the logits, `dropout` is for training."""

    @property
    def scale(self) -> float: ...

    @property
    def dropout(self) -> float: ...

    def project(self, x_BnD: Tensor, at: Positions = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of own rows, each [B, H, n, C]. at: of the rows, from the adapter's `rotation`."""
        ...

    def project_kv(self, z_BMD: Tensor, at: Positions = None) -> tuple[Tensor, Tensor]:
        """Keys and values of received rows, each [B, H, M, C]."""
        ...

    def finish(self, x_BnD: Tensor, mixed_BnD: Tensor) -> Tensor:
        """The block's output rows [B, n, D] from its input rows and the attention's, heads joined."""
        ...


class Adapter(ABC):
    """A model of one family, wrapped. Constructing it refuses what the family can't do."""

    stack_path: str  # of the blocks inside the model
    forced: ClassVar[Mapping[str, Any]] = {}  # arguments that every distributed call gets
    # where blocks need positions: turns [B or 1, M] positions, maybe fractions, into what blocks take as `at`
    rotation: Callable[[Tensor], Tensor] | None = None

    def __init__(self, model: Any, family: Family) -> None:
        self._model, self._family, self._name = model, family, type(model).__name__

    @property
    def pixels(self) -> Pixels | None:
        """How the model's preprocessing makes values of an image's bytes; None where it takes no images."""
        return None

    @property
    def causal(self) -> bool:
        """Whether a token sees only earlier ones."""
        return self._family.causal

    @classmethod
    @abstractmethod
    def handles(cls, model: nn.Module) -> bool:
        """Whether a model is of this family."""

    @property
    @abstractmethod
    def spec(self) -> ModelSpec:
        """The model's shape."""

    @property
    @abstractmethod
    def ends(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Paths of the modules and parameters before the blocks, and of those behind them."""

    def owner(self, parameter: str) -> int:
        """Whose a parameter is: -1 of what is before the blocks, a block's number, or their count for what is behind.

        Raises UnsupportedModelError for a parameter that is none of these, which a pipeline can't place.
        """
        if parameter.startswith(f"{self.stack_path}."):
            return int(parameter.removeprefix(f"{self.stack_path}.").partition(".")[0])
        for paths, number in zip(self.ends, (-1, self.spec.blocks), strict=True):
            if any(parameter == path or parameter.startswith(f"{path}.") for path in paths):
                return number
        raise refuse(self._name, f"the parameter {parameter}", "use a plan of one stage")

    @abstractmethod
    def blocks(self) -> Sequence[Block]:
        """Every block, in order."""

    @abstractmethod
    def padding(self, arguments: Mapping[str, Any]) -> Tensor | None:
        """The [B, N] mask of real tokens (1) and padding (0), or None without padding.

        Raises UnsupportedModelError for arguments that the partitioned pass can't honour.
        """

    @abstractmethod
    def rows(self, arguments: Mapping[str, Any], tokens: int) -> Rows:
        """The rows of the last block that this call's head reads."""

    def head_arguments(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """What of a call `head` needs."""
        return arguments

    @abstractmethod
    def head(self, x_BRD: Tensor, arguments: Mapping[str, Any]) -> Any:
        """The model's output from what `place` gives, by the model's own code and without its embedding."""

    def place(self, rows_BRD: Tensor, tokens: int) -> Tensor:
        """Put the rows where the head looks for them."""
        return rows_BRD


HEADS = ("classifier", "cls", "qa_outputs", "lm_head", "score", "multiple_choice_head")  # of transformers' classes


class TransformersAdapter(Adapter):
    """A plain model of transformers, or a head on top of one: what these families share.

    plain: the class without a head. pretrained: the base of every class with one.
    layers: path of the blocks inside the plain model. block: wraps one of them.
    embeddings, behind: paths of the modules that turn ids and positions into rows, and of those that follow the blocks,
    inside the plain model.
    refused: arguments that must be unset, with the remedy.
    """

    plain: ClassVar[type[nn.Module]]
    pretrained: ClassVar[type[nn.Module]]
    layers: ClassVar[str]
    block: ClassVar[type[Any]]
    embeddings: ClassVar[tuple[str, ...]]
    behind: ClassVar[tuple[str, ...]]
    refused: ClassVar[Mapping[str, str]]

    def __init__(self, model: Any, family: Family) -> None:
        super().__init__(model, family)
        whole = isinstance(model, self.plain)
        self._inner = model if whole else getattr(model, model.base_model_prefix)
        self.stack_path = self.layers if whole else f"{model.base_model_prefix}.{self.layers}"

    @classmethod
    def handles(cls, model: nn.Module) -> bool:
        """Whether a model is the plain one or has it under its library's name for it."""
        return isinstance(model, cls.plain) or (
            isinstance(model, cls.pretrained)
            and isinstance(getattr(model, str(model.base_model_prefix), None), cls.plain)
        )

    def blocks(self) -> Sequence[Block]:
        """Every block, in order."""
        return [self.block(layer) for layer in self._inner.get_submodule(self.layers)]

    @property
    def ends(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Paths of the embedding's modules, and of the last norm, poolers and heads."""
        prefix = self.stack_path.removesuffix(self.layers)
        before, behind = (tuple(f"{prefix}{path}" for path in paths) for paths in (self.embeddings, self.behind))
        return before, (*behind, *HEADS)

    def head(self, x_BRD: Tensor, arguments: Mapping[str, Any]) -> Any:
        """Call the model with stand-ins for its embedding and its blocks."""

        def embedded(*args: Any, **kwargs: Any) -> Tensor:
            ids = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
            return x_BRD.new_zeros(1).expand(*ids.shape[:2], x_BRD.shape[-1])

        stand_ins: dict[str, Callable[..., Tensor]] = dict.fromkeys(self.ends[0], embedded)
        return with_replaced(self._model, {**stand_ins, self.stack_path: lambda *_, **__: x_BRD})(**arguments)

    def padding(self, arguments: Mapping[str, Any]) -> Tensor | None:
        """The call's attention_mask as [B, N]; refuses what is in `refused` and masks of single logits."""
        for argument, remedy in self.refused.items():
            if (value := arguments.get(argument)) is not None and value is not False:
                raise refuse(self._name, f"{argument}={type(value).__name__}", remedy)
        mask = arguments.get("attention_mask")
        if mask is None:
            return None
        if mask.ndim > 3 or (mask.ndim == 3 and "MultipleChoice" not in self._name):
            raise refuse(self._name, f"an attention_mask of {mask.ndim} dimensions", "pass the [batch, tokens] mask")
        mask = mask.reshape(-1, mask.shape[-1])
        return None if bool((mask != 0).all()) else (mask != 0).to(torch.uint8)

    def rows(self, arguments: Mapping[str, Any], tokens: int) -> Rows:
        """All rows, or the last ones where the vocabulary head is asked for those alone."""
        keep = arguments.get("logits_to_keep", 0) if hasattr(self._model, "lm_head") else 0
        if isinstance(keep, Tensor) or not 0 < keep < tokens:
            return Rows(start=0, stop=tokens)
        return Rows(start=tokens - keep, stop=tokens)

    def _shape(self, **shape: Any) -> ModelSpec:
        """A ModelSpec with what every model of transformers says in the same words."""
        return ModelSpec(
            name=self._model.config.name_or_path or self._name,
            family=self._family.name,
            causal=self._family.causal,
            parameters=parameter_count(self._model),
            **shape,
        )


def split_heads(x_BnD: Tensor, heads: int) -> Tensor:
    """[B, n, H * C] to [B, H, n, C], a view."""
    return x_BnD.unflatten(-1, (heads, -1)).transpose(1, 2)


def bind(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Name a call's arguments as the model's own forward does. Raises UnsupportedModelError where they don't fit it."""
    try:
        bound = inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise UnsupportedModelError(f"the call doesn't fit {type(model).__name__}.forward: {error}") from None
    arguments = dict(bound.arguments)
    return {**arguments.pop("kwargs", {}), **arguments}


def refuse(name: str, feature: str, remedy: str) -> UnsupportedModelError:
    """The error that a feature of a model or of a call can't be distributed."""
    return UnsupportedModelError(f"{name}: {feature} can't be distributed; {remedy}")


def parameter_count(model: nn.Module) -> int:
    """Values of all parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
