"""Encode and decode what crosses the link, with an exact byte count. prism.codecs has a row for each codec.

intK quantises groups of 32 consecutive values to K bits between the group's minimum and maximum; scale and
minimum travel as fp16. Payload layout: scales, minima, packed values.

deltaK is differential coding (DPCM) from block to block: a part's rows change little in one block of a residual
network, so what crosses is the difference to the rows that the receivers already have. Groups of 128 consecutive
values are rotated by a Hadamard matrix with random signs, after which outliers are spread and the values are near
Gaussian, and quantised with the step that loses least on those; one fp16 step per group. The loop is closed: the
sender predicts from what the receivers decoded, so an error is corrected in the next block and never adds up.
Payload layout: steps, packed values.
"""

import random
from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from prism.codecs import CODECS, DELTA_GROUP, Codec, Wire

_FLOAT = {32: torch.float32, 16: torch.float16}
_MAX16 = 65504.0
_TINY16 = torch.finfo(torch.float16).tiny
# step of a uniform quantiser of K bits that loses least on Gaussian values, by their rms (Max 1960, table II)
_STEP = {1: 1.596, 2: 0.9957, 3: 0.5860, 4: 0.3352}


class Stream(Protocol):
    """A part's rows, block after block of one batch.

    Their owner encodes them, each receiver decodes them with a stream of its own. Streams of one part stay equal, as
    they take the same payloads. `shape` is one block's.
    """

    def __init__(self, codec: Codec, shape: tuple[int, ...]) -> None: ...

    def encode(self, x: Tensor) -> Tensor:
        """The payload of this block's rows, of the shape and type that `payload_like` gives."""
        ...

    def decode(self, payload: Tensor, dtype: torch.dtype) -> Tensor:
        """This block's rows, of the stream's shape."""
        ...


class _Float:
    """A float type: the tensor itself where it already has the type, else a copy."""

    def __init__(self, codec: Codec, shape: tuple[int, ...]) -> None:
        self._type, self._shape = _FLOAT[codec.bits], shape

    def encode(self, x: Tensor) -> Tensor:
        half = self._type == torch.float16 and x.dtype != torch.float16
        return (x.clamp(-_MAX16, _MAX16) if half else x).to(self._type).contiguous()

    def decode(self, payload: Tensor, dtype: torch.dtype) -> Tensor:
        return payload.view(self._shape).to(dtype)


class _Integer:
    """Groups between their minimum and maximum, each block by itself."""

    def __init__(self, codec: Codec, shape: tuple[int, ...]) -> None:
        self._codec, self._shape = codec, shape

    def encode(self, x: Tensor) -> Tensor:
        bits = self._codec.bits
        groups = self._grouped(x.float())
        low, high = groups.aminmax(dim=1, keepdim=True)
        minimum = low.clamp(-_MAX16, _MAX16).half()
        levels = 2**bits - 1
        scale = ((high - minimum.float()) / levels).clamp(0, _MAX16).half()
        steps = (groups - minimum.float()) / scale.float().clamp(min=_TINY16)
        packed = _pack(steps.round().clamp(0, levels).to(torch.uint8), bits)
        return torch.cat([scale.flatten().view(torch.uint8), minimum.flatten().view(torch.uint8), packed])

    def decode(self, payload: Tensor, dtype: torch.dtype) -> Tensor:
        elements = torch.Size(self._shape).numel()
        groups = self._codec.groups(elements)
        scale = payload[: 2 * groups].view(torch.float16).float().unsqueeze(1)
        minimum = payload[2 * groups : 4 * groups].view(torch.float16).float().unsqueeze(1)
        steps = _unpack(payload[4 * groups :], self._codec.bits).view(groups, self._codec.group)
        values = torch.addcmul(minimum, steps.float(), scale)
        return values.flatten()[:elements].view(self._shape).to(dtype)

    def _grouped(self, x: Tensor) -> Tensor:
        """[groups, group]; the last value is repeated, as a zero would stretch the last group's range."""
        flat = x.flatten()
        if spare := -flat.numel() % self._codec.group:
            flat = torch.cat([flat, flat[-1:].expand(spare)])
        return flat.view(-1, self._codec.group)


class _Delta:
    """Rotated differences to the last block's rows."""

    def __init__(self, codec: Codec, shape: tuple[int, ...]) -> None:
        self._codec, self._shape = codec, shape
        self._last: Tensor | None = None  # the rows that all ends have: [groups, group], rotated

    def encode(self, x: Tensor) -> Tensor:
        bits, group = self._codec.bits, self._codec.group
        flat = x.detach().float().flatten()
        if spare := -flat.numel() % group:
            flat = F.pad(flat, (0, spare))
        turned = flat.view(-1, group) @ rotation(x.device)
        residual = turned if self._last is None else turned - self._last
        rms = torch.linalg.vector_norm(residual, dim=1, keepdim=True) / group**0.5
        step = (rms * _STEP[bits]).clamp(max=_MAX16).half()
        levels = residual / step.float().clamp(min=_TINY16)
        codes = levels.add_(2 ** (bits - 1)).clamp_(0, 2**bits - 1).to(torch.uint8)  # towards 0: floor
        self._follow(step, codes)
        return torch.cat([step.flatten().view(torch.uint8), _pack(codes, bits)])

    def decode(self, payload: Tensor, dtype: torch.dtype) -> Tensor:
        elements = torch.Size(self._shape).numel()
        groups = self._codec.groups(elements)
        step = payload[: 2 * groups].view(torch.float16).unsqueeze(1)
        codes = _unpack(payload[2 * groups :], self._codec.bits).view(groups, self._codec.group)
        rows = self._follow(step, codes) @ rotation(payload.device).T
        return rows.flatten()[:elements].view(self._shape).to(dtype)

    def _follow(self, step: Tensor, codes: Tensor) -> Tensor:
        """Add what was sent to the rows that all ends have."""
        middles = codes.float().add_(0.5 - 2 ** (self._codec.bits - 1))
        last = middles * step.float() if self._last is None else self._last.addcmul_(middles, step.float())
        self._last = last
        return last


_STREAMS: dict[Wire, Callable[[Codec, tuple[int, ...]], Stream]] = {
    "fp32": _Float,
    "fp16": _Float,
    "int8": _Integer,
    "int4": _Integer,
    "int2": _Integer,
    "delta4": _Delta,
    "delta3": _Delta,
    "delta2": _Delta,
    "delta1": _Delta,
}


def stream_of(wire: Wire, shape: tuple[int, ...]) -> Stream:
    """A new stream for rows of `shape`, usually [B, L, D]: a batch begins with one."""
    return _STREAMS[wire](CODECS[wire], shape)


def encode(wire: Wire, x: Tensor) -> Tensor:
    """The payload of a tensor of any shape as a first block; the tensor itself where it has the codec's own type."""
    return stream_of(wire, tuple(x.shape)).encode(x)


def decode(wire: Wire, payload: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The tensor of a first block's payload, of `shape`; a view where the payload has the type `dtype`."""
    return stream_of(wire, shape).decode(payload, dtype)


def payload_like(wire: Wire, shape: tuple[int, ...]) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and type of the payload of a tensor of `shape`: what a receiver must expect."""
    codec = CODECS[wire]
    if codec.group == 1:
        return shape, _FLOAT[codec.bits]
    return (codec.payload_bytes(torch.Size(shape).numel()),), torch.uint8


@lru_cache(maxsize=8)
def rotation(device: torch.device) -> Tensor:
    """The orthonormal [128, 128] Hadamard matrix with rows of random signs, the same on every machine.

    The signs keep a constant over a group from becoming one large value.
    """
    matrix = torch.ones(1, 1)
    while matrix.shape[0] < DELTA_GROUP:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    signs = torch.tensor(random.Random(0).choices((-1.0, 1.0), k=DELTA_GROUP))
    return (signs[:, None] * matrix / DELTA_GROUP**0.5).to(device)


def _pack(steps: Tensor, bits: int) -> Tensor:
    """Pack values of `bits` bits into a flat uint8 tensor.

    Value i of each 8 / bits goes to the bits from i * bits on; halves are joined, to need few kernels.
    """
    if bits == 3:  # two planes, as 3 doesn't divide 8
        return torch.cat([_pack(steps & 3, 2), _pack(steps >> 2, 1)])
    packed = steps.reshape(-1, 8 // bits)
    while (half := packed.shape[1] // 2) > 0:
        packed = packed[:, :half] | (packed[:, half:] << (bits * half))
    return packed.flatten()


def _unpack(packed: Tensor, bits: int) -> Tensor:
    if bits == 8:
        return packed
    if bits == 3:
        cut = 2 * packed.numel() // 3
        return _unpack(packed[:cut], 2).flatten() | _unpack(packed[cut:], 1).flatten() << 2
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    return (packed.unsqueeze(1) >> shifts) & (2**bits - 1)
