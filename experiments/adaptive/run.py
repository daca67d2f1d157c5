"""Compare adaptive serving with static plans, the published look-up and an oracle.

    python -m experiments.adaptive.run --trace wave

Two network namespaces around an access point play the devices, which needs root. The model is ViT-Base, one image a
batch. Decisions rest on the measured map of experiments/results/scaled_grid. A trace gives the medium's rate for each
of 300 slots of 2 s, ten minutes in all.

In every slot static local and static segment means answer one batch each, in a shuffled order; static full exchange
does in every eighth slot. The adaptive runtime, which knows only what it has observed itself, answers one batch in that
order, and then more until the slot is over. A slot counts with the mean of its adaptive batches.

- The oracle takes the quickest static plan of the slot.
- The published look-up takes the plan of the nearest cell at what was observed before each adaptive batch, at that
  plan's static time. The told look-up does the same at the true rate of the slot before.
- "on_every_map" decides the same observations with every map that lacks some of the rates (coarser_maps.py).
- "choices" counts the adaptive runtime's plans at the static times of their slot, as for the look-up. This leaves out
  the noise of its own batches and the cost of its probes.

The same policy, Kalman filter and table also run in the simulator: latencies and waits come from the profile x86-core
at each slot's rate, and a probe with its stated deviation follows half a second of local batches. `--simulate` runs
that alone.

`--least-agreement 0.98` first measures how far each plan's answers agree with the uncompressed model's (16 bundled
images, all parts in one process). The policy then keeps that floor, on the testbed and in the simulator, by the same
table."""

import argparse
import json
import os
import random
import shlex
import sys
from pathlib import Path

import msgspec

from experiments.adaptive.figure import plot
from experiments.adaptive.plans import MODEL, SLOT_S, SLOTS, answers_of, known_map, named
from experiments.adaptive.rate_traces import TRACES
from experiments.adaptive.scores import judged, with_lookups
from experiments.adaptive.simulator import simulated
from experiments.adaptive.testbed import measured, serve
from hw.evaluate.run import EvalConfig, evaluate
from prism.decide.log import read_decisions
from prism.decide.replay import replay
from prism.decide.table import Objective


def main() -> None:
    options = parsed()
    if options.serve:
        serve(options.serve, options.output, options.slots)
        return
    rates = TRACES[options.trace](random.Random(2))[: options.slots]
    folder = options.output
    prepare(folder, options.least_agreement)
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
        "trace": options.trace,
        "command": shlex.join(["python", "-m", "experiments.adaptive.run", *sys.argv[1:]]),
        **judged(rows),
        **spent,
        "replay_identical": again.identical,
        "decisions": again.decisions,
        "in_the_simulator": in_simulator,
        "agreement": {named(row.plan): row.agreement for table in answers_of(folder) for row in table.rows},
    }
    (folder / "slots.json").write_text(json.dumps(rows) + "\n")
    (folder / "summary.json").write_text(json.dumps(found, indent=1) + "\n")
    plot(rows, f"ViT-Base over a {options.trace} trace", folder / "adaptive.png")
    print(json.dumps(found, indent=1))


def parsed() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", choices=TRACES, default="wave", help="of the medium's rate")
    parser.add_argument("--slots", type=int, default=SLOTS, help=f"of {SLOT_S:g} s each")
    parser.add_argument("--output", type=Path, default=Path("out/adaptive"), help="folder of results")
    parser.add_argument("--least-agreement", type=float, help="floor of agreement for the policy")
    parser.add_argument("--simulate", action="store_true", help="run the simulator alone: no root, no devices")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    return parser.parse_args()


def prepare(folder: Path, least_agreement: float | None) -> None:
    """Make the folder, without an objective that an earlier run left there."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in ("objective.json", "accuracy.json"):
        (folder / stale).unlink(missing_ok=True)
    if least_agreement is not None:
        measure_answers(folder, least_agreement)


def measure_answers(folder: Path, least: float) -> None:
    """Measure what a floor needs: how far each plan agrees with the uncompressed model."""
    asked = EvalConfig(model=MODEL, weights="random", limit=16, batch=4, segments=(10,))
    table = evaluate(
        asked, folder, f"python -m experiments.adaptive.run --least-agreement {least:g}", lambda event: None
    ).table
    table.save(folder / "accuracy.json")
    (folder / "objective.json").write_bytes(msgspec.json.encode(Objective(least_agreement=least)))


if __name__ == "__main__":
    main()
