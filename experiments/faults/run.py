"""Inject faults at random times under load.

    python -m experiments.faults.run --faults 300 --output out/faults

Two network namespaces around an access point play the devices, which needs root. The leader answers batches of
Fashion-MNIST images with the bundled ViT's real weights without a pause, by full exchange or by segment means while the
group stands. A fault is one of five kinds: the other device is killed and started again, or frozen; its link is down;
the medium carries 1 Mbps; the join port is blocked.

Every answer is compared with the local model's, or with the same plan computed in one process. The exit code is 1 if an
answer is wrong or missing, or took longer than the timeout and a local batch together.
"""

import argparse
import json
import math
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from experiments.faults.injection import KINDS, RATE, Driver, Peer, inject, length
from experiments.faults.server import FULL, MEANS, MODEL, TIMEOUT_S, serve
from hw.testbed.namespaces import NamespaceTestbed
from prism.link import LinkSpec
from prism.perfmap import Cell, PerformanceMap, Provenance
from prism.plan import LOCAL, ExecutionPlan
from prism.trace.metrics import Latency
from prism.trace.quantiles import quantile


def campaign(count: int, plan: ExecutionPlan, folder: Path, seed: int) -> list[dict[str, Any]]:
    """Inject `count` faults, each kind first once and then at random; return what each did to the group."""
    rng, found = random.Random(seed), []
    with NamespaceTestbed(LinkSpec(kind="testbed", rate_bps=RATE), 2) as bed:
        driver = Driver(
            [
                sys.executable,
                "-m",
                "experiments.faults.run",
                "--serve",
                bed.stations[0].path,
                "--output",
                str(folder),
                "--plan",
                plan.mode.value,
            ],
            folder / "events.jsonl",
        )
        while not driver.events and driver.process.poll() is None:
            time.sleep(0.05)
        peer = Peer(bed.stations[1].path, folder)
        try:
            if driver.standing(60) is None:
                raise SystemExit("the group never formed")
            for number in track(range(count), description=plan.mode.value):
                time.sleep(rng.uniform(0.3, 2.0))
                kind = KINDS[number % len(KINDS)] if number < len(KINDS) else rng.choice(KINDS)
                found.append({**one_fault(kind, length(kind, rng), bed, driver, peer), "plan": plan.mode.value})
                if driver.process.poll() is not None:
                    raise SystemExit(f"the leader ended with {driver.process.returncode} after {kind}")
            time.sleep(1.0)
        finally:
            if driver.process.stdin:
                driver.process.stdin.close()
            driver.process.wait(20)
            peer.process.kill()
    return found


def one_fault(kind: str, seconds: float, bed: NamespaceTestbed, driver: Driver, peer: Peer) -> dict[str, Any]:
    """Inject one fault, and say what it did to the group."""
    began = time.monotonic()
    back = inject(kind, seconds, bed, peer)
    time.sleep(0.3)  # a loss that was not noticed yet is noticed now
    again, broke = driver.standing(15), driver.broke_after(began)
    return {
        "kind": kind,
        "seconds": seconds,
        "at_s": began,
        "broke": broke,
        "rejoin_s": max(again - back, 0.0) if broke and again is not None else None,
        "survived": again is not None,
    }


def judged(faults: list[dict[str, Any]], folder: Path, slack_s: float) -> dict[str, Any]:
    """Summarise the faults, and every answer that was served under them."""
    served = [json.loads(line) for line in (folder / "served.jsonl").read_text().splitlines()]
    took = np.array([row[1] for row in served])
    errors = np.array([row[3] for row in served])
    local_s = quantile([row[1] for row in served if row[2] == "local" and not row[4]] or [0.0], 99)
    limit = TIMEOUT_S + local_s + slack_s
    rejoins = [fault["rejoin_s"] for fault in faults if fault["rejoin_s"] is not None] or [math.nan]
    return {
        "faults_injected": len(faults),
        "faults_survived": sum(fault["survived"] for fault in faults),
        "faults_that_broke_the_group": sum(fault["broke"] for fault in faults),
        "by_kind": {kind: sum(fault["kind"] == kind for fault in faults) for kind in KINDS},
        "rejoin_s_p50": float(np.median(rejoins)),
        "rejoin_s_p95": quantile(rejoins, 95),
        "rejoin_s_max": max(rejoins),
        "rejoins_over_2_s": sum(r > 2 for r in rejoins),
        "batches": len(served),
        "failed_over": sum(bool(row[4]) for row in served),
        "distributed": sum(row[2] != "local" for row in served),
        "wrong": int((errors > 1e-3).sum()),
        "largest_error": float(errors.max()),
        "longest_s": float(took.max()),
        "limit_s": limit,
        "too_long": int((took > limit).sum()),
        "timeout_s": TIMEOUT_S,
        "local_p99_s": local_s,
    }


def prepare(folder: Path) -> None:
    """Write what the leader needs: a key, and a map of one cell."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "served.jsonl").unlink(missing_ok=True)
    (folder / "key").write_bytes(os.urandom(32).hex().encode())
    (folder / "key").chmod(0o600)
    # the policy is fixed, so the map only has to be one
    cell = Cell(
        source="measured",
        model=MODEL,
        tokens=50,
        weights="",
        plan=LOCAL,
        batch=1,
        link=LinkSpec(),
        bandwidth_mbps=None,
        latency_ms=Latency(p50=1.0, p95=1.0),
        visit_p50_ms=(1.0,),
        spread_ms=(1.0, 1.0),
        per_sample_ms=1.0,
        split_ms={},
        bytes_per_exchange=0,
        effective_bandwidth_mbps=None,
        energy_j=None,
        energy=None,
        energy_note="",
        batches=1,
        failed=0,
        visits=1,
        oversubscribed=False,
        provenance=Provenance(files=(), created=("", ""), host={}, configs=(), commands=()),
    )
    PerformanceMap(created="", command="", cells=(cell,)).save(folder / "map.json")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=300, help="in all, half of them under each plan")
    parser.add_argument("--seed", type=int, default=0, help="of kinds, lengths and times of the faults")
    parser.add_argument(
        "--slack",
        type=float,
        default=0.5,
        help="seconds that an answer may take beyond the timeout and a local batch, on a shared machine",
    )
    parser.add_argument("--output", type=Path, default=Path("out/faults"), help="folder of results")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--plan", default="full", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.output, {"full": FULL, "segment_means": MEANS}[options.plan], 1e6)
        return 0
    prepare(options.output)
    faults = campaign(math.ceil(options.faults / 2), FULL, options.output, options.seed)
    if options.faults > 1:
        faults += campaign(options.faults // 2, MEANS, options.output, options.seed + 1)
    summary = {
        "command": f"python -m experiments.faults.run --faults {options.faults} --seed {options.seed} "
        f"--slack {options.slack:g}",
        **judged(faults, options.output, options.slack),
    }
    (options.output / "faults.json").write_text(json.dumps(faults, indent=1) + "\n")
    (options.output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary, indent=1))
    return int(
        summary["wrong"] > 0 or summary["too_long"] > 0 or summary["faults_survived"] < summary["faults_injected"]
    )


if __name__ == "__main__":
    sys.exit(main())
