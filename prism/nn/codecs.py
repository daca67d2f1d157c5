"""Codecs of what crosses the link. Each is a pair of vectorised functions with an exact byte count.

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
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from prism.plan import DELTA_GROUP, GROUP, Wire, bits_of, payload_bytes, predictive

_FLOAT = {"fp32": torch.float32, "fp16": torch.float16}
_MAX16 = 65504.0
_TINY16 = torch.finfo(torch.float16).tiny
# step of a uniform quantiser of K bits that loses least on Gaussian values, by their rms (Max 1960, table II)
_STEP = {1: 1.596, 2: 0.9957, 3: 0.5860, 4: 0.3352}


class Stream:
    """A part's rows, block after block of one batch: its owner encodes them, whoever receives them decodes them, each
    with a stream of its own. Streams of one part stay equal, as they take the same payloads. `shape` is one block's."""

    def __init__(self, wire: Wire, shape: tuple[int, ...]) -> None:
        self._wire, self._shape = wire, shape
        self._last: Tensor | None = None  # what all have of the rows: [groups, 128], rotated

    def encode(self, x: Tensor) -> Tensor:
        """The payload of this block's rows."""
        if not predictive(self._wire):
            return encode(self._wire, x)
        flat = x.detach().float().flatten()
        if spare := -flat.numel() % DELTA_GROUP:
            flat = F.pad(flat, (0, spare))
        turned = flat.view(-1, DELTA_GROUP) @ rotation(x.device)
        residual = turned if self._last is None else turned - self._last
        bits = bits_of(self._wire)
        rms = torch.linalg.vector_norm(residual, dim=1, keepdim=True) / DELTA_GROUP**0.5
        step = (rms * _STEP[bits]).clamp(max=_MAX16).half()
        levels = residual / step.float().clamp(min=_TINY16)
        codes = levels.add_(2 ** (bits - 1)).clamp_(0, 2**bits - 1).to(torch.uint8)  # towards 0: floor
        self._follow(step, codes)
        return torch.cat([step.flatten().view(torch.uint8), _pack(codes, bits)])

    def decode(self, payload: Tensor, dtype: torch.dtype) -> Tensor:
        """This block's rows."""
        if not predictive(self._wire):
            return decode(self._wire, payload, self._shape, dtype)
        elements, bits = torch.Size(self._shape).numel(), bits_of(self._wire)
        groups = -(-elements // DELTA_GROUP)
        step = payload[: 2 * groups].view(torch.float16).unsqueeze(1)
        turned = self._follow(step, _unpack(payload[2 * groups :], bits).view(groups, DELTA_GROUP))
        rows = turned @ rotation(payload.device).T
        return rows.flatten()[:elements].view(self._shape).to(dtype)

    def _follow(self, step: Tensor, codes: Tensor) -> Tensor:
        middles = codes.float().add_(0.5 - 2 ** (bits_of(self._wire) - 1))
        last = middles * step.float() if self._last is None else self._last.addcmul_(middles, step.float())
        self._last = last
        return last


def encode(wire: Wire, x: Tensor) -> Tensor:
    """The payload of a tensor: itself where the codec is its own type, else a new tensor. Of a delta codec that of a
    first block."""
    if wire in _FLOAT:
        x = x.clamp(-_MAX16, _MAX16) if wire == "fp16" and x.dtype != torch.float16 else x
        return x.to(_FLOAT[wire]).contiguous()
    if predictive(wire):
        return Stream(wire, tuple(x.shape)).encode(x)
    bits = bits_of(wire)
    groups = _grouped(x.float())
    low, high = groups.aminmax(dim=1, keepdim=True)
    minimum = low.clamp(-_MAX16, _MAX16).half()
    levels = 2**bits - 1
    scale = ((high - minimum.float()) / levels).clamp(0, _MAX16).half()
    steps = (groups - minimum.float()) / scale.float().clamp(min=_TINY16)
    packed = _pack(steps.round().clamp(0, levels).to(torch.uint8), bits)
    return torch.cat([scale.flatten().view(torch.uint8), minimum.flatten().view(torch.uint8), packed])


def decode(wire: Wire, payload: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The tensor of a payload: a view of it where the codec is the tensor's own type."""
    if wire in _FLOAT:
        return payload.view(shape).to(dtype)
    if predictive(wire):
        return Stream(wire, shape).decode(payload, dtype)
    bits = bits_of(wire)
    elements = torch.Size(shape).numel()
    groups = -(-elements // GROUP)
    scale = payload[: 2 * groups].view(torch.float16).float().unsqueeze(1)
    minimum = payload[2 * groups : 4 * groups].view(torch.float16).float().unsqueeze(1)
    steps = _unpack(payload[4 * groups :], bits).view(groups, GROUP)
    values = torch.addcmul(minimum, steps.float(), scale)
    return values.flatten()[:elements].view(shape).to(dtype)


def payload_like(wire: Wire, shape: tuple[int, ...]) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and type of the payload of a tensor of this shape: what a receiver must expect."""
    if wire in _FLOAT:
        return shape, _FLOAT[wire]
    return (payload_bytes(wire, torch.Size(shape).numel()),), torch.uint8


@lru_cache(maxsize=8)
def rotation(device: torch.device) -> Tensor:
    """The orthonormal [128, 128] Hadamard matrix with rows of random signs, the same on every machine. The signs keep
    what is constant over a group from becoming one large value."""
    matrix = torch.ones(1, 1)
    while matrix.shape[0] < DELTA_GROUP:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    signs = torch.tensor(random.Random(0).choices((-1.0, 1.0), k=DELTA_GROUP))
    return (signs[:, None] * matrix / DELTA_GROUP**0.5).to(device)


def _grouped(x: Tensor) -> Tensor:
    flat = x.flatten()
    spare = -flat.numel() % GROUP
    if spare:  # repeat the last value: a zero would stretch the last group's range
        flat = torch.cat([flat, flat[-1:].expand(spare)])
    return flat.view(-1, GROUP)


def _pack(steps: Tensor, bits: int) -> Tensor:
    """Value i of each 8 / bits goes to the bits from i * bits on; halves are joined, to need few kernels."""
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
