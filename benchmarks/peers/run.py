"""Prism's ways beside other people's: one ViT, two ranks, one testbed, every way in turn.

    python -m benchmarks.peers --rates 50Mbps,100Mbps,400Mbps,1Gbps --batches 2,4,8 --rounds 5 --output peers.json
    python -m benchmarks.peers --stream 16 --rates 400Mbps --rounds 5      # images per second, one image a batch

Input and answer are on rank 0. The ways are Prism's plans, hand-written loops of the same messages, and PyTorch's own
`torch.distributed.pipelining` and tensor parallelism. Each round runs every way once, in an order of its own, so that a
ratio to local is of two times from the same minute. Bytes are what the ranks' interfaces carried. Peak memory is of a
process for each way that runs it alone. Needs root, for the testbed's namespaces.
"""

import argparse
import json
import os
import random
import resource
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.peers.ways import WAYS, Setting
from hw.comm.group import joined_group
from hw.machine.facts import describe_machine
from hw.run.config import RunConfig
from hw.run.launch import Site
from hw.run.messages import RankJob
from hw.testbed.netns import enter
from prism.link import LinkSpec


def prepared(job: RankJob) -> None:
    """Enter the rank's namespace and its core."""
    if job.netns:
        enter(job.netns)
    os.sched_setaffinity(0, job.cores)
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)


def rank_main(job: RankJob, args: argparse.Namespace, names: list[str], batches: list[int], results: mp.Queue) -> None:
    """Run every way on one rank; the leader reports times, bytes and errors."""
    prepared(job)
    with joined_group(
        job.leader, job.port, job.rank, 2, interface=job.interface, timeout_s=job.timeout_s, serve=job.rank == 0
    ) as control:
        setting = Setting(args.model, control, job.rank)
        for batch in batches:
            found, refused = measured(setting, names, batch, args)
            if job.rank == 0:
                results.put((batch, found, refused))


def measured(setting: Setting, names: list[str], batch: int, args: argparse.Namespace) -> tuple[Any, dict[str, str]]:
    """Time every way in rounds. Returns milliseconds by way, bytes by way and largest errors; and what can't run."""
    ways, refused, errors = {}, {}, {}
    for name in names:
        try:
            ways[name] = WAYS[name](setting, batch, args.stream)
        except NotImplementedError as why:
            refused[name] = str(why)
    reference = setting.reference(batch)
    for name, way in ways.items():
        output = way()
        if setting.rank == 0:
            errors[name] = float((output - reference).abs().max() / reference.abs().max())
    ms, sent = defaultdict(list), {}
    for turn in range(args.rounds):
        for name in random.Random(turn).sample(list(ways), len(ways)):
            dist.barrier()
            before, began = transmitted(setting.interface), time.perf_counter()
            ways[name]()
            ms[name].append((time.perf_counter() - began) * 1e3)
            dist.barrier()
            sent[name] = sum(sum(row) for row in setting.control.share([transmitted(setting.interface) - before]))
    return (dict(ms), sent, errors), refused


def transmitted(interface: str) -> float:
    """Bytes that this rank's interface has sent."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == interface:
            return float(counters.split()[8])
    return float("nan")


def memory_main(job: RankJob, args: argparse.Namespace, name: str, batch: int, results: mp.Queue) -> None:
    """Run one way alone, and report the rank's peak memory."""
    prepared(job)
    with joined_group(
        job.leader, job.port, job.rank, 2, interface=job.interface, timeout_s=job.timeout_s, serve=job.rank == 0
    ) as control:
        way = WAYS[name](Setting(args.model, control, job.rank, alone=name), batch, 0)
        for _ in range(2):
            way()
        peaks = control.share([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024])
    if job.rank == 0:
        results.put([row[0] for row in peaks])


def together(target: Any, site: Site, *rest: Any) -> Any:
    """Start a process for each rank, and yield what the leader reports until all have ended."""
    context = mp.get_context("spawn")
    results = context.Queue()
    ranks = [context.Process(target=target, args=(job, *rest, results)) for job in site.jobs(" ".join(sys.argv))]
    for process in ranks:
        process.start()
    return ranks, results


def collected(ranks: list[Any], results: Any, count: int) -> list[Any]:
    """Take so many reports; ends the others where a rank failed."""
    found = []
    while len(found) < count:
        if any(process.exitcode for process in ranks):
            for process in ranks:
                process.kill()
            raise SystemExit("a rank failed; see above")
        if not results.empty():
            found.append(results.get())
        time.sleep(0.05)
    for process in ranks:
        process.join()
    return found


def rows_of(found: list[Any], rate: str, stream: int) -> list[dict[str, Any]]:
    """A row of each way, batch and rate, with its ratio to local in each round."""
    rows = []
    for batch, (ms, sent, errors), refused in found:
        local = ms["local"]
        for name, times in ms.items():
            ratios = [ours / theirs for ours, theirs in zip(times, local, strict=True)]
            row = {"rate": rate, "batch": batch, "way": name, "ms": statistics.median(times)}
            row |= {"over_local": statistics.median(ratios), "rounds": ratios, "ms_rounds": times}
            row |= {"bytes": sent[name], "largest_error": errors[name]}
            row |= {"images_per_s": 1e3 * batch * max(stream, 1) / statistics.median(times)}
            rows.append(row)
        rows += [{"rate": rate, "batch": batch, "way": name, "cannot": why} for name, why in refused.items()]
    return rows


def line(row: dict[str, Any]) -> str:
    """Write a row for the console."""
    place = f"{row['rate']:>8} B={row['batch']} {row['way']:24}"
    pace = f"{row['ms']:8.0f} ms  {row['over_local']:5.2f} of local  {row['images_per_s']:5.2f} images/s"
    return f"{place} {pace}  {row['bytes'] / 1e6:7.2f} MB  error {row['largest_error']:.0e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--rates", default="100Mbps")
    parser.add_argument("--latency", default="2ms")
    parser.add_argument("--batches", default="4")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ways", default=";".join(WAYS), help='as in "local;2 replicas"')
    parser.add_argument("--stream", type=int, default=0, help="so many batches in a row, in flight where a way can")
    parser.add_argument("--memory", action="store_true", help="also each way's peak memory")
    parser.add_argument("--output", type=Path, help="the rows as JSON")
    args = parser.parse_args()
    names, batches = args.ways.split(";"), [int(batch) for batch in args.batches.split(",")]
    rows, peaks = [], {}
    for rate in args.rates.split(","):
        link = LinkSpec.parse(f"testbed:{rate},{args.latency}")
        with Site(link, 2, RunConfig(timeout_s=300.0)) as site:
            ranks, results = together(rank_main, site, args, names, batches)
            rows += rows_of(collected(ranks, results, len(batches)), rate, args.stream)
            for name in names if args.memory and not peaks else ():
                peaks[name] = collected(*together(memory_main, site, args, name, batches[0]), 1)[0]
    for row in rows:
        if "cannot" in row:
            print(f"{row['rate']:>8} B={row['batch']} {row['way']:24} can't: {row['cannot']}")
        else:
            print(line(row))
    for name, peak in peaks.items():
        print(f"peak memory, {name}: {', '.join(f'{mib:.0f} MiB' for mib in peak)}")
    if args.output:
        described = {"command": " ".join(sys.argv), "host": describe_machine(1), "rows": rows, "peak_mib": peaks}
        args.output.write_text(json.dumps(described, indent=1) + "\n")
