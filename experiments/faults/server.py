"""Serve batches without a pause in the leader's namespace, and record every answer."""

import json
import logging
import os
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

from hw.inputs.samples import load_images
from hw.serving.app import ServeConfig, open_service
from hw.testbed.netns import enter
from prism.decide.policy import FixedPolicy
from prism.nn.distribute import distribute
from prism.nn.exchange import run_in_process
from prism.nn.zoo import load_model
from prism.plan import LOCAL, ExecutionPlan, Mode

MODEL, BATCH, PORT = "fashion-vit", 8, 29500
TIMEOUT_S = 1.0
FULL = ExecutionPlan(mode=Mode.FULL, devices=2)
MEANS = ExecutionPlan(mode=Mode.SEGMENT_MEANS, devices=2, segments=5)


class _Events(logging.Handler):
    """Prints what happens to the group, with the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one event as a line."""
        print(json.dumps({"at": time.monotonic(), "what": record.getMessage()}), flush=True)


def serve(netns: str, folder: Path, plan: ExecutionPlan, seconds: float) -> None:
    """Answer batches inside the namespace until stdin closes; print what happens to the group, write what was
    served."""
    enter(netns)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    loaded = load_model(MODEL)
    inputs = load_images(None, loaded, False)
    x = [inputs.collate(inputs.batch(k, BATCH, wrap=True))["x"] for k in range(4)]
    right = [answers(loaded.model, each, plan) for each in x]
    rng, until = random.Random(0), time.monotonic() + seconds
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    logging.getLogger("hw.serving.leader").setLevel(logging.INFO)
    logging.getLogger("hw.serving.leader").addHandler(_Events())
    with (
        open_service(_config(folder, plan), "experiments.faults.run") as service,
        open(folder / "served.jsonl", "a") as file,
    ):
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


def _config(folder: Path, plan: ExecutionPlan) -> ServeConfig:
    return ServeConfig(
        map=str(folder / "map.json"),
        key_file=str(folder / "key"),
        join_address="10.66.0.1",
        join_port=PORT,
        http_port=0,
        policy=FixedPolicy(plan),
        timeout_s=TIMEOUT_S,
        decisions=str(folder / f"decisions-{plan.mode.value}.jsonl"),
    )


def answers(model: Any, x: torch.Tensor, plan: ExecutionPlan) -> dict[ExecutionPlan, torch.Tensor]:
    """Compute the right answers: by the model itself, and by the plan with both parts in one process."""

    def body(exchange: Any) -> Any:
        part = distribute(model, plan, exchange)
        return part(x=x) if exchange.rank == 0 else part.follow()

    with torch.no_grad():
        return {LOCAL: model(x=x), plan: run_in_process(2, body)[0]}
