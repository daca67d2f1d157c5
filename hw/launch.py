"""Start the ranks of this machine, watch them, and end them all: on success, error, Ctrl-C or death."""

import contextlib
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from hw.job import Checked, Event, Failure, Outcome, Progress, RankJob, RunConfig, RunStep
from hw.scratch import scratch
from hw.shaper import SharedMedium
from hw.testbed import INTERFACE, NamespaceTestbed
from prism.errors import ConfigError, ExchangeError, PrismError
from prism.spec import ClusterSpec, LinkSpec

TESTBED_PORT = 29400  # a namespace has no other user
WATCH_S = 0.01
GRACE_S = 0.5  # between asking a rank to end and killing it
LOSER_S = 0.5  # how long a rank's error waits for the word of the rank that caused it
ENVIRONMENT = {"TORCH_CPP_LOG_LEVEL": "FATAL", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


def core_shares(ranks: int, threads: int) -> tuple[list[tuple[int, ...]], bool]:
    """The cores of each rank, `threads` each, and whether ranks have to share cores."""
    cores = sorted(os.sched_getaffinity(0))
    shares = [
        tuple(cores[(rank * threads + k) % len(cores)] for k in range(threads)) for rank in range(ranks)
    ]
    return [tuple(sorted(set(share))) for share in shares], ranks * threads > len(cores)


class Site:
    """Where the ranks of this machine meet: the loopback, with a shaped medium where the link has one, or a
    testbed of namespaces. Use as a context manager."""

    def __init__(self, link: LinkSpec, ranks: int, config: RunConfig) -> None:
        self._link, self._ranks, self._config = link, ranks, config
        self._stack = contextlib.ExitStack()
        self._testbed: NamespaceTestbed | None = None
        self._shaper: SharedMedium | None = None
        self._medium = ""

    def __enter__(self) -> "Site":
        self.folder = self._stack.enter_context(scratch())
        with contextlib.ExitStack() as undo:
            undo.push(self._stack)
            if self._link.kind == "testbed" and self._ranks > 1:
                self._testbed = self._stack.enter_context(NamespaceTestbed(self._link, self._ranks))
            elif self._link.rate_bps is not None and self._ranks > 1:
                self._medium = str(self.folder / "medium")
                SharedMedium.create(self._medium, self._ranks, self._link.rate_bps, self._link.latency_s)
                self._shaper = SharedMedium(self._medium, 0, self._ranks)
            undo.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def set_rate(self, rate_bps: float) -> None:
        """Change the rate of the medium, between steps."""
        medium = self._testbed or self._shaper
        if medium is not None:
            medium.set_rate(rate_bps)

    def play(self) -> None:
        """Let the link's rate trace drive the rate from now on, where it has one."""
        if self._testbed is not None:
            self._testbed.play()

    def jobs(self, command: str) -> list[RankJob]:
        """The jobs of all ranks."""
        from hw.comm import check_interface, free_port

        config, testbed = self._config, self._testbed
        shares, oversubscribed = core_shares(self._ranks, config.threads)
        if config.interface and testbed is None:
            check_interface(config.interface)
        port = config.port or (TESTBED_PORT if testbed else free_port("127.0.0.1"))
        return [
            RankJob(
                rank=rank, world_size=self._ranks, leader=testbed.addresses[0] if testbed else "127.0.0.1", port=port,
                interface=INTERFACE if testbed else config.interface or "lo", timeout_s=config.timeout_s,
                threads=config.threads, cores=shares[rank], oversubscribed=oversubscribed,
                netns=testbed.stations[rank].path if testbed else "", medium=self._medium,
                meter_covers=tuple(range(self._ranks)) if rank == 0 else (),  # one meter for the whole machine
                facts={"testbed": testbed.facts()} if testbed else {}, command=command,
            )
            for rank in range(self._ranks)
        ]  # fmt: skip


def run_local(config: RunConfig, command: str, on_progress: Callable[[Progress], None]) -> Outcome:
    """Run a configuration on this machine, one process a rank."""
    config.check()
    with (
        Site(config.link_spec(), config.plan().ranks, config) as site,
        Ranks(site.jobs(command), site.folder) as ranks,
    ):
        site.play()
        return ranks.perform(RunStep(config=config), on_progress)


def cluster_job(spec: ClusterSpec, rank: int, threads: int, timeout_s: float, command: str) -> RankJob:
    """The job of one device of a cluster."""
    from hw.comm import check_interface, interface_to

    leader = spec.devices[0].address
    interface = check_interface(spec.interface) if spec.interface else interface_to(leader)
    return RankJob(
        rank=rank, world_size=len(spec.devices), leader=leader, port=spec.port, interface=interface,
        timeout_s=timeout_s, threads=threads, meter_covers=(rank,), command=command,
    )  # fmt: skip


def run_cluster(
    config: RunConfig, spec: ClusterSpec, command: str, on_progress: Callable[[Progress], None]
) -> Outcome:
    """Be the terminal of a run over several machines."""
    config = msgspec.structs.replace(config, devices=len(spec.devices))
    config.check()
    if config.link_spec().kind != "network":
        raise ConfigError(
            f"link {config.link}: a shaped link serves the ranks of one machine; shape at the access point instead"
        )
    if config.plan().ranks == 1:
        return run_local(config, command, on_progress)
    job = cluster_job(spec, 0, config.threads, config.timeout_s, command)
    with scratch() as folder, Ranks([job], folder) as ranks:
        outcome = ranks.perform(RunStep(config=config), on_progress)
        ranks.finish()  # the other devices' ranks end by the terminal's word
        return outcome


def run_worker(spec: ClusterSpec, rank: int, threads: int, timeout_s: float, command: str) -> None:
    """Be one of the other devices of a cluster, until the terminal ends."""
    job = cluster_job(spec, rank, threads, timeout_s, command)
    with scratch() as folder, Ranks([job], folder) as ranks:
        ranks.finish()


def run_under_torchrun(config: RunConfig, command: str) -> Outcome | None:
    """Be the rank that torchrun's environment variables name. Returns the outcome on rank 0.

    torchrun's agent may hold the store's port already; then every rank only connects to it.
    """
    from hw.comm import interface_to
    from hw.session import run_rank

    try:
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        leader, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"torchrun's variables are incomplete ({error}); start with torchrun, or unset RANK"
        ) from None
    config = msgspec.structs.replace(config, devices=world)
    if config.plan().ranks != world:
        raise ConfigError(
            f"mode {config.mode.value} runs on one device, torchrun started {world}; use prism-hw run"
        )
    outcomes: list[Outcome] = []
    run_rank(
        RankJob(
            rank=rank, world_size=world, leader=leader, port=port, interface=config.interface or interface_to(leader),
            timeout_s=config.timeout_s, threads=config.threads,
            serve_store=os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True", command=command,
        ),
        iter([RunStep(config=config)]),
        lambda event: outcomes.append(event) if isinstance(event, Outcome) else None,
    )  # fmt: skip
    return outcomes[0] if outcomes else None


class Ranks:
    """Rank processes of this machine, as a context manager: started on the way in, all ended on the way out.

    Errors are those of the rank that caused the trouble.
    """

    def __init__(self, jobs: Sequence[RankJob], folder: Path) -> None:
        self._jobs, self._folder = jobs, folder
        self._children: list[_Child] = []

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, *error: Any) -> None:
        _end(self._children)

    def perform(self, step: RunStep, on_progress: Callable[[Progress], None]) -> Outcome:
        """Have the terminal, which must be among the jobs, lead the ranks through a step."""
        first = not self._children
        if first:
            # ranks that share cores slow each other's start: none begins before the terminal has its inputs
            self._start(self._jobs[: 1 if self._jobs[0].oversubscribed else None])
        self._children[0].ask(step)
        if first:
            self._watch(on_progress, lambda: self._children[0].checked)
            self._start(self._jobs[len(self._children) :])
        self._watch(on_progress, lambda: self._children[0].outcome is not None)
        outcome, self._children[0].outcome = self._children[0].outcome, None
        if outcome is None:
            raise ExchangeError(
                "the terminal ended without a result; run again with --trace FILE and look at the last spans"
            )
        return outcome

    def finish(self) -> None:
        """Wait until every rank has ended by itself."""
        if not self._children:
            self._start(self._jobs)
        for child in self._children:
            child.hang_up()
        self._watch(lambda _: None, lambda: False)

    def _start(self, jobs: Sequence[RankJob]) -> None:
        for job in jobs:  # one by one, so that whoever ends them sees each that was started
            self._children.append(_Child(job, self._folder))

    def _watch(self, on_progress: Callable[[Progress], None], enough: Callable[[], bool]) -> None:
        """Follow the ranks until `enough`, or to their end."""
        children = self._children
        lost_since: float | None = None
        while True:
            for child in children:
                child.drain(on_progress)
            for child in children:
                if error := child.cause():
                    raise error
            lost = [child for child in children if child.failure]
            ended = all(child.done for child in children)
            if lost:
                lost_since = lost_since or time.monotonic()
                if ended or time.monotonic() - lost_since > LOSER_S:
                    raise ExchangeError(lost[0].failure.message if lost[0].failure else "a rank was lost")
            elif enough() or ended:
                return
            time.sleep(WATCH_S)


class _Child:
    def __init__(self, job: RankJob, folder: Path) -> None:
        path = folder / f"job-{job.rank}.json"
        path.write_bytes(msgspec.json.encode(job))
        self.rank = job.rank
        self.log = folder / f"rank-{job.rank}.log"
        self.failure: Failure | None = None
        self.outcome: Outcome | None = None
        self.checked = False
        self.events: queue.Queue[Event] = queue.Queue()
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "hw.rank", str(path), str(os.getpid())],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                env={**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": str(job.threads)},
                start_new_session=True,  # a terminal's Ctrl-C reaches us only; we end them
            )  # fmt: skip
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def ask(self, step: RunStep) -> None:
        """Hand the terminal its next step; a dead one is found by watching it."""
        with contextlib.suppress(BrokenPipeError):
            if self.process.stdin is not None:
                self.process.stdin.write(msgspec.json.encode(step) + b"\n")
                self.process.stdin.flush()

    def hang_up(self) -> None:
        """Say that no step follows."""
        with contextlib.suppress(BrokenPipeError):
            if self.process.stdin is not None:
                self.process.stdin.close()

    def _read(self) -> None:
        if self.process.stdout is not None:
            for line in self.process.stdout:
                self.events.put(msgspec.json.decode(line, type=Event))

    def drain(self, on_progress: Callable[[Progress], None]) -> None:
        while not self.events.empty():
            event = self.events.get()
            if isinstance(event, Progress):
                on_progress(event)
            elif isinstance(event, Failure):
                self.failure = event
            elif isinstance(event, Checked):
                self.checked = True
            else:
                self.outcome = event

    @property
    def done(self) -> bool:
        return self.process.poll() is not None and not self.reader.is_alive() and self.events.empty()

    def cause(self) -> PrismError | None:
        """What this rank's end says, or None when it ended well or only lost another."""
        if self.failure is not None:  # said before its process has ended, which takes torch a second or two
            return None if self.failure.lost_peer else ExchangeError(self._named(self.failure.message))
        code = self.process.poll() if self.done else None
        if code in (None, 0):
            return None
        if code is not None and code < 0:
            return ExchangeError(
                f"rank {self.rank} was killed by signal {-code}; check its memory and start again"
            )
        return ExchangeError(self._named(f"ended with exit code {code}: {self._last_line()}"))

    def _named(self, message: str) -> str:
        return message if self.rank == 0 or message.startswith("rank ") else f"rank {self.rank}: {message}"

    def _last_line(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "no message"


def _end(children: Sequence[_Child]) -> None:
    running = [child.process for child in children if child.process.poll() is None]
    for process in running:
        process.terminate()
    deadline = time.monotonic() + GRACE_S
    while running and time.monotonic() < deadline:
        running = [process for process in running if process.poll() is None]
        time.sleep(0.01)
    for process in running:
        process.kill()  # also ends a stopped process, which a terminate would leave waiting
    for child in children:
        child.process.wait()
