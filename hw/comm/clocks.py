"""Offsets of the other ranks' monotonic clocks: estimated at the start, and again every few seconds between batches."""

import time

from hw.comm.control import Control
from prism.trace import Clock, Record

CLOCK_EVERY_S = 10.0  # two crystals drift apart by some 20 us a second
ROUNDS = 16


def estimate_offset(control: Control, peer: int, rounds: int = ROUNDS) -> tuple[int, int]:
    """Estimate a peer's monotonic clock minus the leader's, and the error bound, both in ns.

    Cristian's method: of all round trips the shortest counts, and half of it is the bound. The leader and the peer
    both call it, each with the peer's rank; only the leader's result means anything.
    """
    best, offset = 2**62, 0
    for _ in range(rounds):
        if control.rank == 0:
            sent = time.monotonic_ns()
            control.send_stamp(sent, peer)
            theirs = control.receive_stamp(peer)
            back = time.monotonic_ns()
            if back - sent < best:
                best, offset = back - sent, theirs - (sent + back) // 2
        else:
            control.receive_stamp(0)
            control.send_stamp(time.monotonic_ns(), 0)
    return offset, best // 2


class Clocks:
    """The latest estimates of one group. Every rank of a plan calls `refresh` after the same batch."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._next = 0.0
        self._latest: dict[int, Clock] = {}

    @property
    def offsets_ns(self) -> dict[int, int]:
        """Each other rank's clock minus the leader's, by rank."""
        return {rank: clock.offset_ns for rank, clock in self._latest.items()}

    def latest(self) -> list[Record]:
        """List the latest estimates, for the head of a new trace."""
        return list(self._latest.values())

    def refresh(self, ranks: int) -> list[Record]:
        """Estimate the offsets of a plan's ranks anew when the leader says that they are due.

        Returns the new estimates on the leader, and nothing elsewhere.
        """
        control = self._control
        if control.rank:
            if control.receive(0) == b"clock":
                estimate_offset(control, control.rank)
            return []
        peers = range(1, ranks)
        due = time.monotonic() >= self._next or any(peer not in self._latest for peer in peers)
        for peer in peers:
            control.send(b"clock" if due else b"", peer)
            if due:
                offset, error = estimate_offset(control, peer)
                now = time.monotonic_ns()
                self._latest[peer] = Clock(rank=peer, at_ns=now, offset_ns=offset, error_ns=error)
        if due and peers:
            self._next = time.monotonic() + CLOCK_EVERY_S
        return self.latest() if due else []
