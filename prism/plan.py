"""How one batch is executed. The terminal is rank 0: it owns part 0, the input and the answer."""

from enum import Enum
from typing import Literal

import msgspec

from prism.errors import PlanError
from prism.partition import Partition

Wire = Literal["fp32", "fp16", "int8", "int4", "int2"]
WIRES: tuple[Wire, ...] = ("fp32", "fp16", "int8", "int4", "int2")
GROUP = 32  # elements that share a scale and a minimum in the integer codecs
RING_FROM_BYTES = 262_144  # from here on the ring beats the mesh for P >= 3 (measured; docs/decisions)


class Mode(str, Enum):
    LOCAL = "local"
    FULL = "full"
    SEGMENT_MEANS = "segment_means"


class Rows(msgspec.Struct, frozen=True, kw_only=True):
    """The rows [start, stop) of the last block's output: what a head reads. `mean_from` >= 0 asks
    instead for the rows before it and, as one more row, the mean of all from it on."""

    start: int
    stop: int
    mean_from: int = -1


class ExecutionPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything the ranks must agree on; the terminal sends it with each batch.

    segments: L, the means each part sends per block (mode segment_means only).
    weights: relative speed of each device; None splits the tokens evenly.
    embed: "terminal" embeds and scatters the rows, "each" lets every rank embed an input it already has.
    collective: "mesh" posts all messages at once, "ring" is gloo's all_gather, "auto" chooses by size.
    overlap: project the own part while the exchange is under way.
    """

    mode: Mode
    devices: int = 1
    segments: int | None = None
    wire: Wire = "fp32"
    weights: tuple[float, ...] | None = None
    embed: Literal["terminal", "each"] = "terminal"
    collective: Literal["auto", "mesh", "ring"] = "auto"
    overlap: bool = True

    def __post_init__(self) -> None:
        if self.devices < 1:
            raise PlanError(f"{self.devices} devices: at least 1 is needed")
        if self.mode is Mode.SEGMENT_MEANS and (self.segments is None or self.segments < 1):
            raise PlanError(
                f"segments {self.segments}: mode segment_means needs at least 1; pass --segments 10"
            )
        if self.mode is not Mode.SEGMENT_MEANS and self.segments is not None:
            raise PlanError(
                f"segments {self.segments}: mode {self.mode.value} has none; use --mode segment_means"
            )
        if self.weights is not None and len(self.weights) != self.devices:
            raise PlanError(
                f"{len(self.weights)} weights for {self.devices} devices: give one for each device"
            )

    @property
    def ranks(self) -> int:
        """Devices that compute: 1 in local mode."""
        return 1 if self.mode is Mode.LOCAL else self.devices

    def partition(self, tokens: int) -> Partition:
        """Who owns which of `tokens` tokens. Raises PlanError where the plan doesn't fit them."""
        if self.weights is not None and self.ranks > 1:
            partition = Partition.weighted(tokens, self.weights)
        else:
            partition = Partition.even(tokens, self.ranks)
        if self.segments is not None and self.segments > min(partition.sizes):
            raise PlanError(
                f"segments {self.segments} exceed the {min(partition.sizes)} tokens of the smallest of "
                f"{self.ranks} parts of {tokens} tokens; use at most {min(partition.sizes)}, or mode full"
            )
        return partition

    def sent_rows(self, tokens: int) -> tuple[int, ...]:
        """Rows that each part sends per block: L, or all of its own in full exchange."""
        sizes = self.partition(tokens).sizes
        return sizes if self.segments is None else (self.segments,) * len(sizes)

    def uses_ring(self, payload_bytes: int, causal: bool) -> bool:
        """Whether a block's exchange goes round the ring. A causal part needs only the earlier ones,
        so there a ring would carry about twice the bytes: refused when asked for, never chosen."""
        if self.collective == "ring" and causal:
            raise PlanError("collective ring: a causal model sends to later parts only; use mesh or auto")
        if self.collective == "auto":
            return not causal and self.ranks >= 3 and payload_bytes >= RING_FROM_BYTES
        return self.collective == "ring"


def payload_bytes(wire: Wire, elements: int) -> int:
    """Bytes that a codec sends for `elements` values: 4 or 2 each, or k bits each in groups of 32
    (the last one padded) with a two-byte scale and a two-byte minimum per group."""
    if wire == "fp32":
        return 4 * elements
    if wire == "fp16":
        return 2 * elements
    bits = int(wire.removeprefix("int"))
    groups = -(-elements // GROUP)
    return groups * (4 + GROUP * bits // 8)
