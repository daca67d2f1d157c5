"""Say how one batch is executed: the only spelling of a plan's words.

The batch is split over replicas, the blocks of each replica over stages, and the tokens in each stage over parts:
devices = replicas * stages * parts. Rank 0 leads: it owns the first part of the first stage of replica 0, the input and
the answer.
"""

import itertools
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, Literal, NamedTuple

import msgspec

from prism.codecs import Wire, payload_bytes
from prism.config import NonNegative, NonNegativeNumber, Positive
from prism.errors import PlanError
from prism.partition import Partition, proportional
from prism.spec import ModelSpec

Embed = Literal["terminal", "each"]
Collective = Literal["auto", "mesh", "ring"]
Route = Literal["mesh", "ring"]  # what "auto" chooses from
RING_FROM_BYTES = 262_144  # from here on the ring beats the mesh for P >= 3 (measured; docs/decisions)
FIRST_FIELDS = 8  # of a plan: those that the first files had


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


class Place(NamedTuple):
    """Where a rank stands in a plan."""

    replica: int
    stage: int
    part: int


class ExecutionPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything the ranks must agree on; the leader sends it with each batch. Raises PlanError for a contradiction.

    mode: what the parts of a stage exchange; "local" where there is one part.
    devices: replicas * stages * parts.
    segments: L, the rows that each part sends per block (modes that average only).
    wire: the codec of rows that cross, between parts and between stages.
    weights: relative speed of each device, by rank; None splits evenly. A replica of weight 0 gets no samples, a first
    stage of weight 0 no blocks.
    embed: "terminal" lets the leader embed and scatter the rows; with "each" every rank embeds an input that it has.
    collective: "mesh" posts all messages at once, "ring" is gloo's all_gather, "auto" chooses by size.
    overlap: project the own part while the exchange is under way.
    replicas: groups of devices that share the batch's samples (data parallel).
    stages: groups of devices that share the blocks (pipeline).
    microbatch: samples that a replica computes together before their answer leaves; None for one at a time through
    stages, else for all at once.
    boundaries: first block of each stage but the first; None splits the blocks by weight.
    """

    mode: Mode
    devices: int = 1
    segments: int | None = None
    wire: Wire = "fp32"
    weights: tuple[NonNegativeNumber, ...] | None = None
    embed: Embed = "terminal"
    collective: Collective = "auto"
    overlap: bool = True
    replicas: int = 1
    stages: int = 1
    microbatch: Positive | None = None
    boundaries: tuple[NonNegative, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("devices", "replicas", "stages"):
            if getattr(self, name) < 1:
                raise PlanError(f"{getattr(self, name)} {name}: at least 1 is needed")
        least = 2 if self.mode is Mode.FIRST_AND_MEANS else 1
        if self.mode.averages and (self.segments is None or self.segments < least):
            raise PlanError(
                f"segments {self.segments}: mode {self.mode.value} needs at least {least}; pass --segments 10"
            )
        if not self.mode.averages and self.segments is not None:
            raise PlanError(f"segments {self.segments}: mode {self.mode.value} has none; use --mode segment_means")
        self._check_counts()
        self._check_stages()
        self._check_weights()

    def _check_counts(self) -> None:
        groups = self.replicas * self.stages
        if groups == 1:
            return
        what = f"{self.replicas} replicas of {self.stages} stages"
        if self.devices % groups:
            raise PlanError(f"devices {self.devices}: {what} need a multiple of {groups}; pass --devices {groups}")
        if self.mode is Mode.LOCAL and self.parts > 1:
            raise PlanError(
                f"devices {self.devices}: {what} leave {self.parts} parts, and mode local splits no tokens; pass "
                f"--devices {groups}, or --mode full"
            )
        if self.mode is not Mode.LOCAL and self.parts == 1:
            raise PlanError(f"mode {self.mode.value}: {what} on {self.devices} devices leave 1 part; use --mode local")
        if self.mode is Mode.LOCAL and self.stages == 1 and self.wire != "fp32":
            raise PlanError(f"wire {self.wire}: replicas exchange no rows; leave --wire out")
        if self.collective == "ring":
            raise PlanError(f"collective ring: {what} are no single group; use mesh or auto")

    def _check_stages(self) -> None:
        if self.stages == self.replicas == 1 and self.microbatch is not None:
            raise PlanError("microbatch is for stages and replicas; pass --stages 2, or leave --microbatch out")
        if self.stages == 1 and self.boundaries is not None:
            raise PlanError("boundaries are for stages; pass --stages 2, or leave --boundaries out")
        if self.stages > 1 and self.embed == "each":
            raise PlanError("embed each: a stage's rows come from the one before; use --embed terminal")
        if self.boundaries is None:
            return
        if len(self.boundaries) != self.stages - 1:
            raise PlanError(
                f"{len(self.boundaries)} boundaries for {self.stages} stages: give the first block of "
                f"each but the first"
            )
        if list(self.boundaries) != sorted(set(self.boundaries)):
            raise PlanError(f"boundaries {list(self.boundaries)} don't ascend: every stage needs a block of its own")

    def _check_weights(self) -> None:
        if self.weights is None:
            return
        if len(self.weights) != self.devices:
            raise PlanError(f"{len(self.weights)} weights for {self.devices} devices: give one for each device")
        if self.parts > 1 and self.ranks > 1 and not all(self.weights):
            raise PlanError(
                f"weights {self.weights}: a part needs tokens, so each must be above 0; leave the device out, or use "
                f"replicas"
            )
        if not any(self.weights):
            raise PlanError(f"weights {self.weights}: at least one must be above 0")

    @property
    def parts(self) -> int:
        """Devices of one stage of one replica, which share the tokens."""
        return self.ranks // (self.replicas * self.stages)

    @property
    def ranks(self) -> int:
        """Devices that compute: 1 in local mode of one replica and stage."""
        return 1 if self.mode is Mode.LOCAL and self.replicas * self.stages == 1 else self.devices

    def place(self, rank: int) -> Place:
        """Locate a rank: replicas outermost, parts innermost."""
        group, part = divmod(rank, self.parts)
        return Place(*divmod(group, self.stages), part)

    def rank_of(self, place: Place) -> int:
        """The rank at a place."""
        return (place.replica * self.stages + place.stage) * self.parts + place.part

    def hashed(self) -> dict[str, Any]:
        """The fields for a hash or a seed, which stay: a later field counts where it isn't its default."""
        fields = msgspec.to_builtins(self)
        later = self.__struct_fields__[FIRST_FIELDS:]
        return {name: value for name, value in fields.items() if name not in later or value != LATER[name]}

    def on(self, devices: int) -> "ExecutionPlan":
        """The same plan on another number of devices; a local one stays on its own. Raises PlanError."""
        return self if self.ranks == 1 else msgspec.structs.replace(self, devices=devices)

    # -- the batch, the blocks, the tokens ----------------------------------------------------------------

    def replica(self, replica: int) -> "ExecutionPlan":
        """What one replica does with its samples: a plan of one replica, on its own devices."""
        if self.replicas == 1:
            return self
        microbatch = self.microbatch if self.stages > 1 else None
        return self._cut(
            replica * self.stages * self.parts, self.stages * self.parts, replicas=1, microbatch=microbatch
        )

    def stage(self, stage: int) -> "ExecutionPlan":
        """What one stage of one replica does with its blocks: a plan of its parts alone."""
        if self.stages == 1:
            return self
        return self._cut(stage * self.parts, self.parts, stages=1, microbatch=None, boundaries=None)

    def _cut(self, first: int, devices: int, **fields: int | None) -> "ExecutionPlan":
        weights = None if self.weights is None or devices == 1 else self.weights[first : first + devices]
        weights = weights if weights and any(weights) else None  # those of a replica without samples say nothing
        return msgspec.structs.replace(self, devices=devices, weights=weights, **fields)

    def groups(self) -> Iterator["ExecutionPlan"]:
        """The plan of each stage of each replica, by rank."""
        for replica in range(self.replicas):
            for stage in range(self.stages):
                yield self.replica(replica).stage(stage)

    def shares(self, batch: int) -> tuple[int, ...]:
        """Samples of each replica. One of a batch smaller than the replicas may get none."""
        return proportional(batch, self.replica_weights)

    def stage_blocks(self, blocks: int) -> tuple[tuple[int, int], ...]:
        """First block of each stage of the first replica, and the one after its last. Raises PlanError."""
        if self.replicas > 1:
            return self.replica(0).stage_blocks(blocks)
        if self.boundaries is not None:
            if self.boundaries[-1] >= blocks:
                raise PlanError(
                    f"boundaries {list(self.boundaries)}: the last of {blocks} blocks is {blocks - 1}; use at most that"
                )
            edges = (0, *self.boundaries, blocks)
        elif self.stages > blocks:
            raise PlanError(f"{self.stages} stages for {blocks} blocks: use at most {blocks} stages")
        else:
            edges = (0, *itertools.accumulate(proportional(blocks, self._weights_of(self.stages), least=1)))
        return tuple(itertools.pairwise(edges))

    def microbatches(self, batch: int) -> tuple[int, ...]:
        """Samples of each microbatch of a replica's share of `batch`; the last one may be smaller."""
        size = self.microbatch or (max(batch, 1) if self.stages == 1 else 1)
        return tuple(min(size, batch - start) for start in range(0, batch, size))

    def _weights_of(self, count: int) -> tuple[float, ...]:
        """Summed weights of `count` groups of equally many devices."""
        weights = self.weights or (1.0,) * self.devices
        size = self.devices // count
        return tuple(sum(weights[start : start + size]) for start in range(0, self.devices, size))

    @property
    def replica_weights(self) -> tuple[float, ...]:
        """The summed weights of each replica's devices."""
        return self._weights_of(self.replicas) if self.replicas > 1 else (1.0,)

    @property
    def least_batch(self) -> int:
        """Samples without which a replica would have none; replicas of weight 0 have none anyway."""
        return sum(weight > 0 for weight in self.replica_weights)

    def check(self, model: ModelSpec, batch: int, tokens: int | None = None) -> None:
        """Refuse what can't be done with so many samples of a model. Raises PlanError with the remedy."""
        used = self.least_batch
        if used > batch:
            raise PlanError(f"{used} replicas for a batch of {batch}: use at most {batch} replicas, or a larger batch")
        for replica in range(self.replicas):
            self.replica(replica).stage_blocks(model.blocks)
        for group in self.groups():
            group.partition(tokens or model.tokens)
            group.uses_ring(0, model.causal)

    def partition(self, tokens: int) -> Partition:
        """Assign `tokens` tokens to the parts of the first stage. Raises PlanError where the plan doesn't fit them."""
        if self.weights is not None and self.parts > 1:
            partition = Partition.weighted(tokens, self.weights[: self.parts])
        else:
            partition = Partition.even(tokens, self.parts)
        if self.segments is not None and self.segments > min(partition.sizes):
            raise PlanError(
                f"segments {self.segments} exceed the {min(partition.sizes)} tokens of the smallest of "
                f"{self.parts} parts of {tokens} tokens; use at most {min(partition.sizes)}, or mode full"
            )
        return partition

    def sent_rows(self, tokens: int) -> tuple[int, ...]:
        """Rows that each part sends per block: L, or all of its own in full exchange."""
        sizes = self.partition(tokens).sizes
        return sizes if self.segments is None else (self.segments,) * len(sizes)

    def message_bytes(self, batch: int, tokens: int, width: int) -> int:
        """Payload of the leader's message in one block; 0 where nothing is exchanged."""
        return 0 if self.parts == 1 else payload_bytes(self.wire, batch * self.sent_rows(tokens)[0] * width)

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
            return not causal and self.parts >= 3 and self.parts == self.ranks and message_bytes >= RING_FROM_BYTES
        return self.collective == "ring"


LOCAL = ExecutionPlan(mode=Mode.LOCAL)
LATER = {name: getattr(LOCAL, name) for name in ExecutionPlan.__struct_fields__[FIRST_FIELDS:]}


def completed(words: Mapping[str, Any]) -> dict[str, Any]:
    """Complete the fields of a plan that somebody wrote down, with `parts` among them or not.

    L alone asks for segment means. Replicas and stages alone are of one part each; without them there are 2 parts. A
    local plan has as many devices as replicas and stages, whatever stands beside it. Raises PlanError for devices that
    aren't the product of the counts.
    """
    replicas, stages, parts = (_count(words, name) for name in ("replicas", "stages", "parts"))
    groups = (replicas or 1) * (stages or 1)
    mode = words.get("mode") or _mode(words, groups, parts)
    local = mode == Mode.LOCAL.value
    fields = {name: value for name, value in words.items() if name != "parts"} | {"mode": mode}
    if local and groups == 1:
        return {**fields, "devices": 1, "weights": None}
    devices = fields.get("devices") if parts is None else groups * parts
    if parts is not None and fields.get("devices") not in (None, devices):
        raise PlanError(
            f"devices {fields['devices']}: {replicas or 1} replicas of {stages or 1} stages of {parts} parts are "
            f"{devices}; leave --devices out"
        )
    return {**fields, "devices": groups * (1 if local else 2) if devices is None else devices}


def _mode(words: Mapping[str, Any], groups: int, parts: int | None) -> str:
    if words.get("segments") is not None:
        return Mode.SEGMENT_MEANS.value
    alone = (parts or 1) == 1 and words.get("devices") in (None, groups)
    return Mode.LOCAL.value if groups > 1 and alone else Mode.FULL.value


def _count(words: Mapping[str, Any], name: str) -> int | None:
    """A count, where it is one; anything else is refused with the plan."""
    value = words.get(name)
    return value if isinstance(value, int) and value > 0 else None


class Choices(msgspec.Struct, frozen=True, kw_only=True):
    """The values that plans are combined of. microbatches: beside the default."""

    devices: tuple[int, ...]
    modes: tuple[Mode, ...]
    segments: tuple[int, ...] = ()
    wires: tuple[Wire, ...] = ("fp32",)
    replicas: tuple[int, ...] = ()
    stages: tuple[int, ...] = ()
    microbatches: tuple[int, ...] = ()

    def kinds(self) -> list[tuple[Mode, int | None]]:
        """Each way in which parts exchange, with its L."""
        modes = [mode for mode in self.modes if mode is not Mode.LOCAL]
        return [(mode, rows) for mode in modes for rows in (self.segments if mode.averages else (None,))]

    def grouped(self, **habits: Any) -> Iterator[ExecutionPlan]:
        """Make every plan of several replicas or stages. habits: of the parts' exchanges, where there are parts."""
        counts = itertools.product((1, *self.replicas), (1, *self.stages), self.devices)
        for replicas, stages, devices in counts:
            groups = replicas * stages
            if groups == 1 or devices % groups:
                continue
            alone = devices == groups
            kinds = [(Mode.LOCAL, None)] if alone else self.kinds()
            wires = self.wires if stages > 1 or not alone else ("fp32",)
            for (mode, rows), wire, size in itertools.product(kinds, wires, (None, *self.microbatches)):
                yield ExecutionPlan(
                    mode=mode,
                    devices=devices,
                    segments=rows,
                    wire=wire,
                    replicas=replicas,
                    stages=stages,
                    microbatch=size,
                    **({} if alone else habits),
                )


def combinations(tokens: int, choices: Choices) -> tuple[list[ExecutionPlan], list[str]]:
    """Combine the choices to the plans that fit so many tokens, local left out; also say why others don't."""
    plans, misfits = list[ExecutionPlan](), dict[str, None]()
    for devices, wire, (mode, rows) in itertools.product(choices.devices, choices.wires, choices.kinds()):
        try:
            plan = ExecutionPlan(mode=mode, devices=devices, segments=rows, wire=wire)
            plan.partition(tokens)
        except PlanError as error:
            misfits[str(error)] = None
        else:
            plans.append(plan)
    for plan in choices.grouped():
        try:
            plan.partition(tokens)
        except PlanError as error:
            misfits[str(error)] = None
        else:
            plans.append(plan)
    return plans, list(misfits)
