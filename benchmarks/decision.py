"""What a decision costs: python benchmarks/decision.py

A table of 10,000 cells (25 plans, 8 batches, 50 rates), decisions at random observations, with the link's rate known
and with a doubtful one, against a bare bisection in the same loop; median and quartiles over repeats. The goal is 50 us
a decision."""

import bisect
import random
import statistics
import time

import msgspec

from prism.decide.policy import PrismPolicy, State
from prism.decide.table import Objective, Observation, Table, table_of
from prism.link import LinkSpec
from prism.perfmap import Cell, PerformanceMap, Provenance
from prism.plan import LOCAL, ExecutionPlan, Mode
from prism.trace.metrics import Latency

PLANS, BATCHES, RATES = 25, (1, 2, 4, 8, 16, 32, 64, 128), 50
DECISIONS, REPEATS, GOAL_US = 2000, 11, 50.0


def table() -> Table:
    plans = [LOCAL] + [ExecutionPlan(mode=Mode.SEGMENT_MEANS, devices=2, segments=k) for k in range(1, PLANS)]
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
        source="measured",
        model="m",
        tokens=197,
        weights="",
        plan=plan,
        batch=batch,
        link=LinkSpec(kind="testbed", rate_bps=rate),
        bandwidth_mbps=rate / 1e6,
        latency_ms=Latency(p50=ms, p95=ms),
        visit_p50_ms=(ms, ms),
        spread_ms=(0.97 * ms, 1.03 * ms),
        per_sample_ms=ms / batch,
        split_ms={},
        bytes_per_exchange=1,
        effective_bandwidth_mbps=None,
        energy_j=None,
        energy=None,
        energy_note="",
        batches=2,
        failed=0,
        visits=2,
        oversubscribed=False,
        provenance=Provenance(files=(), created=("", ""), host={}, configs=(), commands=()),
    )


def main() -> None:
    known, rng = table(), random.Random(0)
    seen = [
        Observation(batch=rng.randint(1, 128), devices=2, bandwidth_bps=10 ** rng.uniform(7, 9), at_s=k / 10)
        for k in range(DECISIONS)
    ]
    doubtful = [msgspec.structs.replace(each, bandwidth_deviation=rng.uniform(0.1, 1)) for each in seen]
    xs = sorted(rng.random() for _ in range(10_000))

    def decide(observations: list[Observation]) -> None:
        state = State()
        for each in observations:
            state = PrismPolicy().decide(each, known, Objective(), state).state

    def bare() -> None:
        for each in seen:
            bisect.bisect(xs, each.at_s % 1)

    runs = {"rate known": lambda: decide(seen), "rate doubtful": lambda: decide(doubtful), "bare bisection": bare}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(REPEATS):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(1e6 * (time.perf_counter() - start) / DECISIONS)
    middles = {name: statistics.median(each) for name, each in times.items()}
    for name, each in times.items():
        low, middle, high = statistics.quantiles(each, n=4)
        print(f"{name}: {middle:.2f} us (quartiles {low:.2f} to {high:.2f})")
    worst = max(middles["rate known"], middles["rate doubtful"])
    print("kept" if worst <= GOAL_US else "MISSED", f": at most {GOAL_US:.0f} us")
    print(msgspec.json.encode({"decision_us": middles}).decode())


if __name__ == "__main__":
    main()
