"""Send a call's arguments to another device: a batch cut by samples, each tensor in its smallest exact form.

Pixels of images that came as bytes cross as bytes, and the receiver prepares them again. That the result is the same
bits is checked where they are sent, not assumed.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor

from prism.errors import UnsupportedModelError
from prism.nn.exchange import Exchange, Expected
from prism.nn.recorder import Recorder

Scalar = bool | int | float | str | None
OF_TOKENS = ("logits_to_keep",)  # arguments of transformers that name tokens: one tensor for all samples
OF_LOSS = ("labels", "mc_labels", "next_sentence_label", "start_positions", "end_positions")  # ask for a loss as well


class Pixels(NamedTuple):
    """How a model's preprocessing makes values of bytes: (byte / 255 - mean) / std, a channel each."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def values(self, bytes_BCHW: Tensor, dtype: torch.dtype) -> Tensor:
        """Prepare bytes as torchvision's to_tensor and normalize do, operation by operation."""
        mean, std = (torch.tensor(row, dtype=dtype, device=bytes_BCHW.device)[:, None, None] for row in self)
        return bytes_BCHW.to(dtype).div(255).sub_(mean).div_(std)

    def bytes(self, x_BCHW: Tensor) -> Tensor | None:
        """The bytes that give exactly these values; None where there are none."""
        for images in (x_BCHW[:1], x_BCHW):  # most that can't be bytes are found out by the first image
            mean, std = (torch.tensor(row, dtype=torch.float64, device=images.device)[:, None, None] for row in self)
            found = (images * std + mean).mul_(255).round_().clamp_(0, 255).to(torch.uint8)
            if not torch.equal(self.values(found, images.dtype), images):
                return None
        return found


class Field(msgspec.Struct, frozen=True, array_like=True):
    """A tensor of a call.

    sent: the dtype that crosses. pixels: what makes values of it, where bytes of images cross.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    sent: str
    pixels: Pixels | None = None

    @property
    def bytes(self) -> int:
        """Bytes that cross."""
        return _dtype(self.sent).itemsize * torch.Size(self.shape).numel()


class Inputs(msgspec.Struct, frozen=True):
    """What a receiver must know of a call: its tensors in the order in which they cross, and its plain values."""

    fields: tuple[Field, ...]
    scalars: dict[str, Scalar]

    @property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(field.bytes for field in self.fields)


def samples_of(arguments: Mapping[str, Any]) -> int:
    """Samples of a call: rows of its first tensor. Raises UnsupportedModelError for a call without one."""
    for value in arguments.values():
        if isinstance(value, Tensor) and value.ndim:
            return len(value)
    raise UnsupportedModelError("the call has no tensor to split over replicas; pass a batch, or use one replica")


def kind_of(arguments: Mapping[str, Any]) -> tuple[Any, ...]:
    """All of a call that the layout of its answer depends on: everything but the values and the number of samples."""
    return tuple((name, *_kind(name, value)) for name, value in arguments.items())


def _kind(name: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, Tensor):
        return (value,)
    return (str(value.tolist()),) if name in OF_TOKENS else (value.shape[1:], value.dtype)


def piece(arguments: Mapping[str, Any], start: int, stop: int) -> dict[str, Any]:
    """Samples [start, stop) of a call. A tensor of one row, or of tokens, belongs to all of them.

    Raises UnsupportedModelError for a tensor that isn't one row a sample, and for labels: a loss is the whole batch's.
    """
    whole = samples_of(arguments)
    return {name: _rows(name, value, whole, start, stop) for name, value in arguments.items()}


def _rows(name: str, value: Any, whole: int, start: int, stop: int) -> Any:
    if name in OF_LOSS and value is not None:
        raise UnsupportedModelError(
            f"argument {name} asks for a loss over all {whole} samples, which nobody has when they are split; leave it "
            f"out, or use one replica and one stage"
        )
    if not isinstance(value, Tensor) or value.ndim == 0 or name in OF_TOKENS:
        return value
    if len(value) == whole:
        return value[start:stop]
    if len(value) == 1:
        return value
    raise UnsupportedModelError(
        f"argument {name} has {len(value)} rows for {whole} samples, so it can't be split over replicas; give it one "
        f"row a sample, or use one replica"
    )


def packed(arguments: Mapping[str, Any], pixels: Pixels | None) -> tuple[Inputs, Tensor]:
    """Describe a call, and pack its tensors to one row of bytes. Raises UnsupportedModelError for what can't cross."""
    fields, tensors, scalars = list[Field](), list[Tensor](), dict[str, Scalar]()
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            sent, used = _smallest(value, pixels)
            fields.append(Field(name, tuple(value.shape), _name(value.dtype), _name(sent.dtype), used))
            tensors.append(sent.contiguous().view(-1).view(torch.uint8))
        elif value is None or isinstance(value, bool | int | float | str):
            scalars[name] = value
        else:
            raise UnsupportedModelError(
                f"argument {name} is a {type(value).__name__}, which can't be sent to a replica; pass tensors and "
                f"plain values, or use one replica"
            )
    return Inputs(tuple(fields), scalars), torch.cat(tensors) if tensors else torch.empty(0, dtype=torch.uint8)


def received(inputs: Inputs, exchange: Exchange, recorder: Recorder, device: torch.device) -> dict[str, Any]:
    """Receive a call's arguments from rank 0."""
    if not inputs.bytes:
        return dict(inputs.scalars)
    expected: Expected = ((inputs.bytes,), torch.uint8)
    raw = exchange.start({}, {0: expected}, "inputs", -1).wait()[0]
    recorder.switch("compute", "embed", -1)
    return unpacked(inputs, raw, device)


def unpacked(inputs: Inputs, raw: Tensor, device: torch.device) -> dict[str, Any]:
    """Rebuild a call's arguments from its row of bytes: the very bits that `packed` got."""
    arguments, start = dict[str, Any](inputs.scalars), 0
    for field in inputs.fields:
        sent = raw[start : start + field.bytes].clone().view(_dtype(field.sent)).view(field.shape).to(device)
        dtype = _dtype(field.dtype)
        arguments[field.name] = sent.to(dtype) if field.pixels is None else field.pixels.values(sent, dtype)
        start += field.bytes
    return arguments


def _smallest(value: Tensor, pixels: Pixels | None) -> tuple[Tensor, Pixels | None]:
    """The smallest form of a tensor that gives it back bit by bit."""
    if value.dtype == torch.bool:
        return value.to(torch.uint8), None
    if not value.dtype.is_floating_point:
        low, high = (int(value.min()), int(value.max())) if value.numel() else (0, 0)
        for dtype in (torch.uint8, torch.int16, torch.int32):
            limits = torch.iinfo(dtype)
            if dtype.itemsize < value.dtype.itemsize and limits.min <= low and high <= limits.max:
                return value.to(dtype), None
    elif pixels is not None and value.ndim == 4 and value.shape[1] == len(pixels.mean):
        found = pixels.bytes(value)
        if found is not None:
            return found, pixels
    return value, None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise UnsupportedModelError(f"a tensor of type {name} is unknown here; run the same torch on every device")
    return dtype
