"""Who serves together just now, as the runtime sees it."""

import threading
from typing import NamedTuple, Protocol

import msgspec

from hw.comm.control import BatchExchange


class Meeting(msgspec.Struct, frozen=True, kw_only=True):
    """Where devices join a leader, and the patience with them.

    devices: of a group at most, the leader among them. silence_s: without a word a device counts as dead.
    timeout_s: of one message inside a group. form_s: to form a group in.
    """

    address: str
    port: int
    interface: str
    devices: int = 2
    ping_s: float = 0.2
    silence_s: float = 1.0
    timeout_s: float = 2.0
    form_s: float = 1.5


class LiveGroup(NamedTuple):
    """A group that can be used: its exchange belongs to the thread that holds Membership.using.

    names: of the followers, by rank from 1 on.
    """

    epoch: int
    names: tuple[str, ...]
    exchange: BatchExchange

    @property
    def devices(self) -> int:
        """The devices of the group, the leader among them."""
        return 1 + len(self.names)


class Membership(Protocol):
    """What the runtime needs of hw.serving.leader.Leader."""

    using: threading.Lock  # held while messages of the group are under way

    def group(self) -> LiveGroup | None:
        """Return the group that can be used now."""
        ...

    def broken(self, epoch: int, why: str) -> None:
        """Report that the group of an epoch can't be used any more, so that another is formed."""
        ...


class Alone:
    """Membership of a leader that nobody can join."""

    def __init__(self) -> None:
        self.using = threading.Lock()

    def group(self) -> LiveGroup | None:
        """Return no group: this device is alone."""
        return None

    def broken(self, epoch: int, why: str) -> None:
        """There is no group that could break."""
