"""The control plane: small messages between ranks, outside of measured batches.

A transport is a Control and the BatchExchange that it opens; hw.comm.gloo is the one there is. Session, executor,
clocks, link bench and serving know these two protocols alone.
"""

from collections.abc import Sequence
from typing import Protocol

from hw.comm.recorder import SpanRecorder
from hw.comm.shaper import SharedMedium
from hw.comm.staging import Stager
from prism.errors import ExchangeError
from prism.nn.exchange import Exchange, InProcessExchange


class BatchExchange(Exchange, Protocol):
    """The data plane of a group, with a limit on how long a batch may take."""

    deadline_s: float | None  # on time.monotonic(): no wait goes on beyond it


class Control(Protocol):
    """Messages between the ranks of one group. Every method raises PeerLostError where another rank is lost."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    def exchange(self, stager: Stager, recorder: SpanRecorder, medium: SharedMedium | None = None) -> BatchExchange:
        """Open an exchange over the same group. medium: the shaped link that it imitates, if any."""
        ...

    def send(self, data: bytes, peer: int) -> None:
        """Send a message of any length; the peer must call `receive`."""
        ...

    def receive(self, peer: int) -> bytes:
        """Receive a message of any length. Raises ExchangeError for one beyond the limit."""
        ...

    def send_stamp(self, stamp_ns: int, peer: int) -> None:
        """Send one number in a single message, as quickly as the link allows: clocks are compared by it."""
        ...

    def receive_stamp(self, peer: int) -> int:
        """Receive the number of one `send_stamp`."""
        ...

    def barrier(self) -> None:
        """Wait until every rank is here."""
        ...

    def share(self, values: Sequence[float]) -> list[list[float]]:
        """Gather the values of every rank, by rank, on all ranks. Each rank gives equally many."""
        ...


def share_addresses(control: Control, own: str) -> list[str]:
    """Gather every rank's address, by rank; all ranks call it."""
    if control.rank:
        control.send(own.encode(), 0)
        return control.receive(0).decode().split()
    peers = range(1, control.world_size)
    addresses = [own, *(control.receive(peer).decode() for peer in peers)]
    for peer in peers:
        control.send(" ".join(addresses).encode(), peer)
    return addresses


class LoneExchange(InProcessExchange):
    """The data plane of a group of one rank: nothing is ever sent."""

    def __init__(self) -> None:
        super().__init__(0, {}, 1)
        self.deadline_s: float | None = None


class LoneControl:
    """The control plane of a group of one rank."""

    rank, world_size = 0, 1

    def exchange(self, stager: Stager, recorder: SpanRecorder, medium: SharedMedium | None = None) -> BatchExchange:
        return LoneExchange()

    def send(self, data: bytes, peer: int) -> None:
        raise _no_peer(peer)

    def receive(self, peer: int) -> bytes:
        raise _no_peer(peer)

    def send_stamp(self, stamp_ns: int, peer: int) -> None:
        raise _no_peer(peer)

    def receive_stamp(self, peer: int) -> int:
        raise _no_peer(peer)

    def barrier(self) -> None:
        """Nobody else has to come."""

    def share(self, values: Sequence[float]) -> list[list[float]]:
        return [list(values)]


def _no_peer(peer: int) -> ExchangeError:
    return ExchangeError(
        f"rank {peer} is no member of a group of one rank; start as many ranks as the plan has devices"
    )
