"""Messages between the leader and its followers, outside of batches. Their tags are protocol PROTOCOL on the wire."""

from typing import Annotated

import msgspec

PROTOCOL = 1
NONCE = 32

Bytes32 = Annotated[bytes, msgspec.Meta(min_length=NONCE, max_length=NONCE)]


class Challenge(msgspec.Struct, frozen=True, tag="challenge", forbid_unknown_fields=True):
    """From the leader, first of all: prove that you know the key."""

    protocol: int
    nonce: Bytes32


class Response(msgspec.Struct, frozen=True, tag="answer", forbid_unknown_fields=True):
    """From the follower: the proof, and a challenge in return."""

    nonce: Bytes32
    proof: Bytes32


class Accepted(msgspec.Struct, frozen=True, tag="accepted", forbid_unknown_fields=True):
    """From the leader: its own proof."""

    proof: Bytes32


class Form(msgspec.Struct, frozen=True, tag="form", forbid_unknown_fields=True):
    """From the leader: leave the present group, and take this rank of a new one."""

    epoch: int
    rank: int
    world_size: int


class Put(msgspec.Struct, frozen=True, tag="put", forbid_unknown_fields=True):
    """A key of an epoch's rendezvous, as a rank set it: gloo's addresses."""

    epoch: int
    key: str
    value: bytes


class Formed(msgspec.Struct, frozen=True, tag="formed", forbid_unknown_fields=True):
    """From a follower: it is in the group of this epoch."""

    epoch: int


class Broken(msgspec.Struct, frozen=True, tag="broken", forbid_unknown_fields=True):
    """From a follower: the group of this epoch can't be used any more."""

    epoch: int
    why: str


class Hello(msgspec.Struct, frozen=True, tag="hello", forbid_unknown_fields=True):
    """From a follower: its name, its model, and the hash of the weights it holds."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    model: str
    fingerprint: str


class Refused(msgspec.Struct, frozen=True, tag="refused", forbid_unknown_fields=True):
    """From the leader: why not, and after how many seconds to ask again; 0 is never."""

    why: str
    retry_s: float = 0.0


class Welcome(msgspec.Struct, frozen=True, tag="welcome", forbid_unknown_fields=True):
    """From the leader: the follower is taken in."""


class Ping(msgspec.Struct, frozen=True, tag="ping", forbid_unknown_fields=True):
    """Keep-alive, from either side."""


Message = Challenge | Response | Accepted | Form | Put | Formed | Broken | Hello | Refused | Welcome | Ping
