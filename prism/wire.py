"""Codecs of what crosses the link. Each is a pair of vectorised functions with an exact byte count.

The integer codecs quantise groups of 32 consecutive values to k bits between the group's minimum
and maximum; scale and minimum travel as fp16. Payload layout: scales, minima, packed values.
"""

import torch
from torch import Tensor

from prism.plan import GROUP, Wire, payload_bytes

_FLOAT = {"fp32": torch.float32, "fp16": torch.float16}
_MAX16 = 65504.0


def encode(wire: Wire, x: Tensor) -> Tensor:
    """The payload of a tensor: itself where the codec is its own type, else a new tensor."""
    if wire in _FLOAT:
        x = x.clamp(-_MAX16, _MAX16) if wire == "fp16" and x.dtype != torch.float16 else x
        return x.to(_FLOAT[wire]).contiguous()
    bits = int(wire.removeprefix("int"))
    groups = _grouped(x.float())
    low, high = groups.aminmax(dim=1, keepdim=True)
    minimum = low.clamp(-_MAX16, _MAX16).half()
    levels = 2**bits - 1
    scale = ((high - minimum.float()) / levels).clamp(0, _MAX16).half()
    steps = (groups - minimum.float()) / scale.float().clamp(min=torch.finfo(torch.float16).tiny)
    packed = _pack(steps.round().clamp(0, levels).to(torch.uint8), bits)
    return torch.cat([scale.flatten().view(torch.uint8), minimum.flatten().view(torch.uint8), packed])


def decode(wire: Wire, payload: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The tensor of a payload: a view of it where the codec is the tensor's own type."""
    if wire in _FLOAT:
        return payload.view(shape).to(dtype)
    bits = int(wire.removeprefix("int"))
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


def _grouped(x: Tensor) -> Tensor:
    flat = x.flatten()
    spare = -flat.numel() % GROUP
    if spare:  # repeat the last value: a zero would stretch the last group's range
        flat = torch.cat([flat, flat[-1:].expand(spare)])
    return flat.view(-1, GROUP)


def _pack(steps: Tensor, bits: int) -> Tensor:
    if bits == 8:
        return steps.flatten()
    parts = steps.view(-1, 8 // bits)
    packed = parts[:, 0].clone()
    for place in range(1, 8 // bits):
        packed |= parts[:, place] << (bits * place)
    return packed


def _unpack(packed: Tensor, bits: int) -> Tensor:
    if bits == 8:
        return packed
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    return (packed.unsqueeze(1) >> shifts) & (2**bits - 1)
