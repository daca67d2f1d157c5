"""Announce a batch: one small message of fixed size from the leader to every follower."""

from typing import Annotated, Any

import msgspec
import torch
from torch import Tensor
from torch.nn import functional as F

from prism.errors import ExchangeError, PlanError
from prism.nn.exchange import Expected
from prism.nn.inputs import Inputs
from prism.partition import HEADER_BYTES, Rows
from prism.plan import ExecutionPlan

MOST_PROBE = 1 << 24
FRAME_BYTES = HEADER_BYTES  # room for a BatchHeader of the longest plan; one message, so no length goes first
FRAME: Expected = ((FRAME_BYTES,), torch.uint8)


class BatchHeader(msgspec.Struct, frozen=True, kw_only=True):
    """The leader's announcement of a batch. Without a plan: stop, or answer with `probe` bytes.

    epoch: of the group, so that no message of another group is taken for one of this.
    batch, tokens, rows, padded, dtype: set when the leader embeds; else each rank knows them. With replicas, batch is
    the samples of the receiver's replica.
    turn: how many replicas on the first share goes, so that streams of small batches use all of them.
    samples: of the batch, where there are stages; a sample may have several rows in the batch, as choices have.
    inputs: the arguments that are sent to it, where it is its replica's first rank, or runs the head of stages.
    describe: whether the answer's layout goes ahead of the answer.
    """

    number: int
    epoch: int = 0
    probe: Annotated[int, msgspec.Meta(ge=0, le=MOST_PROBE)] = 0
    plan: ExecutionPlan | None = None
    batch: int = 0
    tokens: int = 0
    rows: Rows | None = None
    padded: bool = False
    dtype: str = "float32"
    turn: int = 0
    samples: int = 0
    inputs: Inputs | None = None
    describe: bool = False


def encode(message: Any) -> Tensor:
    """Encode a header, or the layout of an answer, as FRAME_BYTES bytes. Raises PlanError where it doesn't fit."""
    packed = msgspec.msgpack.encode(message)
    if len(packed) > FRAME_BYTES - 2:
        raise PlanError(
            f"the batch's announcement takes {len(packed)} bytes, the limit is {FRAME_BYTES - 2}; use fewer devices, "
            f"arguments or outputs"
        )
    raw = bytearray(len(packed).to_bytes(2, "little") + packed)
    return F.pad(torch.frombuffer(raw, dtype=torch.uint8), (0, FRAME_BYTES - len(raw)))


def decode(frame: Tensor, kind: Any) -> Any:
    """Decode what `encode` made. Raises ExchangeError where it is of another version."""
    raw = frame.cpu().numpy().tobytes()
    size = int.from_bytes(raw[:2], "little")
    try:
        return msgspec.msgpack.decode(raw[2 : 2 + size], type=kind)
    except msgspec.DecodeError as error:
        raise ExchangeError(f"a batch header can't be read ({error}); run the same version on every device") from None
