"""Configure a leader or a follower of serving. No torch."""

from typing import Annotated

import msgspec

from prism.config import NonNegativeNumber, Port, Positive, PositiveNumber
from prism.decide.policy import AnyPolicy, PrismPolicy
from prism.decide.table import Objective


class ServeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`prism-hw serve` as one file.

    accuracy: table of what plans cost in answers, for a floor in the objective.
    key_file: without one nobody can join, and everything is local.
    memory: of each device, as in 8GB. Each holds the whole model, to which every plan falls back; a model that is
    predicted to need more for the largest batch is refused.
    """

    model: str = "fashion-vit"
    weights: str | None = None
    seed: int = 0
    map: str = ""
    accuracy: str = ""
    key_file: str = ""
    join_address: str = "127.0.0.1"
    join_port: Port | None = None
    devices: Annotated[int, msgspec.Meta(ge=1, le=64)] = 2
    http_address: str = "127.0.0.1"
    http_port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 8000
    token_file: str = ""
    max_batch: Positive = 8
    max_wait_s: NonNegativeNumber = 0.0
    max_queue: Positive = 256
    deadline_s: PositiveNumber | None = None
    timeout_s: PositiveNumber = 2.0
    threads: Positive = 1
    memory: str | None = None
    policy: AnyPolicy = msgspec.field(default_factory=PrismPolicy)
    objective: Objective = Objective()
    learn: bool = True
    decisions: str = ""


class JoinConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`prism-hw join`: where the leader is, and what this device holds."""

    address: str
    port: int
    name: str
    key_file: str
    model: str = "fashion-vit"
    weights: str | None = None
    seed: int = 0
    threads: int = 1
    timeout_s: float = 2.0
