"""Predict the memory of each rank: weights, what a step computes on, and buffers of messages.

    weights      of the stage's blocks, of the embedding on a first stage, of the head on a last one
    activations  of the largest step: rows in and out, and the hidden rows of an MLP with their activation
    buffers      a message to send and two receives under way, twice for both directions

All values are fp32 words (prism.workload.kernels.WORD). What Python and torch take themselves comes on top, and isn't
part of it. Attention is taken to keep no matrix of scores, as scaled_dot_product_attention keeps none.
"""

from collections.abc import Sequence
from typing import NamedTuple

from prism.codecs import payload_bytes
from prism.errors import PlanError
from prism.labels import plan_label, without_habits
from prism.plan import ExecutionPlan, Mode
from prism.spec import ModelSpec
from prism.units import format_bytes
from prism.workload.ends import answer_bytes, input_bytes
from prism.workload.kernels import WORD

IN_TURN = 2  # receives under way: one is used while the next arrives


class Weights(NamedTuple):
    """Parameters of a model's parts. Tied weights count in both ends, since each end needs them."""

    embedding: int
    block: int
    head: int


def block_parameters(model: ModelSpec) -> int:
    """Count the parameters of one block: four projections, the MLP's matrices, two norms, and their biases."""
    width, hidden, kv = model.width, model.mlp_width, model.kv_width
    matrices = 2 * width * width + 2 * width * kv + (3 if model.structure.gated else 2) * width * hidden
    if model.structure.norm == "rms":
        return matrices + 2 * width
    return matrices + 2 * width + 2 * kv + hidden + width + 4 * width


def weights(model: ModelSpec) -> Weights:
    """Split a model's parameters. Without `parameters` in the spec, the embedding of a text is its head's size."""
    block = block_parameters(model)
    head = model.output_width * model.width
    ends = model.parameters - model.blocks * block
    if ends <= 0:
        return Weights(model.patch_values * model.width + model.tokens * model.width or head, block, head)
    tied = bool(head) and not model.patch_values and ends < 2 * head
    return Weights(ends if tied else ends - head, block, head)


def memory_bytes(model: ModelSpec, plan: ExecutionPlan, batch: int, tokens: int | None = None) -> tuple[int, ...]:
    """Predict the bytes of each rank of a plan. Raises PlanError where the plan doesn't fit the model or the batch."""
    plan.check(model, batch, tokens)
    found, shares = list[int](), plan.shares(batch)
    for rank in range(plan.ranks):
        place = plan.place(rank)
        replica = plan.replica(place.replica)
        first, stop = replica.stage_blocks(model.blocks)[place.stage]
        ends = (place.stage == 0, place.stage == plan.stages - 1)
        found.append(_bytes(model, replica, shares[place.replica], tokens or model.tokens, stop - first, ends))
    return tuple(found)


def _bytes(
    model: ModelSpec, plan: ExecutionPlan, samples: int, tokens: int, blocks: int, ends: tuple[bool, bool]
) -> int:
    """Bytes of one rank. plan: of one replica. ends: whether its stage embeds, and whether it runs the head."""
    parts, (embeds, heads) = weights(model), ends
    own = blocks * parts.block + embeds * parts.embedding + heads * parts.head
    size = max(plan.microbatches(samples), default=0)
    group = plan.stage(0)
    rows = size * max(group.partition(tokens).sizes)
    mlp = 2 * model.mlp_width + (model.mlp_width if model.structure.gated else 0)
    step = rows * (2 * model.width + max(mlp, model.width + 2 * model.kv_width + model.width))
    message = payload_bytes(plan.wire, rows * model.width) if plan.ranks > 1 else 0
    answer = answer_bytes(model, samples, tokens) if heads or embeds else 0
    given = input_bytes(model, samples, tokens) * WORD if embeds else 0
    return WORD * (own + step) + 2 * IN_TURN * message + 2 * answer + given


def check_memory(
    model: ModelSpec, plan: ExecutionPlan, batch: int, tokens: int | None, limits: Sequence[float | None]
) -> None:
    """Refuse a plan that needs more than a device has. limits: bytes of each rank, None where unknown.

    Raises PlanError with both figures, and the number of stages that would fit where there is one.
    """
    needed = memory_bytes(model, plan, batch, tokens)
    for rank, (size, limit) in enumerate(zip(needed, limits, strict=False)):
        if limit is not None and size > limit:
            raise PlanError(
                f"{plan_label(without_habits(plan))}: rank {rank} needs {format_bytes(size)} for weights, activations "
                f"and buffers, the limit is {format_bytes(limit)}; {_remedy(model, batch, tokens, limit)}"
            )


def _remedy(model: ModelSpec, batch: int, tokens: int | None, limit: float) -> str:
    for stages in range(2, model.blocks + 1):
        plan = ExecutionPlan(mode=Mode.LOCAL, devices=stages, stages=stages)
        if max(memory_bytes(model, plan, batch, tokens)) <= limit:
            return f"use --stages {stages}"
    return "use a smaller model or batch: no number of stages fits"
