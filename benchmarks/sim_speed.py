"""How fast the simulator is, against its goals.

    python benchmarks/sim_speed.py [--output FILE.json]

- events per second of simulated batches over those of a bare SimPy loop with as many events: at least 0.5 by
  changes of state (a step of a rank begins or ends, a message joins the medium, leaves it, arrives). By what
  SimPy itself schedules the ratio is lower, is printed beside it, and is no goal here: a rank's steps add up on
  a clock of its own and cost no event, so the bare loop has fewer to do while the steps' own work stays. More
  events would raise that ratio and slow every cell.
- one predicted cell: at most 2 ms
- a study of 10,000 cells on two cores: at most 30 s
- growth of the time with blocks and requests: no worse than linear; with devices up to 16: no worse than P^2;
  with tokens up to 4096: none to speak of

Each figure is the best of several rounds of processor time; the study's is wall time. Exit code 1 when a goal
is missed.
"""

import argparse
import gc
import itertools
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import simpy

from prism.backend import Workload
from prism.cost import load_profile
from prism.decide.policy import FixedPolicy
from prism.link import LinkSpec
from prism.plan import ExecutionPlan, Mode
from prism.spec import ModelSpec
from prism.trace import Trace
from sim.ask.point import Point, plan_of, predict
from sim.ask.study import over_processes, solve
from sim.ask.study_file import Study, StudyGrid
from sim.engine.backend import SimBackend, identical
from sim.engine.script import script
from sim.serving.requests import Arrivals
from sim.serving.scenario import Scenario, simulate_serving

MODEL = ModelSpec(
    name="vit_base_patch16_224",
    family="vit",
    blocks=12,
    width=768,
    heads=12,
    mlp_width=3072,
    tokens=197,
    prefix_tokens=1,
    patch_values=768,
    output_width=1000,
)
LINK = LinkSpec(kind="testbed", rate_bps=400e6)
PROFILE = load_profile("orin-nano")
ROUNDS = 7


def best_s(work: Callable[[], Any], calls: int = 20, rounds: int = ROUNDS) -> float:
    """Processor seconds of one call: the best of several rounds."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        for _ in range(calls):
            work()
        times.append((time.process_time() - start) / calls)
    return min(times)


def bare_loop(events: int, processes: int) -> None:
    """As many timeouts as a simulated batch has events, by as many processes."""
    env = simpy.Environment()

    def tick(count: int) -> Any:
        for _ in range(count):
            yield env.timeout(1)

    for _ in range(processes):
        env.process(tick(events // processes))
    env.run()


def counted_events(plan: ExecutionPlan, batches: int) -> tuple[int, int]:
    """Changes of state in some batches, and the events that SimPy scheduled for them."""
    count = 0
    original = simpy.Environment.schedule

    def schedule(self: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal count
        count += 1
        original(self, *args, **kwargs)

    simpy.Environment.schedule = schedule  # type: ignore[method-assign]
    try:
        spans = run(plan, batches).spans
    finally:
        simpy.Environment.schedule = original  # type: ignore[method-assign]
    steps = sum(span.kind != "wait" and span.end_ns > span.start_ns for span in spans)
    messages = sum((plan.ranks - 1) for span in spans if span.sent_bytes)  # a mesh: one to each other rank
    return 2 * steps + 3 * messages, count


def run(plan: ExecutionPlan, batches: int = 1, model: ModelSpec = MODEL) -> Trace:
    backend = SimBackend(identical(PROFILE, PROFILE.model(), plan.ranks, LINK))
    return backend.run(plan, Workload(model=model, batch=8, batches=batches))


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """The growth between the two ends: 1 is linear."""
    return math.log(seconds[-1] / seconds[0]) / math.log(sizes[-1] / sizes[0])


def growth(sizes: list[int], work: Callable[[int], Callable[[], Any]], calls: int) -> dict[str, Any]:
    seconds = [best_s(work(size), calls, rounds=5) for size in sizes]
    return {"sizes": sizes, "ms": [1e3 * s for s in seconds], "exponent": exponent(sizes, seconds)}


def full(devices: int) -> ExecutionPlan:
    return ExecutionPlan(mode=Mode.FULL, devices=devices, collective="mesh")


def of_blocks(blocks: int) -> Callable[[], Any]:
    return lambda: run(full(2), model=msgspec.structs.replace(MODEL, blocks=blocks))


def of_tokens(tokens: int) -> Callable[[], Any]:
    return lambda: run(full(2), model=msgspec.structs.replace(MODEL, tokens=tokens))


def of_requests(requests: int) -> Callable[[], Any]:
    machines = identical(PROFILE, PROFILE.model(), 2, LINK)
    arrivals = Arrivals(pattern="poisson", requests=requests, rate_per_s=1.0)
    return lambda: simulate_serving(machines, Scenario(model=MODEL, arrivals=arrivals), FixedPolicy(full(2)))


def study() -> tuple[int, float]:
    """Cells and wall seconds of a study on two processes."""
    rates = tuple(f"{50 + 7 * k}Mbps" for k in range(125))
    axes = StudyGrid(
        mode=(Mode.FULL, Mode.SEGMENT_MEANS), batch=tuple(range(1, 21)), segments=(5, 10, 20), bandwidth=rates
    )
    start = time.perf_counter()
    cells = len(solve(Study(model="vit", grid=axes), [MODEL], over_processes(2)).cells)
    return cells, time.perf_counter() - start


def cell_s() -> float:
    """Seconds of one predicted cell that was never seen before: another batch every time."""
    points = itertools.cycle(
        Point(model=MODEL, plan=plan_of(PROFILE, Mode.SEGMENT_MEANS, 2, segments=10), batch=batch, link=LINK)
        for batch in range(1, 33)
    )

    def work() -> None:
        script.cache_clear()
        predict(PROFILE, next(points))

    return best_s(work, calls=32)


def event_ratio() -> dict[str, float]:
    batches = 20
    events, scheduled = counted_events(full(2), batches)
    ours = best_s(lambda: run(full(2), batches), 5)
    bare, bare_scheduled = (best_s(lambda: bare_loop(events, 2), 20), best_s(lambda: bare_loop(scheduled, 2), 20))
    return {
        "events": events,
        "per_s": events / ours,
        "bare_per_s": events / bare,
        "ratio": bare / ours,
        "scheduled": scheduled,
        "ratio_scheduled": bare_scheduled / ours,
    }


def main() -> int:
    arguments = argparse.ArgumentParser(description="Speed of the simulator against its goals.")
    arguments.add_argument("--output", type=Path)
    output = arguments.parse_args().output
    gc.collect()
    gc.freeze()  # as prism-sim does
    events, cell = event_ratio(), cell_s()
    cells, seconds = study()
    grown = {
        "blocks": growth([12, 24, 48, 96], of_blocks, 10),
        "devices": growth([2, 4, 8, 16], lambda p: lambda: run(full(p)), 3),
        "tokens": growth([256, 1024, 4096], of_tokens, 10),
        "requests": growth([50, 100, 200, 400], of_requests, 1),
    }
    goals = {
        "event ratio >= 0.5, by changes of state": events["ratio"] >= 0.5,
        "cell <= 2 ms": cell <= 2e-3,
        "10,000 cells <= 30 s": seconds * 10_000 / cells <= 30,
        "blocks <= linear": grown["blocks"]["exponent"] <= 1.05,
        "requests <= linear": grown["requests"]["exponent"] <= 1.05,
        "devices <= P^2": grown["devices"]["exponent"] <= 2.0,
        "tokens <= linear": grown["tokens"]["exponent"] <= 1.0,
    }
    print(
        f"{events['events']} changes of state: {events['per_s']:,.0f}/s, a bare SimPy loop of as many "
        f"{events['bare_per_s']:,.0f}/s: ratio {events['ratio']:.2f}"
    )
    print(
        f"{events['scheduled']} events that SimPy scheduled for them: ratio to a bare loop of as many "
        f"{events['ratio_scheduled']:.2f}; the other changes cost no event, only their own work"
    )
    print(f"one cell: {1e3 * cell:.2f} ms; {cells} cells in {seconds:.1f} s on two processes")
    for name, found in grown.items():
        times = ", ".join(f"{s}: {ms:.2f}" for s, ms in zip(found["sizes"], found["ms"], strict=True))
        print(f"{name}: ms {times}; exponent {found['exponent']:.2f}")
    for goal, kept in goals.items():
        print(f"{'kept' if kept else 'MISSED'}: {goal}")
    if output is not None:
        result = {
            "events": events,
            "cell_ms": 1e3 * cell,
            "study_cells": cells,
            "study_s": seconds,
            "growth": grown,
            "goals": goals,
        }
        output.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    return 0 if all(goals.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
