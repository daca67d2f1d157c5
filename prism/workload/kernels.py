"""Count the FLOPs and the memory traffic of each kernel."""

from typing import Literal

import msgspec

from prism.codecs import CODECS, Wire

OpClass = Literal["gemm", "attention", "norm", "elementwise"]
WORD = 4  # bytes of a value inside a device: fp32
NORM_FLOPS = 5  # per element of a LayerNorm, as fvcore counts it and as the published table did


class Kernel(msgspec.Struct, frozen=True, kw_only=True):
    """One device kernel: FLOPs, and bytes that it reads and writes in the device's memory."""

    op_class: OpClass
    flops: int
    memory_bytes: int


def gemm(rows: int, inner: int, columns: int) -> Kernel:
    """A matrix product of [rows, inner] and [inner, columns]."""
    return Kernel(
        op_class="gemm",
        flops=2 * rows * inner * columns,
        memory_bytes=WORD * (rows * inner + inner * columns + rows * columns),
    )


def attention(queries: int, keys: int, width: int, batch: int) -> Kernel:
    """Scaled dot products of all heads together, without a causal model's saving."""
    return Kernel(
        op_class="attention",
        flops=4 * batch * queries * keys * width,
        memory_bytes=WORD * batch * width * 2 * (queries + keys),
    )


def norm(rows: int, width: int) -> Kernel:
    """A LayerNorm of [rows, width]."""
    return Kernel(op_class="norm", flops=NORM_FLOPS * rows * width, memory_bytes=2 * WORD * rows * width)


def elementwise(values: int, reads: int = 1) -> Kernel:
    """A kernel that reads `reads` tensors of `values` and writes one.

    Its FLOPs are not counted, as in torch's and fvcore's counters: it is bound by memory.
    """
    return Kernel(op_class="elementwise", flops=0, memory_bytes=WORD * values * (reads + 1))


def rms_norm(rows: int, width: int) -> tuple[Kernel, ...]:
    """The RMSNorm of transformers: square, mean, two kernels over the rows, and two products."""
    values = rows * width
    mean = (elementwise(values, 0), elementwise(rows), elementwise(rows))
    return (elementwise(values), *mean, norm(rows, width), elementwise(values))


def rotary(values: int) -> tuple[Kernel, ...]:
    """Rotary positions of `values` values: x cos + rotated sin, where half of `rotated` is negated."""
    once = elementwise(values)
    return (once, elementwise(values // 2), once, once, elementwise(values, 2))


def codec(wire: Wire, values: int, *, decode: bool = False) -> tuple[Kernel, ...]:
    """Kernels of encoding (or decoding) values for the wire; fp32 crosses as it is."""
    row = CODECS[wire]
    passes, groups = (row.decode if decode else row.encode), row.groups(values)
    turn = (gemm(groups, row.group, row.group),) if row.rotated else ()
    sizes = [size * values for size in passes.value_bytes] + [2 * WORD * groups] * passes.group_kernels
    return (*turn, *(Kernel(op_class="elementwise", flops=0, memory_bytes=size) for size in sizes))
