"""Register what crosses the link: one row a codec, with its size, its kernels and its properties. No tensors here.

A new codec is a name in Wire, a row of CODECS, and its tensors in prism.nn.codecs.
"""

from typing import Literal, NamedTuple, get_args

Wire = Literal["fp32", "fp16", "int8", "int4", "int2", "delta4", "delta3", "delta2", "delta1"]
WIRES: tuple[Wire, ...] = get_args(Wire)
PLAIN: Wire = "fp32"  # what input and answer cross as, whatever the plan's codec
# Probe files written before a probe named its codec hold a place in this list, which therefore never changes
PROBED_BY_PLACE: tuple[Wire, ...] = ("fp32", "fp16", "int8", "int4", "int2", "delta4", "delta3", "delta2", "delta1")
GROUP = 32  # values that share a scale and a minimum in the integer codecs
DELTA_GROUP = 128  # values that are rotated together and share a scale in the delta codecs


class Passes(NamedTuple):
    """Kernels of encoding or of decoding, by the memory that each moves.

    value_bytes: bytes a value, one entry a kernel over all values. group_kernels: kernels over the groups' scales.
    """

    value_bytes: tuple[int, ...] = ()
    group_kernels: int = 0


class Codec(NamedTuple):
    """One codec, as prism.nn.codecs computes it.

    bits: of a value. group: values that are packed together, the last group padded.
    overhead_bytes: scales and minima of a group.
    lossless: what is received is what was sent.
    predictive: sends the difference to the last block's rows, so it has a state within a batch.
    rotated: each group is multiplied by a [group, group] matrix before it is encoded and after it is decoded.
    """

    name: Wire
    bits: int
    encode: Passes
    decode: Passes
    group: int = 1
    overhead_bytes: int = 0
    lossless: bool = False
    predictive: bool = False
    rotated: bool = False

    def groups(self, values: int) -> int:
        """Groups that hold `values` values."""
        return -(-values // self.group)

    def payload_bytes(self, values: int) -> int:
        """Bytes that cross the link for `values` values."""
        return self.groups(values) * (self.overhead_bytes + self.group * self.bits // 8)


def _integer(name: Wire, bits: int) -> Codec:
    """Quantise to `bits` bits between a group's minimum and maximum; both parameters travel as fp16."""
    encode, decode = Passes((4, 8, 8, 8, 8, 5, 2, 1), 9), Passes((2, 5, 8), 5)
    return Codec(name, bits, encode, decode, group=GROUP, overhead_bytes=4)


def _delta(name: Wire, bits: int, pack: int, unpack: int) -> Codec:
    """Quantise the rotated difference to the last block; `pack` and `unpack` kernels join and part the bits."""
    follow = (5, 8, 12)  # what was sent is added to what was there, at both ends
    encode = Passes((12, 4, 8, 8, 8, 5, *follow, *(1,) * pack), 8)  # difference, energy, levels
    decode = Passes(((2,) * unpack + follow), 1)
    return Codec(name, bits, encode, decode, DELTA_GROUP, overhead_bytes=2, predictive=True, rotated=True)


CODECS: dict[Wire, Codec] = {
    codec.name: codec
    for codec in (
        Codec("fp32", 32, Passes(), Passes(), lossless=True),
        Codec("fp16", 16, Passes((8, 6)), Passes((6,))),
        _integer("int8", 8),
        _integer("int4", 4),
        _integer("int2", 2),
        _delta("delta4", 4, pack=2, unpack=2),
        _delta("delta3", 3, pack=13, unpack=6),
        _delta("delta2", 2, pack=4, unpack=2),
        _delta("delta1", 1, pack=6, unpack=2),
    )
}


def payload_bytes(wire: Wire, values: int) -> int:
    """Bytes that a codec sends for `values` values."""
    return CODECS[wire].payload_bytes(values)
