"""Prepare the call that a probe cell repeats, on tensors that exist already."""

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from msgspec import UNSET
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from hw.probe.cells import ProbeCell
from prism.codecs import WIRES, Wire
from prism.nn.codecs import decode, encode
from prism.nn.families.base import split_heads
from prism.nn.segment_means import segment_means
from prism.trace import PACE

VALUES = 24_000_000  # floats of random data that all cells share: the inputs of the largest one
Call = Callable[[], object]


class Bench:
    """Random tensors and whole blocks on one device."""

    def __init__(self, device: torch.device, seed: int, values: int = VALUES) -> None:
        self.device = device
        self._generator = torch.Generator(device).manual_seed(seed)
        self._values = torch.randn(values, generator=self._generator, device=device)
        self._used = 0
        self._blocks: dict[tuple[int, int, int], nn.Module] = {}

    def call(self, cell: ProbeCell) -> Call:
        """Prepare one call of the cell's operation. Its tensors are valid until the next cell's."""
        self._used = 0
        return _CALLS[cell.op](self, cell)

    def tensor(self, *shape: int) -> Tensor:
        """Random values of this shape, which no other tensor of this cell shares."""
        start, self._used = self._used, self._used + math.prod(shape)
        return self._values[start : self._used].view(shape)

    def block(self, width: int, heads: int, mlp_width: int) -> nn.Module:
        """A pre-norm block with random weights, made once."""
        key = (width, heads, mlp_width)
        if key not in self._blocks:
            block = Block(width, heads, mlp_ratio=mlp_width / width, qkv_bias=True).to(self.device)
            self._blocks[key] = block.eval()
        return self._blocks[key]

    def time(self, cell: ProbeCell, call: Call, calls: int) -> tuple[int, int]:
        """Time `calls` calls: start and end in ns. Copies are timed by events on the GPU, the rest by the host."""
        if cell.op in ("d2h", "h2d"):
            return self._time_by_events(call, calls)
        self._finish()
        start = time.monotonic_ns()
        for _ in range(calls):
            call()
        self._finish()
        return start, time.monotonic_ns()

    def _time_by_events(self, call: Call, calls: int) -> tuple[int, int]:
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._finish()
        start = time.monotonic_ns()
        before.record()
        for _ in range(calls):
            call()
        after.record()
        after.synchronize()
        return start, start + int(before.elapsed_time(after) * 1e6)

    def _finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _gemm(bench: Bench, cell: ProbeCell) -> Call:
    rows, inner, columns = cell.shape
    return partial(F.linear, bench.tensor(rows, inner), bench.tensor(columns, inner), bench.tensor(columns))


def _attention(bench: Bench, cell: ProbeCell) -> Call:
    batch, heads, queries, keys, head, bias, causal = cell.shape
    query, key, value = (split_heads(bench.tensor(batch, rows, heads * head), heads) for rows in (queries, keys, keys))
    mask = bench.tensor(1, 1, 1, keys).abs() if bias else None
    return partial(F.scaled_dot_product_attention, query, key, value, attn_mask=mask, is_causal=bool(causal))


def _norm(bench: Bench, cell: ProbeCell) -> Call:
    rows, width = cell.shape
    return partial(F.layer_norm, bench.tensor(rows, width), (width,), bench.tensor(width), bench.tensor(width))


def _elementwise(bench: Bench, cell: ProbeCell) -> Call:
    rows, width, reads = cell.shape
    if reads == 1:
        return partial(F.gelu, bench.tensor(rows, width))
    return partial(torch.add, bench.tensor(rows, width), bench.tensor(rows, width))


def _block(bench: Bench, cell: ProbeCell) -> Call:
    batch, tokens, width, heads, mlp_width = cell.shape
    return partial(bench.block(width, heads, mlp_width), bench.tensor(batch, tokens, width))


def _pack(bench: Bench, cell: ProbeCell) -> Call:
    return partial(encode, _codec(cell), bench.tensor(*cell.shape))


def _unpack(bench: Bench, cell: ProbeCell) -> Call:
    wire = _codec(cell)
    return partial(decode, wire, encode(wire, bench.tensor(*cell.shape)), cell.shape, torch.float32)


def _codec(cell: ProbeCell) -> Wire:
    if cell.codec is UNSET:
        raise ValueError(f"a cell of {cell.op} names no codec; give one of {', '.join(WIRES)}")
    return cell.codec


def _means(bench: Bench, cell: ProbeCell) -> Call:
    batch, rows, width, segments = cell.shape
    return partial(segment_means, bench.tensor(batch, rows, width), segments)


def _copy(bench: Bench, cell: ProbeCell) -> Call:
    values = cell.shape[0] // 4
    there = bench.tensor(values)
    host = torch.empty(values, pin_memory=True)
    source, target = (there, host) if cell.op == "d2h" else (host, there)
    return partial(target.copy_, source, non_blocking=True)


_CALLS: dict[str, Callable[[Bench, ProbeCell], Any]] = {
    "gemm": _gemm,
    "attention": _attention,
    "norm": _norm,
    "elementwise": _elementwise,
    "block": _block,
    PACE: _block,
    "pack": _pack,
    "unpack": _unpack,
    "segment_means": _means,
    "d2h": _copy,
    "h2d": _copy,
}
