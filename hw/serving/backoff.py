"""Exponential back-off for devices that join again and again."""

import logging
import time
from collections.abc import Callable, Iterable

log = logging.getLogger(__name__)

YOUNG_S = 1.0  # a group that broke before it was this old counts as a failure of its members
FAILURES = 5  # in a row, before a device is kept waiting
LONGEST_WAIT_S = 60.0


class Backoff:
    """Delays devices whose groups keep failing soon after forming; a long-lived group resets it. Not thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: dict[str, int] = {}
        self._until: dict[str, float] = {}

    def ended(self, names: Iterable[str], lifetime_s: float) -> None:
        """Count a group that ended after so many seconds; 0 for one that never formed."""
        for name in names:
            failures = self._failures[name] = self._failures.get(name, 0) + 1 if lifetime_s < YOUNG_S else 0
            if failures >= FAILURES:
                wait = min(2.0 ** (failures - FAILURES), LONGEST_WAIT_S)
                self._until[name] = self._clock() + wait
                log.warning("%s broke %d groups in a row, and waits %g s", name, failures, wait)

    def left_s(self, name: str) -> float:
        """Say how long a device must still wait; 0 when it may join."""
        return max(self._until.get(name, 0.0) - self._clock(), 0.0)
