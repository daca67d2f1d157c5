"""How quick a rank's machine is just now: one whole block of a fixed shape, timed before and after the batches of every
step that leaves a trace. Between two measurements of one model, a machine that changed its speed is told by it from
anything else that changed. On a GPU, where a block so small may be bound by its launches, it speaks for those."""

import torch

from hw.probe.calls import Bench
from hw.probe.cells import PACE_BLOCK
from prism.trace import Probe

STRETCHES, CALLS = 5, 4  # a burst of the machine's own disturbs one stretch, and the median leaves it out


class Pace:
    """A block that is there already, on one device."""

    def __init__(self, device: torch.device, rank: int) -> None:
        _, tokens, width, *_ = PACE_BLOCK.shape
        with torch.random.fork_rng(devices=[]):  # a model's random weights are the same with and without
            self._bench = Bench(device, 0, tokens * width)
            self._call = self._bench.call(PACE_BLOCK)
        self._rank = rank

    def timed(self) -> list[Probe]:
        """A warm-up and STRETCHES, on this rank's own clock."""
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
