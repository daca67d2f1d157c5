"""Sample a power meter on a thread of its own. prism.trace.energy adds up."""

import threading
import time
from collections import deque

import msgspec

from hw.energy.meter import EnergyMeter, one_line
from prism.trace import Power, Record


class PowerSampler:
    """Keeps a meter's raw records, on this process's clock (`prism.trace.aligned_power` shifts them).

    A meter that fails ends the sampling, never the run: a second Meter record gives the reason.
    """

    def __init__(self, meter: EnergyMeter, rank: int, covers: tuple[int, ...], period_s: float) -> None:
        self._meter, self._rank = meter, rank
        self._period_s = max(period_s, meter.period_s)
        self._described = meter.describe(rank, covers)
        self._records: deque[Record] = deque([self._described])
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="power", daemon=True)

    def start(self) -> None:
        """Begin to sample."""
        self._thread.start()

    def take(self) -> list[Record]:
        """Return the records since the last call: the Meter first, then its samples."""
        return [self._records.popleft() for _ in range(len(self._records))]

    def stop(self) -> None:
        """End sampling and close the meter. Its records can still be taken."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._meter.close()

    def _loop(self) -> None:
        due, last = time.monotonic(), 0
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            start = time.monotonic_ns()
            try:
                watts = self._meter.sample()
            except (OSError, ValueError) as error:
                self._records.append(msgspec.structs.replace(self._described, ended=one_line(error)))
                return
            now = (start + time.monotonic_ns()) // 2
            at = (last + now) // 2 if self._meter.averages else now
            if last or not self._meter.averages:  # the first mean reaches back before the sampling
                rows = [Power(rank=self._rank, rail=rail, at_ns=at, watts=value) for rail, value in watts.items()]
                self._records.extend(rows)
            due, last = max(due + self._period_s, time.monotonic()), now
