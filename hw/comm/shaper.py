"""A slow link without root: ranks on one machine share the airtime of one half-duplex medium.

Each message costs 2 * 8 * bytes / rate seconds of air (station to access point, access point to
station). Messages in the air share it equally (processor sharing); a message has arrived when its
airtime is used up, plus the latency. State lives in a small file that the ranks map and lock; the
bytes themselves cross the loopback at once, so a receiver only has to wait until they would be here.
"""

import fcntl
import os
import time

import numpy as np

from prism.errors import ConfigError
from prism.link import CROSSINGS

CLOCK, RATE, LATENCY, HEAD = 0, 1, 2, 3  # before the rows: ns, bit/s, s
SLOTS = 256  # messages of one pair that may be under way: more than any model has blocks


class SharedMedium:
    """One rank's view of the medium. All ranks open the same file on the same machine.

    Raises ConfigError for a file that can't be opened.
    """

    def __init__(self, path: str, rank: int, ranks: int) -> None:
        self._rank, self._ranks = rank, ranks
        self._sent = [0] * ranks
        self._taken = [0] * ranks
        try:
            self._file = os.open(path, os.O_RDWR)
        except OSError as error:
            raise ConfigError(
                f"the shaper's file {path} can't be opened ({error}); a shaper serves one machine"
            ) from None
        rows = ranks * ranks * SLOTS
        self._state = np.memmap(path, dtype=np.float64, mode="r+", shape=(HEAD + 2 * rows,))
        self._left, self._done = self._state[HEAD : HEAD + rows], self._state[HEAD + rows :]

    @staticmethod
    def create(path: str, ranks: int, rate_bps: float, latency_s: float) -> None:
        """Write the file of a medium with no message in the air."""
        state = np.zeros(HEAD + 2 * ranks * ranks * SLOTS)
        state[RATE], state[LATENCY] = rate_bps, latency_s
        state.tofile(path)

    def set_rate(self, rate_bps: float) -> None:
        """Change the rate of messages sent from now on; those in the air keep their airtime."""
        with _Locked(self._file):
            self._state[RATE] = rate_bps

    def send(self, peer: int, size: int) -> None:
        """Put a message of `size` bytes into the air. Call before the bytes are sent."""
        row = self._row(self._rank, peer, self._sent[peer])
        self._sent[peer] += 1
        with _Locked(self._file):
            self._advance(time.monotonic_ns())
            self._left[row] = max(CROSSINGS * 8e9 * size / float(self._state[RATE]), 1.0)

    def arrive(self, peer: int, steps: int = 1) -> None:
        """Block until the next message of `peer` has arrived, after `steps` latencies. Call once its bytes are here."""
        row = self._row(peer, self._rank, self._taken[peer])
        self._taken[peer] += 1
        while True:
            with _Locked(self._file):
                now = time.monotonic_ns()
                self._advance(now)
                left = self._left[row]
                # its share of the air is at most what each other message still needs, or what it needs itself
                until = now + float(np.minimum(self._left, left).sum()) if left > 0 else self._done[row]
            if left > 0:
                _sleep_until(until)
            else:
                _sleep_until(until + float(self._state[LATENCY]) * 1e9 * steps)
                return

    def _row(self, source: int, target: int, number: int) -> int:
        return (source * self._ranks + target) * SLOTS + number % SLOTS

    def _advance(self, now: float) -> None:
        """Share the time since the last call among the messages in the air."""
        clock = float(self._state[CLOCK]) or now
        active = np.flatnonzero(self._left > 0)
        while active.size and clock < now:
            step = min(float(self._left[active].min()) * active.size, now - clock)
            clock += step
            self._left[active] -= step / active.size
            finished = active[self._left[active] <= 1e-3]
            self._left[finished] = 0.0
            self._done[finished] = clock
            active = active[self._left[active] > 0]
        self._state[CLOCK] = now


class _Locked:
    def __init__(self, file: int) -> None:
        self._file = file

    def __enter__(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)


def _sleep_until(moment_ns: float) -> None:
    remaining = (moment_ns - time.monotonic_ns()) / 1e9
    if remaining > 0:
        time.sleep(remaining)
