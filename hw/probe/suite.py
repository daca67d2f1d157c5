"""Run micro-benchmarks that belong to no model: raw material for the cost of models nobody ran.

Shape of each op's Probe, in this order; everything is fp32:
- gemm (rows, inner, columns): [rows, inner] times a weight of [columns, inner], with a bias.
- attention (batch, heads, queries, keys, head width, bias, causal): scaled_dot_product_attention; bias 1
  adds a mask of logits as segment means need it, causal 1 hides later keys. FLOPs are those of the full
  matrix, by the workload's rule, also where causal skips half of it.
- norm (rows, width): LayerNorm with weight and bias.
- elementwise (rows, width, reads): reads 1 is GELU, 2 the residual add.
- block (batch, tokens, width, heads, MLP width): a whole pre-norm block, since its parts don't add up to it.
- pack, unpack (rows, width), with a `codec`: encode and decode of prism.nn.codecs.
  No FLOPs are counted; bytes: the values and the payload.
- segment_means (batch, rows, width, segments).
- d2h, h2d (bytes,): between the GPU and pinned memory, timed by events; only where there is a GPU.

Every cell is visited once a round, in a new order each round; a round that wouldn't end within the budget
isn't begun, so a slow device gets fewer repeats and never fewer cells. A visit's first call is a warm-up.
"""

import random
import time
from collections.abc import Callable

import torch

from hw.probe.calls import Bench, Call
from hw.probe.cells import ProbeCell, ProbeConfig, cells
from prism.cli.progress import Progress
from prism.trace import Probe

WINDOW_NS = 2_000_000  # of one timed stretch: long against the clock and an interrupt
MOST_CALLS = 4096
MOST_ROUNDS = 25


def run_probes(
    config: ProbeConfig, device: torch.device, rank: int, on_progress: Callable[[Progress], None]
) -> list[Probe]:
    """Visit every cell in several rounds, on this rank's own clock. Nothing else should compute meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        with torch.no_grad():
            return _Suite(config, device, rank, on_progress).run()
    finally:
        torch.set_num_threads(before)


class _Suite:
    def __init__(
        self, config: ProbeConfig, device: torch.device, rank: int, on_progress: Callable[[Progress], None]
    ) -> None:
        self._config, self._rank, self._on_progress = config, rank, on_progress
        self._cells = cells(device.type == "cuda")
        self._bench = Bench(device, config.seed)
        self._calls: dict[ProbeCell, int] = {}
        self._done = 0
        self._probes: list[Probe] = []

    def run(self) -> list[Probe]:
        began, order = time.monotonic(), random.Random(self._config.seed)
        for _ in range(MOST_ROUNDS):
            start = time.monotonic()
            for cell in order.sample(self._cells, len(self._cells)):
                self._visit(cell)
                self._progress(time.monotonic() - began)
            now = time.monotonic()
            if now - began + (now - start) > self._config.budget_s:
                break
        return self._probes

    def _visit(self, cell: ProbeCell) -> None:
        """A warm-up call, then as many calls as fill the window; how many is found on the first visit."""
        call = self._bench.call(cell)
        took = self._keep(cell, call, 1, warmup=True)
        if cell not in self._calls:
            took = self._keep(cell, call, 1, warmup=True) if took < WINDOW_NS else took
            self._calls[cell] = self._enough(cell, call, took)
        self._keep(cell, call, self._calls[cell], warmup=False)

    def _enough(self, cell: ProbeCell, call: Call, took_ns: int) -> int:
        calls = 1
        while took_ns < WINDOW_NS and calls < MOST_CALLS:
            calls = min(max(calls + 1, int(1.2 * calls * WINDOW_NS / max(took_ns, 1))), MOST_CALLS)
            took_ns = self._keep(cell, call, calls, warmup=True)
        return calls

    def _keep(self, cell: ProbeCell, call: Call, calls: int, *, warmup: bool) -> int:
        start, end = self._bench.time(cell, call, calls)
        self._probes.append(
            Probe(
                rank=self._rank,
                op=cell.op,
                shape=cell.shape,
                flops=cell.flops,
                bytes=cell.bytes,
                codec=cell.codec,
                start_ns=start,
                end_ns=end,
                calls=calls,
                warmup=warmup,
            )
        )
        return end - start

    def _progress(self, elapsed_s: float) -> None:
        """Report progress by visits in the first round, whose length is unknown, then by time."""
        self._done += 1
        total = max(len(self._cells), self._done)
        if self._done > len(self._cells):
            total = max(total, round(self._done * self._config.budget_s / max(elapsed_s, 1e-9)))
        self._on_progress(Progress(done=self._done, total=total))
