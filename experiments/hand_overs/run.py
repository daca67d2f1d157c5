"""Measure how far apart the two ranks of a block hand over their messages.

    python -m experiments.hand_overs.run          # of the newest unseen models at 50 Mbps

The unit is the time that a message takes when it has the air to itself. Near 1 the ranks take turns: one sends while
the other computes. Near 0 they share the air. Only first visits count, and no cells of causal models, whose parts do
not wait for each other."""

import tarfile
import tempfile
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from statistics import median

from experiments.lib.places import RESULTS
from prism.link import LinkSpec
from prism.trace import Trace, read_trace

TRACES = RESULTS / "unseen_models" / "set-4" / "held_out.tar.xz"
RATE_BPS, CROSSINGS = 50e6, 2  # station to access point and on to the other
EDGES_BYTES = (0, 5_000, 15_000, 40_000, 150_000, 10**9)


def chosen(trace: Trace) -> bool:
    """Say whether a trace is of two ranks at RATE_BPS, and not of a causal model."""
    header = trace.header
    causal = header.spec is None or header.spec.causal
    return header.plan.ranks == 2 and not causal and LinkSpec.parse(header.link).rate_bps == RATE_BPS


def apart(trace: Trace) -> tuple[int, float]:
    """Return the bytes of a message, and the median over blocks of how far apart the ranks hand theirs over."""
    measured = {batch.batch for batch in trace.measured}
    wires = [s for s in trace.spans if s.kind == "wire" and s.op == "exchange" and s.batch in measured]
    issued: dict[tuple[int, int], list[int]] = defaultdict(list)
    for span in wires:
        issued[span.batch, span.block].append(span.issued_ns)
    size = max(span.sent_bytes for span in wires)
    alone_ns = 8e9 * CROSSINGS * size / RATE_BPS
    return size, median(abs(two[0] - two[1]) for two in issued.values() if len(two) == 2) / alone_ns


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, tarfile.open(TRACES) as archive:
        archive.extractall(folder, filter="data")
        first_visits = [read_trace(path) for path in sorted(Path(folder).rglob("*50Mbps*.0.jsonl"))]
    found = [apart(trace) for trace in first_visits if chosen(trace)]
    for low, high in pairwise(EDGES_BYTES):
        times = [ratio for size, ratio in found if low <= size < high]
        print(
            f"messages of {low} to {high} bytes: {len(times)} cells, "
            f"{median(times):.2f} of a message's time apart (median)"
        )


if __name__ == "__main__":
    main()
