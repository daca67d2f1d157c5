"""Offsets of the workers' monotonic clocks, measured at the start and again every few seconds between batches."""

import time

from hw.comm import group as comm
from prism.trace import Clock, Record

CLOCK_EVERY_S = 10.0  # two crystals drift apart by some 20 us a second


class Clocks:
    """One per rank; every rank of a plan calls `refresh` after the same batch."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._next = 0.0
        self._known: dict[int, Clock] = {}

    @property
    def offsets_ns(self) -> dict[int, int]:
        return {rank: clock.offset_ns for rank, clock in self._known.items()}

    def known(self) -> list[Record]:
        """The latest estimates, for the head of a new trace."""
        return list(self._known.values())

    def refresh(self, ranks: int) -> list[Record]:
        """The terminal says whether the clocks of a plan's ranks are due; returns the new estimates there."""
        if self._rank:
            if comm.receive_bytes(0) == b"clock":
                comm.estimate_offset(self._rank, self._rank)
            return []
        peers = range(1, ranks)
        due = time.monotonic() >= self._next or any(peer not in self._known for peer in peers)
        for peer in peers:
            comm.send_bytes(b"clock" if due else b"", peer)
            if due:
                offset, error = comm.estimate_offset(0, peer)
                now = time.monotonic_ns()
                self._known[peer] = Clock(rank=peer, at_ns=now, offset_ns=offset, error_ns=error)
        if due and peers:
            self._next = time.monotonic() + CLOCK_EVERY_S
        return self.known() if due else []
