"""Run the slots on two network namespaces around an access point."""

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from experiments.adaptive.plans import (
    MODEL,
    PORT,
    SLOT_S,
    STATIC,
    TIMEOUT_S,
    answers_of,
    contenders,
    known_map,
    objective_of,
)
from experiments.lib.places import PRISM_HW
from hw.serving.app import ServeConfig, open_service
from hw.serving.runtime import AdaptiveRuntime, Strategy
from hw.testbed.namespaces import NamespaceTestbed
from hw.testbed.netns import enter
from prism.decide.policy import FixedPolicy
from prism.decide.table import Objective, table_of
from prism.link import LinkSpec


def serve(netns: str, folder: Path, slots: int) -> None:
    """Run the leader's side: read a line for each slot, print that slot's row as a line."""
    enter(netns)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.manual_seed(0)
    x = torch.randn(1, 3, 224, 224)
    rng = random.Random(1)
    with open_service(_config(folder), "experiments.adaptive.run") as service:
        if service.leader is None or not service.leader.wait(120):
            raise SystemExit("the other device never joined")
        fixed = _fixed(service)
        for runtime in fixed.values():
            runtime.run({"x": x})
        print("ready", flush=True)
        for slot in range(slots):
            sys.stdin.readline()
            print(json.dumps(_slot(service, fixed, {"x": x}, contenders(slot, rng))), flush=True)
        print(json.dumps({"probe_s": service.runtime.probe_s, "corrections": service.runtime.corrections}), flush=True)


def _config(folder: Path) -> ServeConfig:
    return ServeConfig(
        model=MODEL,
        weights="random",
        map=str(folder / "map.json"),
        key_file=str(folder / "key"),
        join_address="10.66.0.1",
        join_port=PORT,
        http_port=0,
        timeout_s=TIMEOUT_S,
        decisions=str(folder / "decisions.jsonl"),
        objective=objective_of(folder),
        accuracy=str(folder / "accuracy.json") if answers_of(folder) else "",
    )


def _fixed(service: Any) -> dict[str, AdaptiveRuntime]:
    """Make a runtime for each static plan, over the same model and group."""
    table = table_of([known_map()], MODEL)
    return {
        name: AdaptiveRuntime(
            service.served,
            service.leader,
            Strategy(table, FixedPolicy(plan), Objective(), learn=False),
            timeout_s=TIMEOUT_S,
        )
        for name, plan in STATIC.items()
    }


def _slot(service: Any, fixed: dict[str, AdaptiveRuntime], inputs: dict[str, Any], order: list[str]) -> dict[str, Any]:
    """Run every contender of a slot once, then adaptive batches until the slot is over."""
    until = time.monotonic() + SLOT_S
    row: dict[str, Any] = {"adaptive": [], "modes": [], "failed": 0}
    while order or time.monotonic() < until:
        name = order.pop() if order else "adaptive"
        if name == "adaptive":
            served = service.runtime.run(inputs)
            row["adaptive"].append(served.ms)
            row["modes"].append(served.ran.mode.value)
            row["failed"] += bool(served.failed)
        else:
            with service.leader.using if name == "local" else contextlib.nullcontext():
                row[name] = fixed[name].run(inputs).ms  # and no probe beside a local batch
    estimate = service.runtime.estimate
    return {**row, "believed_bps": estimate.rate_bps if estimate else None}


def measured(rates: list[float], folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Run both devices through all slots; return the rows, and what probing cost in all."""
    with NamespaceTestbed(LinkSpec(kind="testbed", rate_bps=rates[0]), 2) as bed:
        driver = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "experiments.adaptive.run",
                "--serve",
                bed.stations[0].path,
                "--output",
                str(folder),
                "--slots",
                str(len(rates)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        peer = subprocess.Popen(
            [
                "nsenter",
                f"--net={bed.stations[1].path}",
                "taskset",
                "-c",
                str(max(os.sched_getaffinity(0))),
                PRISM_HW,
                "join",
                f"10.66.0.1:{PORT}",
                "--key-file",
                str(folder / "key"),
                "--name",
                "other",
                "--model",
                MODEL,
                "--weights",
                "random",
                "--timeout",
                f"{TIMEOUT_S}s",
            ]
        )
        try:
            while (line := driver.stdout.readline().strip()) != "ready":
                if not line:
                    raise SystemExit("the leader ended before it was ready")
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
