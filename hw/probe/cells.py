"""List the cells of the probe suite: operations, shapes, FLOPs and bytes. No torch.

Shapes are log-spaced over those in blocks of ViT-Ti to L, BERT and GPT-2 at batch 1 to 8 and 16 to 600
tokens, whole or in parts. They are the same on every machine, so that machines can be compared.
"""

import itertools
from collections.abc import Iterator
from typing import Annotated

import msgspec

from prism.codecs import WIRES, Wire, payload_bytes
from prism.plan import LOCAL
from prism.spec import ModelSpec
from prism.trace import CODED, PACE
from prism.workload import WORD, attention, build, elementwise, gemm, norm

ROWS = (16, 48, 128, 320, 800, 2000, 4800)  # batch times tokens
WIDTHS = (192, 288, 448, 672, 1024)
TOKENS = (16, 40, 100, 240, 600)
HEAD_WIDTHS = {192: 64, 288: 32, 448: 64, 672: 32, 1024: 64}  # 32 as in small sentence encoders
HEAVY_FLOPS = 24_000_000_000  # a larger shape adds nothing to one of a third of it
COPIES = (1 << 10, 1 << 14, 1 << 17, 1 << 20, 1 << 23)


class ProbeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long and with what to probe.

    budget_s: of the whole suite; the first round of all cells is made however long it takes.
    seed: of the values and of the order in which the cells are visited.
    """

    budget_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 120.0
    seed: Annotated[int, msgspec.Meta(ge=0)] = 0
    threads: Annotated[int, msgspec.Meta(ge=1)] = 1


class ProbeCell(msgspec.Struct, frozen=True, kw_only=True):
    """One operation in one shape.

    bytes: what it moves in memory, by the rules of prism.workload.
    codec: of the operations that encode or decode.
    """

    op: str
    shape: tuple[int, ...]
    flops: int
    bytes: int
    codec: Wire | msgspec.UnsetType = msgspec.UNSET


def cells(cuda: bool) -> tuple[ProbeCell, ...]:
    """List every cell; copies to and from a GPU only where there is one."""
    kinds = [_gemm(), _attention(), _norm(), _elementwise(), _block(), _codecs(), _means()]
    if cuda:
        kinds.append(_copies())
    return tuple(cell for cell in itertools.chain(*kinds) if cell.flops <= HEAVY_FLOPS)


def _every_other(*axes: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Half of the grid, as on a chessboard: each value of each axis, without each combination."""
    for places in itertools.product(*(range(len(axis)) for axis in axes)):
        if sum(places) % 2 == 0:
            yield tuple(axis[place] for axis, place in zip(axes, places, strict=True))


def _gemm() -> Iterator[ProbeCell]:
    for kind, (inner_share, outer_share) in enumerate(((1, 1), (1, 3), (1, 4), (4, 1))):
        for place, (rows, width) in enumerate(itertools.product(ROWS, WIDTHS)):
            if (place + kind) % 2 == 0:
                inner, columns = inner_share * width, outer_share * width
                kernel = gemm(rows, inner, columns)
                yield ProbeCell(op="gemm", shape=(rows, inner, columns), flops=kernel.flops, bytes=kernel.memory_bytes)


def _attention() -> Iterator[ProbeCell]:
    """Keys: the queries' own (local), a few means more, and twice as many (the other part in full)."""
    variants = ((1, 0), (1, 20), (2, 0))
    for place, (batch, queries, width) in enumerate(_every_other((1, 2, 4, 8), TOKENS, WIDTHS[::2])):
        times, more = variants[place % 3]
        keys, head = times * queries + more, HEAD_WIDTHS[width]
        kernel = attention(queries, keys, width, batch)
        flags = ((0, 0), (1, 0)) if keys > queries else ((0, 0), (0, 1))
        for bias, causal in flags:
            shape = (batch, width // head, queries, keys, head, bias, causal)
            yield ProbeCell(op="attention", shape=shape, flops=kernel.flops, bytes=kernel.memory_bytes)


def _norm() -> Iterator[ProbeCell]:
    for rows, width in _every_other(ROWS, WIDTHS):
        kernel = norm(rows, width)
        yield ProbeCell(op="norm", shape=(rows, width), flops=kernel.flops, bytes=kernel.memory_bytes)


def _elementwise() -> Iterator[ProbeCell]:
    for rows, width in _every_other(ROWS, WIDTHS):
        for reads, columns in ((1, 4 * width), (2, width)):  # GELU works on the MLP's width
            kernel = elementwise(rows * columns, reads)
            yield ProbeCell(
                op="elementwise", shape=(rows, columns, reads), flops=kernel.flops, bytes=kernel.memory_bytes
            )


def _block() -> Iterator[ProbeCell]:
    for batch, tokens, width in _every_other((1, 3, 8), TOKENS, WIDTHS):
        heads = width // HEAD_WIDTHS[width]
        flops, size = block_work(batch, tokens, width, heads, 4 * width)
        yield ProbeCell(op="block", shape=(batch, tokens, width, heads, 4 * width), flops=flops, bytes=size)


def _pace() -> ProbeCell:
    """The block that measures a machine's pace: of middle size, some milliseconds on a slow core."""
    shape = (1, 100, 448, 7, 1792)
    flops, size = block_work(*shape)
    return ProbeCell(op=PACE, shape=shape, flops=flops, bytes=size)


def block_work(batch: int, tokens: int, width: int, heads: int, mlp_width: int) -> tuple[int, int]:
    """Count the FLOPs and memory bytes of a whole block on one device, as the workload graph has it."""
    model = ModelSpec(
        name="block", family="vit", blocks=1, width=width, heads=heads, mlp_width=mlp_width, tokens=tokens
    )
    graph = build(model, LOCAL, batch)
    kernels = [kernel for op in graph.operations() if op.block == 0 for kernel in op.kernels]
    return sum(kernel.flops for kernel in kernels), sum(kernel.memory_bytes for kernel in kernels)


def _codecs() -> Iterator[ProbeCell]:
    for wire in WIRES:
        for rows, width in ((10, 192), (10, 768), (80, 448), (300, 768), (1600, 1024)):
            size = WORD * rows * width + payload_bytes(wire, rows * width)
            for op in CODED:
                yield ProbeCell(op=op, shape=(rows, width), flops=0, bytes=size, codec=wire)


def _means() -> Iterator[ProbeCell]:
    for batch, rows, width in _every_other((1, 8), (30, 100, 300), (192, 448, 1024)):
        for segments in (1, 10):
            kernel = elementwise(batch * rows * width)
            shape = (batch, rows, width, segments)
            yield ProbeCell(op="segment_means", shape=shape, flops=kernel.flops, bytes=kernel.memory_bytes)


def _copies() -> Iterator[ProbeCell]:
    for size in COPIES:
        for op in ("d2h", "h2d"):
            yield ProbeCell(op=op, shape=(size,), flops=0, bytes=size)


PACE_BLOCK = _pace()
