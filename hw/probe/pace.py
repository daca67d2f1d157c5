"""Time one block of a fixed shape before and after the batches of every step that leaves a trace.

It separates a change of machine speed from every other cause. On a GPU so small a block mostly measures launch
overhead.
"""

import torch

from hw.probe.calls import Bench
from hw.probe.cells import PACE_BLOCK
from prism.trace import Probe

STRETCHES, CALLS = 5, 4  # a disturbance hits one stretch, and the median drops it


class Pace:
    """A block that is ready to be timed, on one device."""

    def __init__(self, device: torch.device, rank: int) -> None:
        _, tokens, width, *_ = PACE_BLOCK.shape
        with torch.random.fork_rng(devices=[]):  # a model's random weights are the same with and without
            self._bench = Bench(device, 0, tokens * width)
            self._call = self._bench.call(PACE_BLOCK)
        self._rank = rank

    def timed(self) -> list[Probe]:
        """Time a warm-up and STRETCHES stretches, on this rank's own clock."""
        with torch.no_grad():
            return [self._stretch(warmup) for warmup in (True, *(False,) * STRETCHES)]

    def _stretch(self, warmup: bool) -> Probe:
        start, end = self._bench.time(PACE_BLOCK, self._call, CALLS)
        return Probe(
            rank=self._rank,
            op=PACE_BLOCK.op,
            shape=PACE_BLOCK.shape,
            flops=PACE_BLOCK.flops,
            bytes=PACE_BLOCK.bytes,
            start_ns=start,
            end_ns=end,
            calls=CALLS,
            warmup=warmup,
        )
