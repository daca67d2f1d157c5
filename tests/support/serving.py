"""A leader in this process and followers as processes of their own, on the loopback."""

import contextlib
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import msgspec
import torch

from hw.inputs.samples import load_images
from hw.serving.app import ServeConfig, Service, open_service
from prism.decide.policy import FixedPolicy
from prism.link import LinkSpec
from prism.nn.zoo import load_model
from prism.perfmap import Cell, PerformanceMap, Provenance
from prism.plan import LOCAL, ExecutionPlan, Mode
from prism.trace.metrics import Latency

MODEL = "fashion-vit"
FULL = ExecutionPlan(mode=Mode.FULL, devices=2)
MEANS = ExecutionPlan(mode=Mode.SEGMENT_MEANS, devices=2, segments=5)


def cell(plan, batch, mbps, ms, wire_ms=0.0):
    return Cell(
        source="measured",
        model=MODEL,
        tokens=50,
        weights="",
        plan=plan,
        batch=batch,
        link=LinkSpec() if plan.ranks == 1 else LinkSpec(kind="testbed", rate_bps=mbps * 1e6),
        bandwidth_mbps=None if plan.ranks == 1 else mbps,
        latency_ms=Latency(p50=ms, p95=ms),
        visit_p50_ms=(ms, ms),
        spread_ms=(0.97 * ms, 1.03 * ms),
        per_sample_ms=ms / batch,
        split_ms={"wire": wire_ms},
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


def map_file(folder: Path) -> str:
    """A map by which full exchange is always the better plan."""
    cells = [cell(LOCAL, b, None, 100.0 * b) for b in (1, 8)]
    cells += [
        cell(p, b, m, 50.0 * b + 10 + 1000 / m, 1000 / m) for p in (FULL, MEANS) for b in (1, 8) for m in (10, 1000)
    ]
    path = folder / "map.json"
    path.write_bytes(msgspec.json.encode(PerformanceMap(created="", command="", cells=tuple(cells))))
    return str(path)


def key_file(folder: Path, text: str = "a shared key of some length") -> str:
    path = folder / "key"
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


@contextlib.contextmanager
def serving(folder: Path, **fields):
    config = ServeConfig(
        **{"map": map_file(folder), "key_file": key_file(folder), "http_port": 0, "policy": FixedPolicy(FULL), **fields}
    )
    with open_service(config, "test") as service:
        yield service


class Member:
    """`prism-hw join` as a process; killed at the end of the context."""

    def __init__(self, port: int, folder: Path, name: str = "kitchen", key: str | None = None, *more: str) -> None:
        self.command = [
            sys.executable,
            "-m",
            "hw.cli.main",
            "join",
            f"127.0.0.1:{port}",
            "--key-file",
            key or str(folder / "key"),
            "--name",
            name,
            *more,
        ]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ}
        )

    def __enter__(self) -> "Member":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.communicate()


def images(count: int) -> torch.Tensor:
    loaded = load_model(MODEL)
    inputs = load_images(None, loaded, False)
    return inputs.collate(inputs.samples[:count])["x"]


def local_answer(service: Service, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return service.served.model(x)


def post(service: Service, body: bytes, headers=None, path=f"/v2/models/{MODEL}/infer"):
    """Status and answer of a request."""
    request = urllib.request.Request(f"http://127.0.0.1:{service.server.port}{path}", data=body, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"{}")
