"""What a decision costs: python benchmarks/decision.py

A table of 10,000 cells (25 plans, 8 batches, 50 rates), decisions at random observations, against a bare bisection
in the same loop; median and quartiles over repeats. The goal is 50 us a decision.
"""

import bisect
import random
import statistics
import time

import msgspec

from prism.metrics import Latency
from prism.perfmap import Cell, PerformanceMap, Provenance
from prism.plan import ExecutionPlan, Mode
from prism.policy import PrismPolicy, State
from prism.spec import LinkSpec
from prism.table import Objective, Observation, Table, table_of

PLANS, BATCHES, RATES = 25, (1, 2, 4, 8, 16, 32, 64, 128), 50
DECISIONS, REPEATS, GOAL_US = 2000, 11, 50.0


def table() -> Table:
    plans = [ExecutionPlan(mode=Mode.LOCAL)] + [
        ExecutionPlan(mode=Mode.SEGMENT_MEANS, devices=2, segments=k) for k in range(1, PLANS)
    ]
    rates = [10e6 * 1.1**k for k in range(RATES)]
    cells = [
        _cell(plan, batch, rate)
        for plan in plans
        for batch in BATCHES
        for rate in (rates if plan.ranks > 1 else rates[:1])
    ]
    print(f"{len(cells)} cells")
    return table_of([PerformanceMap(created="", command="", cells=tuple(cells))], "m")


def _cell(plan: ExecutionPlan, batch: int, rate: float) -> Cell:
    ms = batch * (100.0 if plan.ranks == 1 else 60.0 + (plan.segments or 1) * 4e8 / rate)
    return Cell(
        source="measured", model="m", tokens=197, weights="", plan=plan, batch=batch,
        link=LinkSpec(kind="testbed", rate_bps=rate), bandwidth_mbps=rate / 1e6, latency_ms=Latency(p50=ms, p95=ms),
        visit_p50_ms=(ms, ms), spread_ms=(0.97 * ms, 1.03 * ms), per_sample_ms=ms / batch, split_ms={},
        bytes_per_exchange=1, effective_bandwidth_mbps=None, energy_j=None, energy=None, energy_note="", batches=2,
        failed=0, visits=2, oversubscribed=False,
        provenance=Provenance(files=(), created=("", ""), host={}, configs=(), commands=()),
    )  # fmt: skip


def main() -> None:
    known, rng = table(), random.Random(0)
    seen = [
        Observation(batch=rng.randint(1, 128), devices=2, bandwidth_bps=10 ** rng.uniform(7, 9), at_s=k / 10)
        for k in range(DECISIONS)
    ]
    policy, objective, xs = PrismPolicy(), Objective(), sorted(rng.random() for _ in range(10_000))
    ours, bare = [], []
    for _ in range(REPEATS):
        state, start = State(), time.perf_counter()
        for each in seen:
            state = policy.decide(each, known, objective, state).state
        ours.append(1e6 * (time.perf_counter() - start) / DECISIONS)
        start = time.perf_counter()
        for each in seen:
            bisect.bisect(xs, each.at_s % 1)
        bare.append(1e6 * (time.perf_counter() - start) / DECISIONS)
    low, middle, high = statistics.quantiles(ours, n=4)
    print(
        f"a decision: {middle:.1f} us (quartiles {low:.1f} to {high:.1f}); a bare bisection {statistics.median(bare):.2f} us"
    )
    print("kept" if middle <= GOAL_US else "MISSED", f": at most {GOAL_US:.0f} us")
    print(msgspec.json.encode({"decision_us": middle}).decode())


if __name__ == "__main__":
    main()
