"""Load a served model over HTTP for a long time, and watch its memory and descriptors.

    python -m experiments.soak.run --minutes 30 --output out/soak

The leader runs as `prism-hw serve` on the loopback interface. One other device is killed and comes back every two
minutes, and two v2 clients ask without a pause. The leader's memory, descriptors and threads are read every ten
seconds. The exit code is 1 if memory or descriptors still grow after the first quarter, or if an answer is missing or
wrong."""

import argparse
import json
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from rich.progress import track

from experiments.faults.run import prepare
from experiments.lib.places import PRISM_HW
from hw.inputs.samples import load_images
from prism.nn.zoo import load_model
from prism.trace.quantiles import quantile

MODEL, EVERY_S, KILL_S = "fashion-vit", 10.0, 120.0
MOST_GROWTH = 0.05  # of resident memory, from the first quarter's median to the last's


def start(*arguments: str) -> "subprocess.Popen[str]":
    """Start prism-hw with its standard output readable."""
    return subprocess.Popen([PRISM_HW, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def place(line: str) -> str:
    """Extract ADDRESS:PORT from a line that the leader prints."""
    return line.split("//")[-1].split(" at ")[-1].strip().removesuffix("/v2")


class Client(threading.Thread):
    """Ask without a pause; keep the milliseconds of each answer, and what went wrong."""

    def __init__(self, where: str, bodies: list[bytes], right: list[Any], over: threading.Event) -> None:
        super().__init__(daemon=True)
        self._where, self._bodies, self._right, self._over = where, bodies, right, over
        self.ms: list[float] = []
        self.wrong: list[str] = []

    def run(self) -> None:
        number = 0
        while not self._over.is_set():
            k = number % len(self._bodies)
            number += 1
            began = time.monotonic()
            try:
                url = f"http://{self._where}/v2/models/{MODEL}/infer"
                with urllib.request.urlopen(urllib.request.Request(url, data=self._bodies[k]), timeout=30) as reply:
                    answer = json.loads(reply.read())
                error = np.abs(np.array(answer["outputs"][0]["data"]) - self._right[k]).max()
                if error > 1e-3:
                    self.wrong.append(f"off by {error:.3g}")
            except OSError as error:
                self.wrong.append(str(error))
            self.ms.append((time.monotonic() - began) * 1e3)


def questions() -> tuple[list[bytes], list[Any]]:
    """Make request bodies, and the right answer to each."""
    loaded = load_model(MODEL)
    inputs = load_images(None, loaded, False)
    x = [inputs.collate(inputs.batch(k, 2, wrap=True))["x"] for k in range(8)]
    with torch.no_grad():
        right = [loaded.model(each).flatten().numpy() for each in x]
    bodies = [
        json.dumps(
            {"inputs": [{"name": "x", "shape": list(t.shape), "datatype": "FP32", "data": t.flatten().tolist()}]}
        ).encode()
        for t in x
    ]
    return bodies, right


def serve_config(folder: Path) -> Path:
    """Write the leader's configuration: full exchange over two devices, whatever the map says."""
    toml, map_, key = folder / "serve.toml", folder / "map.json", folder / "key"
    toml.write_text(
        f'model = "{MODEL}"\nmap = "{map_}"\nkey_file = "{key}"\nhttp_port = 0\nmax_batch = 4\ntimeout_s = 1.0\n'
        '[policy]\ntype = "fixed"\nplan = {mode = "full", devices = 2}\n'
    )
    return toml


def soak(minutes: float, folder: Path) -> dict[str, Any]:
    """Load the leader for so many minutes, killing the other device every KILL_S."""
    bodies, right = questions()
    leader = start("serve", "--config", str(serve_config(folder)))
    said = [leader.stdout.readline() if leader.stdout else "" for _ in range(2)]
    http, joining = place(said[0]), place(said[1])
    join = ("join", joining, "--key-file", str(folder / "key"), "--name", "other")
    peer, killed, over = start(*join), time.monotonic(), threading.Event()
    clients = [Client(http, bodies, right, over) for _ in range(2)]
    process, samples = psutil.Process(leader.pid), []
    try:
        for client in clients:
            client.start()
        for _ in track(range(int(minutes * 60 / EVERY_S)), description="soak"):
            time.sleep(EVERY_S)
            samples.append((process.memory_info().rss, process.num_fds(), process.num_threads()))
            if time.monotonic() - killed > KILL_S:
                peer.kill()
                peer.wait()
                peer, killed = start(*join), time.monotonic()
        over.set()
        for client in clients:
            client.join(40)
        metrics = batches_served(http)
    finally:
        peer.kill()
        leader.kill()
    return judged(samples, clients, metrics)


def batches_served(http: str) -> list[str]:
    """Read the leader's counters of batches."""
    with urllib.request.urlopen(f"http://{http}/metrics") as reply:
        return [line for line in reply.read().decode().splitlines() if line.startswith("prism_batches_total")]


def judged(samples: list[tuple[int, int, int]], clients: list[Client], metrics: list[str]) -> dict[str, Any]:
    """Compare memory, descriptors and threads of the last quarter with the second, and summarise the answers."""
    table = np.array(samples, dtype=float)
    quarter = max(len(table) // 4, 1)
    first, last = np.median(table[quarter : 2 * quarter], axis=0), np.median(table[-quarter:], axis=0)
    ms = np.concatenate([client.ms for client in clients])
    wrong = [text for client in clients for text in client.wrong]
    return {
        "minutes": len(table) * EVERY_S / 60,
        "answers": len(ms),
        "wrong": len(wrong),
        "first_wrong": wrong[:3],
        "ms_p50": float(np.median(ms)),
        "ms_p99": quantile(ms, 99),
        "ms_max": float(ms.max()),
        "rss_mb_second_quarter": first[0] / 1e6,
        "rss_mb_last_quarter": last[0] / 1e6,
        "rss_growth": last[0] / first[0] - 1,
        "descriptors_second_quarter": first[1],
        "descriptors_last_quarter": last[1],
        "threads_second_quarter": first[2],
        "threads_last_quarter": last[2],
        "batches": metrics,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="of load")
    parser.add_argument("--output", type=Path, default=Path("out/soak"), help="folder of results")
    options = parser.parse_args()
    prepare(options.output)
    found = {
        "command": f"python -m experiments.soak.run --minutes {options.minutes:g}",
        **soak(options.minutes, options.output),
    }
    (options.output / "soak.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    leak = found["descriptors_last_quarter"] > found["descriptors_second_quarter"] + 2
    return int(found["rss_growth"] > MOST_GROWTH or leak or found["wrong"] > 0)


if __name__ == "__main__":
    sys.exit(main())
