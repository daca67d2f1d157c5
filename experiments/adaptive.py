"""Adaptive against static choices, the published look-up and the oracle: python experiments/adaptive.py --trace wave

Two devices as namespaces around an access point (needs root), ViT-Base, one image a batch, decisions by the measured map
of results/scaled_grid. A trace gives the medium's rate for each of 300 slots of 2 s: ten minutes. In every slot, in a
shuffled order, static local and static segment means answer one batch each, in every eighth slot static full exchange does,
and the adaptive runtime, which knows only what it observed itself, answers one and then more until the slot is over. A
slot counts with the mean of its adaptive batches. The oracle has the quickest of the slot's static ones. The published
look-up has the plan of the nearest cell at what was observed before each adaptive batch, and that plan's static time; the
told look-up the same at the true rate of the slot before. "on_every_map" decides the observations again with every map that
lacks some of the rates (coarser_maps.py). "choices" are the adaptive runtime's plans at the static times of
their slot, as the look-up's are: without the noise, and the probes' cost, of its own batches.

Beside it the same policy, filter and table in the simulator: latencies and waits by the profile x86-core at each slot's
rate, a probe with its stated deviation after half a second of local batches. `--simulate` runs that alone.

`--least-agreement 0.98` measures first what each plan's answers agree with the model's (16 bundled images, all parts in one
process), and gives the policy that floor, on the testbed and in the simulator by the same table.
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from coarser_maps import on_every_map
from rich.progress import track

from hw.evaluate.run import EvalConfig, evaluate
from hw.serving.app import ServeConfig, open_service
from hw.serving.runtime import PROBE_DEVIATION, PROBE_EVERY_S, AdaptiveRuntime, Strategy
from hw.testbed.namespaces import NamespaceTestbed
from hw.testbed.netns import enter
from prism.cli.entry import command_line
from prism.cost import load_profile
from prism.decide.accuracy import AccuracyTable, load_accuracy
from prism.decide.link_rate import RateEstimate, Sample, updated
from prism.decide.log import Decided, DecisionLog, read_decisions, replay
from prism.decide.policy import FixedPolicy, LookupPolicy, PrismPolicy, State
from prism.decide.table import Objective, Observation, Table, table_of
from prism.link import LinkSpec
from prism.perfmap import PerformanceMap, load_map
from prism.plan import LOCAL, ExecutionPlan, Mode
from sim.ask.point import Point, summary
from sim.cli.options import model_of

HERE = Path(__file__).parent
MODEL, PORT, SLOTS, SLOT_S = "vit_base_patch16_224", 29500, 300, 2.0
FULL = ExecutionPlan(mode=Mode.FULL, devices=2)
MEANS = ExecutionPlan(mode=Mode.SEGMENT_MEANS, devices=2, segments=10)
STATIC = {"local": LOCAL, "means": MEANS, "full": FULL}
FULL_EVERY = 8  # slots: it takes seconds where the link is slow
TIMEOUT_S = 15.0  # the slowest full exchange must be measured, not given up


def wave(rng: random.Random) -> list[float]:
    """30 to 300 Mbps and back, five times in ten minutes."""
    return [30e6 * 10 ** (0.5 - 0.5 * math.cos(2 * math.pi * k / 60)) for k in range(SLOTS)]


def wifi(rng: random.Random) -> list[float]:
    """A wandering rate with bursts of interference: an autoregressive logarithm about 110 Mbps, and now and then one to
    three slots at a fifth."""
    level, burst, found = 0.0, 0, []
    for _ in range(SLOTS):
        level = 0.97 * level + rng.gauss(0.0, 0.12)
        if burst == 0 and rng.random() < 0.04:
            burst = rng.randint(1, 3)
        found.append(min(110e6 * math.exp(level) * (0.2 if burst else 1.0), 900e6))
        burst = max(burst - 1, 0)
    return found


TRACES = {"wave": wave, "wifi": wifi}


def known_map() -> PerformanceMap:
    whole = load_map(HERE / "results" / "scaled_grid" / "map.json")
    cells = tuple(cell for cell in whole.cells if cell.model == MODEL and cell.plan in STATIC.values())
    return msgspec.structs.replace(whole, cells=cells)


def objective_of(folder: Path) -> Objective:
    path = folder / "objective.json"
    return msgspec.json.decode(path.read_bytes(), type=Objective) if path.exists() else Objective()


def answers_of(folder: Path) -> list[AccuracyTable]:
    return [load_accuracy(folder / "accuracy.json")] if (folder / "accuracy.json").exists() else []


def measure_answers(folder: Path, least: float) -> None:
    """What a floor needs: agreement of each plan with the model as it is."""
    asked = EvalConfig(model=MODEL, weights="random", limit=16, batch=4, segments=(10,))
    table = evaluate(asked, folder, f"python experiments/adaptive.py --least-agreement {least:g}", lambda event: None).table
    table.save(folder / "accuracy.json")
    (folder / "objective.json").write_bytes(msgspec.json.encode(Objective(least_agreement=least)))


def serve(netns: str, folder: Path, slots: int) -> None:
    """The terminal: a slot for each line that comes in, its rows as lines out."""
    enter(netns)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.manual_seed(0)
    x = torch.randn(1, 3, 224, 224)
    config = ServeConfig(
        model=MODEL, weights="random", map=str(folder / "map.json"), key_file=str(folder / "key"),
        join_address="10.66.0.1", join_port=PORT, http_port=0, timeout_s=TIMEOUT_S,
        decisions=str(folder / "decisions.jsonl"), objective=objective_of(folder),
        accuracy=str(folder / "accuracy.json") if answers_of(folder) else "",
    )  # fmt: skip
    rng = random.Random(1)
    with open_service(config, "experiments/adaptive.py") as service:
        if service.leader is None or not service.leader.wait(120):
            raise SystemExit("the other device never joined")
        table = table_of([known_map()], MODEL)
        fixed = {
            name: AdaptiveRuntime(
                service.served, service.leader, Strategy(table, FixedPolicy(plan), Objective(), learn=False),
                timeout_s=TIMEOUT_S,
            )
            for name, plan in STATIC.items()
        }  # fmt: skip
        for runtime in fixed.values():
            runtime.run({"x": x})
        print("ready", flush=True)
        for slot in range(slots):
            sys.stdin.readline()
            until = time.monotonic() + SLOT_S
            order = contenders(slot, rng)
            row: dict[str, Any] = {"adaptive": [], "modes": [], "failed": 0}
            while order or time.monotonic() < until:
                name = order.pop() if order else "adaptive"
                if name == "adaptive":
                    served = service.runtime.run({"x": x})
                    row["adaptive"].append(served.ms)
                    row["modes"].append(served.ran.mode.value)
                    row["failed"] += bool(served.failed)
                else:
                    with service.leader.using if name == "local" else contextlib.nullcontext():
                        row[name] = fixed[name].run({"x": x}).ms  # and no probe beside a local batch
            estimate = service.runtime.estimate
            print(json.dumps({**row, "believed_bps": estimate.rate_bps if estimate else None}), flush=True)
        print(
            json.dumps({"probe_s": service.runtime.probe_s, "corrections": service.runtime.corrections}),
            flush=True,
        )


def contenders(slot: int, rng: random.Random) -> list[str]:
    names = ["adaptive", "local", "means"] + (["full"] if slot % FULL_EVERY == 0 else [])
    rng.shuffle(names)
    return names


def measured(rates: list[float], folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    with NamespaceTestbed(LinkSpec(kind="testbed", rate_bps=rates[0]), 2) as bed:
        driver = subprocess.Popen(
            [sys.executable, __file__, "--serve", bed.stations[0].path, "--output", str(folder), "--slots", str(len(rates))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        peer = subprocess.Popen(
            ["nsenter", f"--net={bed.stations[1].path}", "taskset", "-c", str(max(os.sched_getaffinity(0))), sys.executable,
             "-m", "hw.cli.main", "join", f"10.66.0.1:{PORT}", "--key-file", str(folder / "key"), "--name", "other",
             "--model", MODEL, "--weights", "random", "--timeout", f"{TIMEOUT_S}s"],
        )  # fmt: skip
        try:
            while (line := driver.stdout.readline().strip()) != "ready":
                if not line:
                    raise SystemExit("the terminal ended before it was ready")
            rows = []
            for slot in track(range(len(rates)), description="slots"):
                bed.set_rate(rates[slot])
                driver.stdin.write("\n")
                driver.stdin.flush()
                rows.append({"slot": slot, "rate_bps": rates[slot], **json.loads(driver.stdout.readline())})
            return rows, json.loads(driver.stdout.readline())
        finally:
            peer.kill()
            driver.wait(30)


class Simulated:
    """The same slots in the simulator, by the same policy, filter and table."""

    def __init__(self, folder: Path) -> None:
        self._profile, self._model = load_profile("x86-core"), model_of(MODEL)
        self._table = table_of([known_map()], MODEL, answers_of(folder))
        self._objective, self._policy, self._state = objective_of(folder), PrismPolicy(), State()
        self._estimate: RateEstimate | None = None
        self._noise, self._rng, self._now = random.Random(3), random.Random(1), 0.0

    def slot(self, slot: int, rate: float) -> dict[str, Any]:
        link = LinkSpec(kind="testbed", rate_bps=rate)
        found = {
            name: summary(self._profile, self._profile.model(), Point(model=self._model, plan=plan, batch=1, link=link))
            for name, plan in STATIC.items()
        }  # fmt: skip
        until = self._now + SLOT_S
        row: dict[str, Any] = {"adaptive": [], "modes": [], "lookups": [], "seen": [], "failed": 0}
        order = contenders(slot, self._rng)
        while order or self._now < until:
            name = order.pop() if order else "adaptive"
            if name == "adaptive":
                name = self._decide(row, rate)
                split = found[name].split_ms
                row["adaptive"].append(found[name].latency_ms.p50)
                told = self._table.rate_of(STATIC[name], 1, split["wire"] + split["wait"])
                if told is not None:
                    self._saw(told[0], told[1], "batch", found[name].latency_ms.p50)
            else:
                row[name] = found[name].latency_ms.p50
            self._now += found[name].latency_ms.p50 / 1e3
        return {**row, "believed_bps": self._estimate.rate_bps if self._estimate else None}

    def _decide(self, row: dict[str, Any], rate: float) -> str:
        if self._estimate is None or self._now - self._estimate.at_s > PROBE_EVERY_S:
            self._saw(rate * math.exp(PROBE_DEVIATION * self._noise.gauss(0, 1)), PROBE_DEVIATION, "probe", 0.0)
        estimate = self._estimate
        seen = Observation(
            batch=1, devices=2, at_s=self._now, bandwidth_bps=estimate.rate_bps if estimate else None,
            bandwidth_deviation=estimate.deviation_at(self._now) if estimate else 0.0,
        )  # fmt: skip
        decision = self._policy.decide(seen, self._table, self._objective, self._state)
        self._state = decision.state
        row["modes"].append(decision.plan.mode.value)
        row["lookups"].append(looked_up(seen, self._table))
        row["seen"].append(seen)
        return named(decision.plan)

    def _saw(self, rate: float, deviation: float, source: Any, after_ms: float) -> None:
        sample = Sample(at_s=self._now + after_ms / 1e3, rate_bps=rate, deviation=deviation, source=source)
        self._estimate = updated(self._estimate, sample)


def simulated(rates: list[float], folder: Path) -> list[dict[str, Any]]:
    machine = Simulated(folder)
    return [{"slot": k, "rate_bps": rate, **machine.slot(k, rate)} for k, rate in enumerate(rates)]


def named(plan: ExecutionPlan) -> str:
    return next(name for name, each in STATIC.items() if each == plan)


def looked_up(seen: Observation, table: Table) -> str:
    return named(LookupPolicy().decide(seen, table, Objective(), State()).plan)


def with_lookups(rows: list[dict[str, Any]], log: DecisionLog) -> list[dict[str, Any]]:
    """What was seen before each batch, and what the published look-up would have done."""
    table = Table(log.header.rows)
    every = iter([entry.observation for entry in log.entries if isinstance(entry, Decided)])
    seen = [[next(every) for _ in row["adaptive"]] for row in rows]
    return [
        {**row, "seen": each, "lookups": [looked_up(one, table) for one in each]}
        for row, each in zip(rows, seen, strict=True)
    ]


def judged(rows: list[dict[str, Any]]) -> dict[str, Any]:
    table = table_of([known_map()], MODEL)
    before = rows[0]["rate_bps"]
    for row in rows:
        at_s = SLOT_S * row["slot"]
        told = Observation(batch=1, devices=2, bandwidth_bps=before, at_s=at_s)
        before = row["rate_bps"]
        seen = Observation(batch=1, devices=2, bandwidth_bps=row["rate_bps"], at_s=at_s)
        row["prism"] = float(np.mean(row["adaptive"]))
        ran = [next(name for name, plan in STATIC.items() if plan.mode.value == mode) for mode in row["modes"]]
        if all(name in row for name in ran):
            row["chosen"] = float(np.mean([row[name] for name in ran]))
        if all(name in row for name in row["lookups"]):
            row["lookup"] = float(np.mean([row[name] for name in row["lookups"]]))
        row["told"] = row.get(looked_up(told, table))
        row["oracle"] = min(row[name] for name in STATIC if name in row)
        row["best_by_map"] = next(table.at(seen, Objective()).ranked()).plan.mode.value

    def over(name: str, what: str = "prism") -> float:
        """Total latency of the adaptive batches over another's, in the slots that have both."""
        both = [row for row in rows if row.get(name) is not None and what in row]
        return float(sum(row[what] for row in both) / sum(row[name] for row in both))

    modes, best = [mode for row in rows for mode in row["modes"]], [row["best_by_map"] for row in rows]
    believed = [(row["believed_bps"], row["rate_bps"]) for row in rows if row["believed_bps"]]
    return {
        "slots": len(rows), "adaptive_batches": len(modes), "modes": dict(Counter(modes)),
        "adaptive_over_oracle": over("oracle"), "adaptive_over_full": over("full"),
        "adaptive_over_local": over("local"), "adaptive_over_means": over("means"),
        "adaptive_over_best_static": max(over("local"), over("means")),
        "adaptive_over_published_lookup": over("lookup"), "adaptive_over_told_lookup": over("told"),
        "choices_over_oracle": over("oracle", "chosen"), "choices_over_published_lookup": over("lookup", "chosen"),
        "switches": sum(a != b for a, b in itertools.pairwise(modes)),
        "crossings": sum(a != b for a, b in itertools.pairwise(best)),
        "on_every_map": on_every_map(table, [
            ({plan: row[name] for name, plan in STATIC.items() if name in row}, row.pop("seen")) for row in rows
        ]),
        "failed": sum(row["failed"] for row in rows),
        "rate_error_p50": float(np.median([abs(math.log(a / b)) for a, b in believed])),
    }  # fmt: skip


def plot(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (above, below) = plt.subplots(2, 1, figsize=(9, 5.5), sharex=True)
    minutes = [SLOT_S * row["slot"] / 60 for row in rows]
    above.plot(minutes, [row["rate_bps"] / 1e6 for row in rows], color="0.3", label="the medium")
    above.plot(
        minutes,
        [(row["believed_bps"] or np.nan) / 1e6 for row in rows],
        color="tab:orange",
        lw=1,
        label="believed",
    )
    above.set(yscale="log", ylabel="Mbps", title=title)
    for name, colour, label in (("local", "tab:blue", "local"), ("means", "tab:green", "means"), ("prism", "tab:red", "adaptive")):
        below.plot(minutes, [row[name] for row in rows], color=colour, lw=1, label=label)
    below.set(xlabel="minutes of the trace", ylabel="ms a batch", ylim=(0, None))
    for axis in (above, below):
        axis.legend(fontsize=8, ncols=3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trace", choices=TRACES, default="wave")
    parser.add_argument("--slots", type=int, default=SLOTS)
    parser.add_argument("--output", type=Path, default=Path("out/adaptive"))
    parser.add_argument("--least-agreement", type=float, help="a floor for the policy")
    parser.add_argument("--simulate", action="store_true", help="the simulator alone: no root, no devices")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.output, options.slots)
        return
    rates = TRACES[options.trace](random.Random(2))[: options.slots]
    folder = options.output
    folder.mkdir(parents=True, exist_ok=True)
    for stale in ("objective.json", "accuracy.json"):  # of another floor
        (folder / stale).unlink(missing_ok=True)
    if options.least_agreement is not None:
        measure_answers(folder, options.least_agreement)
    in_simulator = judged(simulated(rates, folder))
    if options.simulate:
        print(json.dumps(in_simulator, indent=1))
        return
    (folder / "key").write_bytes(os.urandom(32).hex().encode())
    (folder / "key").chmod(0o600)
    known_map().save(folder / "map.json")
    rows, spent = measured(rates, folder)
    log = read_decisions(folder / "decisions.jsonl")
    again, rows = replay(log), with_lookups(rows, log)
    found = {
        "trace": options.trace, "command": f"python experiments/{command_line()}",
        **judged(rows), **spent,
        "replay_identical": again.identical, "decisions": again.decisions, "in_the_simulator": in_simulator,
        "agreement": {named(row.plan): row.agreement for table in answers_of(folder) for row in table.rows},
    }  # fmt: skip
    (folder / "slots.json").write_text(json.dumps(rows) + "\n")
    (folder / "summary.json").write_text(json.dumps(found, indent=1) + "\n")
    plot(rows, f"ViT-Base over a {options.trace} trace", folder / "adaptive.png")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
