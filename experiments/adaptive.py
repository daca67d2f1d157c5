"""Adaptive against static choices, the published look-up and the oracle: python experiments/adaptive.py --trace wave

Two devices as namespaces around an access point (needs root), ViT-Base, one image a batch, decisions by the measured map
of results/scaled_grid. A trace gives the medium's rate for each of 300 slots, which stand for 2 s each. In every slot each
contender answers one batch, in a shuffled order: the adaptive runtime, which knows only what it observed itself; static
local; static segment means; in every fourth slot static full exchange. The oracle has the quickest of the static ones of the
slot; the published look-up the plan of the nearest cell at the true rate of the slot before, and that plan's measured time.

Beside it the same policy, filter and table in the simulator: latencies and waits by the profile x86-core at each slot's
rate, a probe with its stated deviation in every slot that was local.
"""

import argparse
import itertools
import json
import math
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from rich.progress import track

from hw.netns import enter
from hw.serving.runtime import PROBE_DEVIATION, AdaptiveRuntime
from hw.serving.service import ServeConfig, terminal
from hw.testbed import NamespaceTestbed
from prism.cost import load_profile
from prism.decisions import read_decisions, replay
from prism.observe import RateEstimate, Sample, updated
from prism.perfmap import PerformanceMap, load_map
from prism.plan import ExecutionPlan, Mode
from prism.policy import FixedPolicy, LookupPolicy, PrismPolicy, State
from prism.spec import LinkSpec
from prism.table import LOCAL, Objective, Observation, table_of
from sim.options import model_of
from sim.study import Point, summary

HERE = Path(__file__).parent
MODEL, PORT, SLOTS, SLOT_S = "vit_base_patch16_224", 29500, 300, 2.0
FULL = ExecutionPlan(mode=Mode.FULL, devices=2)
MEANS = ExecutionPlan(mode=Mode.SEGMENT_MEANS, devices=2, segments=10)
STATIC = {"local": LOCAL, "means": MEANS, "full": FULL}
FULL_EVERY = 4
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


def serve(netns: str, folder: Path, slots: int) -> None:
    """The terminal: a slot for each line that comes in, its rows as lines out."""
    enter(netns)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.manual_seed(0)
    x = torch.randn(1, 3, 224, 224)
    config = ServeConfig(
        model=MODEL, weights="random", map=str(folder / "map.json"), key_file=str(folder / "key"),
        join_address="10.66.0.1", join_port=PORT, http_port=0, timeout_s=TIMEOUT_S,
        decisions=str(folder / "decisions.jsonl"),
    )  # fmt: skip
    rng = random.Random(1)
    with terminal(config, "experiments/adaptive.py") as service:
        if service.members is None or not service.members.wait(120):
            raise SystemExit("the other device never joined")
        table = table_of([known_map()], MODEL)
        fixed = {
            name: AdaptiveRuntime(
                service.model, service.members, service.runtime._recorder, table, FixedPolicy(plan), Objective(),
                timeout_s=TIMEOUT_S, learn=False,
            )
            for name, plan in STATIC.items()
        }  # fmt: skip
        for runtime in fixed.values():
            runtime.run({"x": x})
        print("ready", flush=True)
        for slot in range(slots):
            sys.stdin.readline()
            names = ["adaptive", "local", "means"] + (["full"] if slot % FULL_EVERY == 0 else [])
            rng.shuffle(names)
            row: dict[str, Any] = {}
            for name in names:
                if name == "local":
                    with service.members.using:  # no probe of the adaptive one beside another's batch
                        row[name] = fixed[name].run({"x": x}).ms
                elif name == "adaptive":
                    served = service.runtime.run({"x": x})
                    estimate = service.runtime.estimate
                    row[name], row["mode"] = served.ms, served.ran.mode.value
                    row["failed"], row["believed_bps"] = (
                        served.failed,
                        estimate.rate_bps if estimate else None,
                    )
                else:
                    served = fixed[name].run({"x": x})
                    row[name], row["failed"] = served.ms, row.get("failed") or served.failed
            print(json.dumps(row), flush=True)
        print(
            json.dumps({"probe_s": service.runtime.probe_s, "corrections": service.runtime.corrections}),
            flush=True,
        )


def measured(rates: list[float], folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    with NamespaceTestbed(LinkSpec(kind="testbed", rate_bps=rates[0]), 2) as bed:
        driver = subprocess.Popen(
            [sys.executable, __file__, "--serve", bed.stations[0].path, "--output", str(folder), "--slots", str(len(rates))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        peer = subprocess.Popen(
            ["nsenter", f"--net={bed.stations[1].path}", "taskset", "-c", str(max(os.sched_getaffinity(0))), sys.executable,
             "-m", "hw.cli", "join", f"10.66.0.1:{PORT}", "--key-file", str(folder / "key"), "--name", "other",
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


def simulated(rates: list[float]) -> list[dict[str, Any]]:
    """The same slots in the simulator."""
    profile, model, rng = load_profile("x86-core"), model_of(MODEL), random.Random(3)
    table, policy, state, rows = table_of([known_map()], MODEL), PrismPolicy(), State(), []
    estimate: RateEstimate | None = None
    for slot, rate in enumerate(rates):
        at_s = SLOT_S * slot
        link = LinkSpec(kind="testbed", rate_bps=rate)
        found = {
            name: summary(profile, profile.model(), Point(model=model, plan=plan, batch=1, link=link))
            for name, plan in STATIC.items()
        }  # fmt: skip
        seen = Observation(
            batch=1, devices=2, at_s=at_s, bandwidth_bps=estimate.rate_bps if estimate else None,
            bandwidth_deviation=estimate.deviation_at(at_s) if estimate else 0.0,
        )  # fmt: skip
        decision = policy.decide(seen, table, Objective(), state)
        state = decision.state
        name = next(name for name, plan in STATIC.items() if plan == decision.plan)
        row = {name: each.latency_ms.p50 for name, each in found.items()}
        split = found[name].split_ms
        told = table.rate_of(decision.plan, 1, split["wire"] + split["wait"])
        sample = Sample(
            at_s=at_s, rate_bps=told[0] if told else rate * math.exp(PROBE_DEVIATION * rng.gauss(0, 1)),
            deviation=told[1] if told else PROBE_DEVIATION, source="batch" if told else "probe",
        )  # fmt: skip
        estimate = updated(estimate, sample)
        rows.append({
            "slot": slot, "rate_bps": rate, **row, "adaptive": row[name], "mode": decision.plan.mode.value, "failed": "",
            "believed_bps": estimate.rate_bps,
        })  # fmt: skip
    return rows


def judged(rows: list[dict[str, Any]]) -> dict[str, Any]:
    table = table_of([known_map()], MODEL)
    before = rows[0]["rate_bps"]
    for row in rows:
        at_s = SLOT_S * row["slot"]
        looked_up = Observation(batch=1, devices=2, bandwidth_bps=before, at_s=at_s)
        before = row["rate_bps"]
        seen = Observation(batch=1, devices=2, bandwidth_bps=row["rate_bps"], at_s=at_s)
        by_lookup = LookupPolicy().decide(looked_up, table, Objective(), State()).plan
        row["lookup"] = row.get(next(name for name, plan in STATIC.items() if plan == by_lookup))
        row["oracle"] = min(row[name] for name in STATIC if name in row)
        row["best_by_map"] = next(table.ranked(seen, Objective())).plan.mode.value

    def total(name: str, among: list[dict[str, Any]]) -> float:
        return sum(row[name] for row in among)

    paired = [row for row in rows if "full" in row]
    looked = [row for row in rows if row["lookup"] is not None]
    modes, best = [row["mode"] for row in rows], [row["best_by_map"] for row in rows]
    return {
        "slots": len(rows),
        "adaptive_over_oracle": total("adaptive", rows) / total("oracle", rows),
        "adaptive_over_full": total("adaptive", paired) / total("full", paired),
        "adaptive_over_local": total("adaptive", rows) / total("local", rows),
        "adaptive_over_means": total("adaptive", rows) / total("means", rows),
        "adaptive_over_best_static": total("adaptive", rows) / min(total("local", rows), total("means", rows)),
        "adaptive_over_published_lookup": total("adaptive", looked) / total("lookup", looked),
        "switches": sum(a != b for a, b in itertools.pairwise(modes)),
        "crossings": sum(a != b for a, b in itertools.pairwise(best)),
        "failed": sum(bool(row["failed"]) for row in rows),
        "rate_error_p50": float(np.median([abs(math.log(r["believed_bps"] / r["rate_bps"])) for r in rows if r["believed_bps"]])),
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
    for name, colour in (("local", "tab:blue"), ("means", "tab:green"), ("adaptive", "tab:red")):
        below.plot(minutes, [row[name] for row in rows], color=colour, lw=1, label=name)
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
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.output, options.slots)
        return
    folder = options.output
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "key").write_bytes(os.urandom(32).hex().encode())
    (folder / "key").chmod(0o600)
    known_map().save(folder / "map.json")
    began = time.monotonic()
    rows, spent = measured(TRACES[options.trace](random.Random(2))[: options.slots], folder)
    again = replay(read_decisions(folder / "decisions.jsonl"))
    found = {
        "trace": options.trace, "command": f"python experiments/adaptive.py --trace {options.trace}",
        **judged(rows), **spent, "wall_s": time.monotonic() - began,
        "replay_identical": again.identical, "decisions": again.decisions,
        "in_the_simulator": judged(simulated([row["rate_bps"] for row in rows])),
    }  # fmt: skip
    (folder / "slots.json").write_text(json.dumps(rows))
    (folder / "summary.json").write_text(json.dumps(found, indent=1) + "\n")
    plot(rows, f"ViT-Base over a {options.trace} trace", folder / "adaptive.png")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
