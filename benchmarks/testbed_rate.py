"""How near the testbed comes to its rate: shares of the medium's half that a long transfer and a real model's payloads
get.

By turns, each `--repeats` times: `prism-hw link` (goodput of a one-way transfer) and `prism-hw run` (a trained ViT,
payloads of 640 kB both ways; the best batch, since what a batch shows is a lower bound). 1 is what the rate promises;
more would mean that a buffer passes for the link, less is what the host loses while it can't serve its bucket in time.
Needs root.

    python benchmarks/testbed_rate.py --rates 50,100,400,900 --repeats 5
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from prism.trace import read_trace
from prism.trace.metrics import bandwidths


def prism(*args: str) -> dict:
    done = subprocess.run([sys.executable, "-m", "hw.cli.main", *args, "--json"], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def long_transfer(mbps: int) -> float:
    return prism("link", "--link", f"testbed:{mbps}Mbps", "--budget", "8")["goodput_over_configured"]


def payloads(mbps: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "run.jsonl"
        prism(
            "run",
            "fashion-vit",
            "--link",
            f"testbed:{mbps}Mbps",
            "--batch",
            "100",
            "--batches",
            "20",
            "--trace",
            str(trace),
        )
        return max(bandwidths(list(read_trace(trace).spans))) / (mbps / 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", default="50,100,400,900", help="of the medium, Mbps")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    for mbps in map(int, args.rates.split(",")):
        shares: dict[str, list[float]] = {"long transfer": [], "payloads": []}
        for _ in range(args.repeats):
            shares["long transfer"].append(long_transfer(mbps))
            shares["payloads"].append(payloads(mbps))
        for name, found in shares.items():
            print(
                f"{mbps:>5} Mbps  {name:14} median {statistics.median(found):.3f}  "
                f"{min(found):.3f} to {max(found):.3f}  n={len(found)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
