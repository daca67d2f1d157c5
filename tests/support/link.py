"""The link bench as real processes: each a rank of a gloo group, on the loopback or in a namespace."""

import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from hw.link.report import LinkConfig, LinkReport
from hw.testbed.namespaces import INTERFACE, NamespaceTestbed
from prism.link import LinkSpec
from prism.trace import Probe

TIMEOUT_S = 60


class Rank(msgspec.Struct, frozen=True, kw_only=True):
    """What one process is told."""

    rank: int
    addresses: tuple[str, ...]
    port: int
    link: LinkSpec
    config: LinkConfig
    interface: str = "lo"
    medium: str = ""
    netns: str = ""


def measure(ranks: int, config: LinkConfig, folder: Path, link: str = "loopback") -> tuple[LinkReport, list[Probe]]:
    """The report, and the raw probes that were kept on the way."""
    from hw.comm.interfaces import free_port
    from hw.comm.shaper import SharedMedium

    spec = LinkSpec.parse(link)
    if spec.kind == "testbed":
        with NamespaceTestbed(spec, ranks) as bed:
            jobs = [
                Rank(
                    rank=rank,
                    addresses=tuple(bed.addresses),
                    port=29400,
                    link=spec,
                    config=config,
                    interface=INTERFACE,
                    netns=bed.stations[rank].path,
                )
                for rank in range(ranks)
            ]
            return _run(jobs)
    medium = str(folder / "medium") if spec.rate_bps else ""
    if spec.rate_bps:
        SharedMedium.create(medium, ranks, spec.rate_bps, spec.latency_s)
    addresses, port = ("127.0.0.1",) * ranks, free_port("127.0.0.1")
    return _run(
        [
            Rank(rank=rank, addresses=addresses, port=port, link=spec, config=config, medium=medium)
            for rank in range(ranks)
        ]
    )


@contextmanager
def connection(bed: NamespaceTestbed) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a TCP connection, from station 0 to station 1. Neither waits for ever for the other."""
    server = bed.stations[1].call(lambda: socket.create_server((bed.addresses[1], 5001)))
    client = bed.stations[0].call(lambda: socket.create_connection((bed.addresses[1], 5001)))
    peer, _ = server.accept()
    with server, client, peer:
        for one in (client, peer):
            one.settimeout(TIMEOUT_S)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield client, peer


def transfer_s(bed: NamespaceTestbed, size: int, times: int = 6) -> float:
    """Time a payload from station 0 to station 1, until the answer that it is there; the best of a few."""
    took = []
    with connection(bed) as (client, peer):

        def answer() -> None:
            for _ in range(times):
                left = size
                while left and (got := len(peer.recv(min(left, 1 << 20)))):
                    left -= got
                peer.sendall(b"!")

        other = threading.Thread(target=answer)
        other.start()
        for _ in range(times):
            began = time.perf_counter()
            client.sendall(bytes(size))
            assert client.recv(1)
            took.append(time.perf_counter() - began)
        other.join()
    return min(took)


def stream_share(link: str, seconds: float = 1.0) -> float:
    """Measure a plain TCP stream's share of the rate that a testbed promises it, after its first fifth.

    A busy host can't serve its medium in time and loses some, which no measurement through it can do better.
    """
    spec = LinkSpec.parse(link)
    assert spec.rate_bps
    with NamespaceTestbed(spec, 2) as bed, connection(bed) as (client, peer):

        def send() -> None:
            with suppress(OSError):  # the other end stops it
                while True:
                    client.sendall(bytes(1 << 16))

        sender = threading.Thread(target=send)
        sender.start()
        began = time.perf_counter()
        received, counted_from = 0, began
        try:
            while (now := time.perf_counter()) < began + seconds:
                size = len(peer.recv(1 << 16))
                if now < began + seconds / 5:
                    counted_from = time.perf_counter()
                else:
                    received += size
        finally:
            client.shutdown(socket.SHUT_RDWR)
            sender.join()
        return received * 8 / (now - counted_from) / (spec.rate_bps / 2)


def check(report: LinkReport, probes: list[Probe], ranks: int) -> None:
    """Assert that a report holds every figure, and the probes what each stands on."""
    pairs = [(a, b) for a in range(ranks) for b in range(a + 1, ranks)]
    assert [(pair.a, pair.b) for pair in report.pairs] == pairs
    assert [row.collective for row in report.collectives] == ["mesh", "ring"]
    for row in (*report.pairs, *report.collectives):
        assert row.alpha_ms >= 0 and row.beta_mbps > 0
        assert row.curve.from_bytes == 1 and row.curve.to_bytes >= 16_384
    for pair in report.pairs:
        for trips in (pair.rtt_idle_ms, pair.rtt_busy_ms):
            assert trips is not None and trips.n >= 5 and 0 < trips.p50 <= trips.p95 <= trips.p99
        assert pair.goodput_mbps is not None and pair.goodput_mbps > 0
        assert pair.jitter_ms is not None and pair.jitter_ms >= 0
        sources = {
            probe.shape[0] for probe in probes if probe.op == "pair" and set(probe.shape[:2]) == {pair.a, pair.b}
        }
        assert sources == {pair.a, pair.b}  # both directions were measured
    for op in ("mesh", "ring"):
        found = [probe for probe in probes if probe.op == op]
        assert {probe.rank for probe in found} == set(range(ranks))
        assert len(found) == ranks * len({probe.shape for probe in found})
    assert all(probe.end_ns >= probe.start_ns for probe in probes)
    assert report.power_save.checked and report.seconds > 0
    assert report.host["versions"] and report.command == "test"


def collective_s(probes: Sequence[Probe], op: str) -> tuple[int, float]:
    """Return the largest size of a collective, and the median time of its calls.

    A call lasts from the first rank's start to the last one's end, by one clock.
    """
    calls: dict[tuple[int, ...], list[Probe]] = defaultdict(list)
    for probe in probes:
        if probe.op == op and not probe.warmup:
            calls[probe.shape].append(probe)
    largest = max(size for _, size, _ in calls)
    return largest, statistics.median(
        (max(p.end_ns for p in ranks) - min(p.start_ns for p in ranks)) / 1e9
        for (_, size, _), ranks in calls.items()
        if size == largest
    )


def _run(jobs: list[Rank]) -> tuple[LinkReport, list[Probe]]:
    command = [sys.executable, "-m", "support.link"]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in jobs]
    try:
        for process, job in zip(processes, jobs, strict=True):
            process.stdin.write(msgspec.json.encode(job))
            process.stdin.close()
        answers = [process.stdout.read() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return msgspec.json.decode(answers[0], type=tuple[LinkReport, list[Probe]])


def main() -> None:
    from hw.testbed.netns import enter

    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Rank)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not mix with the answer
    if job.netns:
        enter(job.netns)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[job.rank % len(cores)]})
    answers.write(_measure(job))
    answers.flush()


def _measure(job: Rank) -> bytes:
    import torch

    from hw.comm.group import process_group
    from hw.comm.recorder import SpanRecorder
    from hw.comm.rendezvous import open_store
    from hw.comm.shaper import SharedMedium
    from hw.comm.staging import HostStager
    from hw.link.bench import run_link

    torch.set_num_threads(1)
    world, probes = len(job.addresses), list[Probe]()
    store = open_store(job.addresses[0], job.port, job.rank == 0, TIMEOUT_S)
    with process_group(store, job.rank, world, interface=job.interface, timeout_s=TIMEOUT_S) as control:
        medium = SharedMedium(job.medium, job.rank, world) if job.medium else None
        exchange = control.exchange(HostStager(), SpanRecorder(job.rank), medium)
        report = run_link(control, exchange, job.addresses, job.link, job.config, keep=probes.extend, command="test")
    if report is None:
        assert not probes
        return b""
    return msgspec.json.encode((report, probes))


if __name__ == "__main__":
    main()
