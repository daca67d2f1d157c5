"""Say how one batch is executed: the only spelling of a plan's words.

Rank 0 leads: it owns part 0, the input and the answer.
"""

import itertools
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Literal

import msgspec

from prism.codecs import Wire, payload_bytes
from prism.config import PositiveNumber
from prism.errors import PlanError
from prism.partition import Partition

Embed = Literal["terminal", "each"]
Collective = Literal["auto", "mesh", "ring"]
Route = Literal["mesh", "ring"]  # what "auto" chooses from
RING_FROM_BYTES = 262_144  # from here on the ring beats the mesh for P >= 3 (measured; docs/decisions)


class Mode(str, Enum):
    """What crosses in each block: nothing, all rows, or means of L segments a part.

    first_and_means keeps the first token (a class token or an attention sink) as a segment of its own.
    """

    LOCAL = "local"
    FULL = "full"
    SEGMENT_MEANS = "segment_means"
    FIRST_AND_MEANS = "first_and_means"

    @property
    def averages(self) -> bool:
        """Whether a plan of this mode has segments."""
        return self in (Mode.SEGMENT_MEANS, Mode.FIRST_AND_MEANS)


class ExecutionPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything the ranks must agree on; the leader sends it with each batch. Raises PlanError for a contradiction.

    segments: L, the rows that each part sends per block (modes that average only).
    weights: relative speed of each device; None splits the tokens evenly.
    embed: "terminal" lets the leader embed and scatter the rows; with "each" every rank embeds an input that it has.
    collective: "mesh" posts all messages at once, "ring" is gloo's all_gather, "auto" chooses by size.
    overlap: project the own part while the exchange is under way.
    """

    mode: Mode
    devices: int = 1
    segments: int | None = None
    wire: Wire = "fp32"
    weights: tuple[PositiveNumber, ...] | None = None
    embed: Embed = "terminal"
    collective: Collective = "auto"
    overlap: bool = True

    def __post_init__(self) -> None:
        if self.devices < 1:
            raise PlanError(f"{self.devices} devices: at least 1 is needed")
        least = 2 if self.mode is Mode.FIRST_AND_MEANS else 1
        if self.mode.averages and (self.segments is None or self.segments < least):
            raise PlanError(
                f"segments {self.segments}: mode {self.mode.value} needs at least {least}; pass --segments 10"
            )
        if not self.mode.averages and self.segments is not None:
            raise PlanError(f"segments {self.segments}: mode {self.mode.value} has none; use --mode segment_means")
        if self.weights is not None and len(self.weights) != self.devices:
            raise PlanError(f"{len(self.weights)} weights for {self.devices} devices: give one for each device")

    @property
    def ranks(self) -> int:
        """Devices that compute: 1 in local mode."""
        return 1 if self.mode is Mode.LOCAL else self.devices

    def on(self, devices: int) -> "ExecutionPlan":
        """The same plan on another number of devices; a local one stays on its own. Raises PlanError."""
        return self if self.mode is Mode.LOCAL else msgspec.structs.replace(self, devices=devices)

    def partition(self, tokens: int) -> Partition:
        """Assign `tokens` tokens to the ranks. Raises PlanError where the plan doesn't fit them."""
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

    def message_bytes(self, batch: int, tokens: int, width: int) -> int:
        """Payload of the leader's message in one block; 0 where nothing is exchanged."""
        return 0 if self.ranks == 1 else payload_bytes(self.wire, batch * self.sent_rows(tokens)[0] * width)

    def first_alone(self, part: int) -> bool:
        """Whether the first token of a part is a segment of its own."""
        return self.mode is Mode.FIRST_AND_MEANS and part == 0

    def uses_ring(self, message_bytes: int, causal: bool) -> bool:
        """Whether a block's exchange goes round the ring. Raises PlanError for a ring of a causal model.

        A causal part needs only the earlier ones, so a ring would carry about twice the bytes.
        """
        if self.collective == "ring" and causal:
            raise PlanError("collective ring: a causal model sends to later parts only; use mesh or auto")
        if self.collective == "auto":
            return not causal and self.ranks >= 3 and message_bytes >= RING_FROM_BYTES
        return self.collective == "ring"


LOCAL = ExecutionPlan(mode=Mode.LOCAL)


def combinations(
    tokens: int, devices: Iterable[int], wires: Sequence[Wire], modes: Sequence[Mode], segments: Sequence[int]
) -> tuple[list[ExecutionPlan], list[str]]:
    """Combine modes, devices, codecs and L into the plans that fit so many tokens; also say why others don't."""
    kinds = [(mode, rows) for mode in modes for rows in (segments if mode.averages else (None,))]
    plans, misfits = list[ExecutionPlan](), dict[str, None]()
    for count, wire, (mode, rows) in itertools.product(devices, wires, kinds):
        try:
            plan = ExecutionPlan(mode=mode, devices=count, segments=rows, wire=wire)
            plan.partition(tokens)
        except PlanError as error:
            misfits[str(error)] = None
        else:
            plans.append(plan)
    return plans, list(misfits)
