"""Faults at random times under load: python experiments/faults.py --faults 300 --output out/faults

Two devices as namespaces around an access point (needs root); the terminal answers batches of Fashion-MNIST images with
the bundled ViT's real weights all the time, by full exchange or by segment means where the group is there. Each fault is
one of: the other device killed and started again; frozen; its link down; the medium at 1 Mbps; the join port blocked.
Every answer is compared with the local model's, or with the same plan computed in one process. Exit code 1 where an
answer is wrong or missing, or took longer than the timeout and a local batch together.
"""

import argparse
import json
import logging
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from hw.inputs.samples import load_images
from hw.serving.app import ServeConfig, open_service
from hw.testbed.namespaces import INTERFACE, NamespaceTestbed
from hw.testbed.netns import enter
from prism.decide.policy import FixedPolicy
from prism.link import LinkSpec
from prism.nn.distribute import distribute
from prism.nn.exchange import run_in_process
from prism.nn.zoo import load_model
from prism.perfmap import Cell, PerformanceMap, Provenance
from prism.plan import LOCAL, ExecutionPlan, Mode
from prism.trace.metrics import Latency

MODEL, BATCH, PORT, RATE = "fashion-vit", 8, 29500, 200e6
TIMEOUT_S = 1.0
FULL = ExecutionPlan(mode=Mode.FULL, devices=2)
MEANS = ExecutionPlan(mode=Mode.SEGMENT_MEANS, devices=2, segments=5)
STANDS_S = 0.5  # a group that breaks again within it was none
GROUP_NEWS = ("formed with", "broke", "lost", "joined")
KINDS = ("kill", "freeze", "link", "slow", "port")


# -- the terminal, in a process of its own inside its namespace -----------------------------------------------------


class _Events(logging.Handler):
    """Prints what happens to the group, with the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        print(json.dumps({"at": time.monotonic(), "what": record.getMessage()}), flush=True)


def serve(netns: str, folder: Path, plan: ExecutionPlan, seconds: float) -> None:
    enter(netns)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    loaded = load_model(MODEL)
    inputs = load_images(None, loaded, False)
    x = [inputs.collate(inputs.batch(k, BATCH, wrap=True))["x"] for k in range(4)]
    right = [answers(loaded.model, each, plan) for each in x]
    config = ServeConfig(
        map=str(folder / "map.json"), key_file=str(folder / "key"), join_address="10.66.0.1", join_port=PORT,
        http_port=0, policy=FixedPolicy(plan), timeout_s=TIMEOUT_S,
        decisions=str(folder / f"decisions-{plan.mode.value}.jsonl"),
    )  # fmt: skip
    rng, until = random.Random(0), time.monotonic() + seconds
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    logging.getLogger("hw.serving.leader").setLevel(logging.INFO)
    logging.getLogger("hw.serving.leader").addHandler(_Events())
    with open_service(config, "experiments/faults.py") as service, open(folder / "served.jsonl", "a") as file:
        print(json.dumps({"ready": time.monotonic()}), flush=True)
        while time.monotonic() < until and not over.is_set():
            k = rng.randrange(len(x))
            began = time.monotonic()
            served = service.runtime.run({"x": x[k]})
            took = time.monotonic() - began
            error = float((served.output - right[k][served.ran]).abs().max())
            file.write(json.dumps([began, took, served.ran.mode.value, error, served.failed]) + "\n")
            file.flush()
            over.wait(rng.uniform(0.0, 0.03))


def answers(model: Any, x: torch.Tensor, plan: ExecutionPlan) -> dict[ExecutionPlan, torch.Tensor]:
    """What is right: by the model as it is, and by the plan with both parts in one process."""

    def body(exchange: Any) -> Any:
        part = distribute(model, plan, exchange)
        return part(x=x) if exchange.rank == 0 else part.follow()

    with torch.no_grad():
        return {LOCAL: model(x=x), plan: run_in_process(2, body)[0]}


# -- the faults -------------------------------------------------------------------------------------------------------


class Driver:
    """The terminal's process, and what it says."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._log = open(log, "a")  # noqa: SIM115 (as long as the process)
        self.events: list[dict[str, Any]] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self.events.append(json.loads(line))
            self._log.write(line)
            self._log.flush()

    def standing(self, seconds: float) -> float | None:
        """When the group formed that now stands, unbroken for STANDS_S; None when none does within so many seconds."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit and self.process.poll() is None:
            news = self._news()
            if news and "formed with" in news[-1]["what"] and time.monotonic() - news[-1]["at"] >= STANDS_S:
                return float(news[-1]["at"])
            time.sleep(0.01)
        return None

    def broke_after(self, moment: float) -> bool:
        return any(event["at"] > moment and "formed with" not in event["what"] for event in self._news())

    def _news(self) -> list[dict[str, Any]]:
        """What was said of the group."""
        return [e for e in list(self.events) if "at" in e and any(word in e["what"] for word in GROUP_NEWS)]


class Peer:
    """prism-hw join inside the other namespace; `called` is when it last began to call the terminal."""

    def __init__(self, netns: str, folder: Path) -> None:
        self._command = [
            "nsenter", f"--net={netns}", "taskset", "-c", str(max(os.sched_getaffinity(0))), sys.executable, "-m", "hw.cli.main",
            "join", f"10.66.0.1:{PORT}", "--key-file", str(folder / "key"), "--name", "other", "--timeout", f"{TIMEOUT_S}s",
        ]  # fmt: skip
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stderr=subprocess.PIPE, text=True)
        self.called = math.inf
        threading.Thread(target=self._read, args=(self.process,), daemon=True).start()

    def _read(self, process: "subprocess.Popen[str]") -> None:
        for line in process.stderr or ():
            if " calls " in line:
                self.called = time.monotonic()
            elif "joined" not in line and "was lost" not in line:
                sys.stderr.write(f"the other device: {line}")


def inject(kind: str, seconds: float, bed: NamespaceTestbed, peer: Peer) -> float:
    """One fault from its beginning to its end; returns when the other device is back."""
    if kind == "kill":
        peer.process.kill()
        peer.process.wait()
        peer.start()
        while peer.called == math.inf and peer.process.poll() is None:
            time.sleep(0.01)
        return peer.called
    if kind == "freeze":
        peer.process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        peer.process.send_signal(signal.SIGCONT)
    elif kind == "link":
        bed.stations[1].run("ip", "link", "set", INTERFACE, "down")
        time.sleep(seconds)
        bed.stations[1].run("ip", "link", "set", INTERFACE, "up")
    elif kind == "slow":
        bed.set_rate(1e6)
        time.sleep(seconds)
        bed.set_rate(RATE)
    else:
        block(bed, seconds)
    return time.monotonic()


def block(bed: NamespaceTestbed, seconds: float) -> None:
    """Lose what comes in for the join port: redirected to a device that is down (not every kernel can drop)."""
    run = bed.stations[0].run
    run("ip", "link", "add", "hole", "type", "ifb")
    run("tc", "qdisc", "add", "dev", INTERFACE, "ingress")
    match = ("protocol", "ip", "u32", "match", "ip", "dport", str(PORT), "0xffff")
    run(
        "tc",
        "filter",
        "add",
        "dev",
        INTERFACE,
        "parent",
        "ffff:",
        *match,
        "action",
        "mirred",
        "egress",
        "redirect",
        "dev",
        "hole",
    )
    time.sleep(seconds)
    run("tc", "qdisc", "del", "dev", INTERFACE, "ingress")
    run("ip", "link", "del", "hole")


def length(kind: str, rng: random.Random) -> float:
    """How long a fault lasts: the link from 0.05 to 30 s, short ones more often."""
    if kind == "link":
        return (
            math.exp(rng.uniform(math.log(0.05), math.log(30.0)))
            if rng.random() < 0.3
            else rng.uniform(0.05, 2.5)
        )
    return rng.uniform(0.1, 3.0)


def campaign(count: int, plan: ExecutionPlan, folder: Path, seed: int) -> list[dict[str, Any]]:
    rng, found = random.Random(seed), []
    with NamespaceTestbed(LinkSpec(kind="testbed", rate_bps=RATE), 2) as bed:
        driver = Driver(
            [sys.executable, __file__, "--serve", bed.stations[0].path, "--output", str(folder), "--plan", plan.mode.value],
            folder / "events.jsonl",
        )  # fmt: skip
        while not driver.events and driver.process.poll() is None:
            time.sleep(0.05)
        peer = Peer(bed.stations[1].path, folder)
        try:
            if driver.standing(60) is None:
                raise SystemExit("the group never formed")
            for number in track(range(count), description=plan.mode.value):
                time.sleep(rng.uniform(0.3, 2.0))
                kind = KINDS[number % len(KINDS)] if number < len(KINDS) else rng.choice(KINDS)
                seconds, began = length(kind, rng), time.monotonic()
                back = inject(kind, seconds, bed, peer)
                time.sleep(0.3)  # a loss that was not noticed yet is noticed now
                again, broke = driver.standing(15), driver.broke_after(began)
                found.append(
                    {
                        "kind": kind,
                        "seconds": seconds,
                        "at_s": began,
                        "broke": broke,
                        "rejoin_s": max(again - back, 0.0) if broke and again is not None else None,
                        "survived": again is not None,
                        "plan": plan.mode.value,
                    }
                )
                if driver.process.poll() is not None:
                    raise SystemExit(f"the terminal ended with {driver.process.returncode} after {kind}")
            time.sleep(1.0)
        finally:
            if driver.process.stdin:
                driver.process.stdin.close()
            driver.process.wait(20)
            peer.process.kill()
    return found


# -- what came of it --------------------------------------------------------------------------------------------------


def judged(faults: list[dict[str, Any]], folder: Path, slack_s: float) -> dict[str, Any]:
    served = [json.loads(line) for line in (folder / "served.jsonl").read_text().splitlines()]
    took = np.array([row[1] for row in served])
    errors = np.array([row[3] for row in served])
    local_s = float(
        np.percentile([row[1] for row in served if row[2] == "local" and not row[4]] or [0.0], 99)
    )
    limit = TIMEOUT_S + local_s + slack_s
    rejoins = [fault["rejoin_s"] for fault in faults if fault["rejoin_s"] is not None] or [math.nan]
    return {
        "faults_injected": len(faults), "faults_survived": sum(fault["survived"] for fault in faults),
        "faults_that_broke_the_group": sum(fault["broke"] for fault in faults),
        "by_kind": {kind: sum(fault["kind"] == kind for fault in faults) for kind in KINDS},
        "rejoin_s_p50": float(np.median(rejoins)), "rejoin_s_p95": float(np.percentile(rejoins, 95)),
        "rejoin_s_max": max(rejoins), "rejoins_over_2_s": sum(r > 2 for r in rejoins),
        "batches": len(served), "failed_over": sum(bool(row[4]) for row in served),
        "distributed": sum(row[2] != "local" for row in served), "wrong": int((errors > 1e-3).sum()),
        "largest_error": float(errors.max()), "longest_s": float(took.max()), "limit_s": limit,
        "too_long": int((took > limit).sum()), "timeout_s": TIMEOUT_S, "local_p99_s": local_s,
    }  # fmt: skip


def prepare(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "served.jsonl").unlink(missing_ok=True)
    (folder / "key").write_bytes(os.urandom(32).hex().encode())
    (folder / "key").chmod(0o600)
    # the policy is fixed, so the map only has to be one
    cell = Cell(
        source="measured", model=MODEL, tokens=50, weights="", plan=LOCAL, batch=1, link=LinkSpec(), bandwidth_mbps=None,
        latency_ms=Latency(p50=1.0, p95=1.0), visit_p50_ms=(1.0,), spread_ms=(1.0, 1.0), per_sample_ms=1.0, split_ms={},
        bytes_per_exchange=0, effective_bandwidth_mbps=None, energy_j=None, energy=None, energy_note="", batches=1, failed=0,
        visits=1, oversubscribed=False, provenance=Provenance(files=(), created=("", ""), host={}, configs=(), commands=()),
    )  # fmt: skip
    PerformanceMap(created="", command="", cells=(cell,)).save(folder / "map.json")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--slack",
        type=float,
        default=0.5,
        help="seconds over timeout and local time, on a machine that is shared",
    )
    parser.add_argument("--output", type=Path, default=Path("out/faults"))
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
        "command": f"python experiments/faults.py --faults {options.faults} --seed {options.seed} --slack {options.slack:g}",
        **judged(faults, options.output, options.slack),
    }
    (options.output / "faults.json").write_text(json.dumps(faults, indent=1) + "\n")
    (options.output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary, indent=1))
    return int(
        bool(
            summary["wrong"] or summary["too_long"] or summary["faults_survived"] < summary["faults_injected"]
        )
    )


if __name__ == "__main__":
    sys.exit(main())
