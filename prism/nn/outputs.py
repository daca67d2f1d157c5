"""Take a model's output apart into tensors and put it together again: from the samples of several devices, in order."""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import torch
from torch import Tensor

from prism.errors import ExchangeError, UnsupportedModelError


class Leaf(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A tensor with one row a sample. shape: of a row."""

    shape: tuple[int, ...]
    dtype: str


class Node(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Several outputs. kind: tuple, list, or the name of one of transformers' ModelOutputs, whose keys are `names`."""

    kind: str
    names: tuple[str, ...]
    items: "tuple[Leaf | Node | None, ...]"


Layout = Leaf | Node | None


def layout_of(output: Any, samples: int) -> Layout:
    """Describe an output of so many samples. Raises UnsupportedModelError for one that can't be joined by samples."""
    if output is None:
        return None
    if isinstance(output, Tensor):
        if output.ndim == 0 or len(output) != samples:
            raise UnsupportedModelError(
                f"an output of shape {list(output.shape)} has no row for each of {samples} samples, so replicas can't "
                f"share it; use one replica and one stage"
            )
        return Leaf(tuple(output.shape[1:]), str(output.dtype).removeprefix("torch."))
    if isinstance(output, dict):  # transformers' ModelOutput is one
        items = tuple(layout_of(item, samples) for item in output.values())
        return Node(type(output).__name__, tuple(output), items)
    if type(output) in (tuple, list):
        return Node(type(output).__name__, (), tuple(layout_of(item, samples) for item in output))
    raise UnsupportedModelError(
        f"an output of type {type(output).__name__} can't be put together again; use one replica and one stage"
    )


def size_of(layout: Layout, samples: int) -> int:
    """Bytes of an output of so many samples."""
    per_sample = [torch.Size(leaf.shape).numel() * _dtype(leaf).itemsize for leaf in leaves(layout)]
    return samples * sum(per_sample)


def leaves(layout: Layout) -> Iterator[Leaf]:
    """Every tensor of a layout, in order."""
    if isinstance(layout, Leaf):
        yield layout
    elif isinstance(layout, Node):
        for item in layout.items:
            yield from leaves(item)


def packed(output: Any) -> Tensor:
    """Pack an output's tensors to one row of bytes."""
    return torch.cat([tensor.contiguous().view(-1).view(torch.uint8) for tensor in _tensors(output)])


def unpacked(layout: Layout, raw: Tensor, samples: int, device: torch.device) -> list[Tensor]:
    """Cut the tensors of an output of so many samples out of its row of bytes."""
    found, start = list[Tensor](), 0
    for leaf in leaves(layout):
        stop = start + size_of(leaf, samples)
        found.append(raw[start:stop].clone().view(_dtype(leaf)).view(samples, *leaf.shape).to(device))
        start = stop
    return found


def joined(layout: Layout, pieces: Sequence[Sequence[Tensor]]) -> Any:
    """Join the tensors of several outputs of one layout to one output, in the order given."""
    return _built(layout, iter([torch.cat(rows) for rows in zip(*pieces, strict=True)]))


def tensors_of(output: Any) -> list[Tensor]:
    """Every tensor of an output, in the order of its layout."""
    return list(_tensors(output))


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif output is not None:
        for item in output.values() if isinstance(output, dict) else output:
            yield from _tensors(item)


def _built(layout: Layout, tensors: Iterator[Tensor]) -> Any:
    if layout is None:
        return None
    if isinstance(layout, Leaf):
        return next(tensors)
    items = [_built(item, tensors) for item in layout.items]
    if layout.kind in ("tuple", "list"):
        return tuple(items) if layout.kind == "tuple" else items
    return _class(layout.kind)(**dict(zip(layout.names, items, strict=True)))


def _dtype(leaf: Leaf) -> torch.dtype:
    dtype = getattr(torch, leaf.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise ExchangeError(f"a tensor of type {leaf.dtype} is unknown here; run the same torch on every device")
    return dtype


def _class(name: str) -> Any:
    """Look up a class of outputs by name among those that are loaded."""
    if name == "dict":
        return dict
    from transformers.utils import ModelOutput

    todo = [ModelOutput]
    while todo:
        cls = todo.pop()
        if cls.__name__ == name:
            return cls
        todo += cls.__subclasses__()
    raise ExchangeError(f"an output of class {name} is unknown here; run the same transformers on every device")
