"""Start the ranks of this machine, watch them, and end them all: on success, error, Ctrl-C or death."""

import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from hw.job import Checked, Event, Failure, Outcome, Progress, RankJob, RunConfig
from hw.shaper import SharedMedium
from prism.errors import ConfigError, ExchangeError, PrismError
from prism.spec import ClusterSpec

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


def local_jobs(config: RunConfig, folder: Path, command: str, port: int) -> list[RankJob]:
    """The jobs of all ranks of a run on this machine."""
    ranks = config.plan().ranks
    shares, oversubscribed = core_shares(ranks, config.threads)
    medium = ""
    if config.link_spec().kind == "shaper" and ranks > 1:
        medium = str(folder / "medium")
        SharedMedium.create(Path(medium), ranks)
    return [
        RankJob(
            rank=rank,
            world_size=ranks,
            leader="127.0.0.1",
            port=port,
            interface=config.interface or "lo",
            timeout_s=config.timeout_s,
            config=config,
            cores=shares[rank],
            oversubscribed=oversubscribed,
            medium=medium,
            command=command,
        )
        for rank in range(ranks)
    ]


def run_local(config: RunConfig, command: str, on_progress: Callable[[Progress], None]) -> Outcome:
    """Run a configuration on this machine: one process a rank, over the loopback."""
    from hw.comm import check_interface, free_port

    config.check()
    if config.interface:
        check_interface(config.interface)
    with tempfile.TemporaryDirectory(prefix="prism-") as folder:
        jobs = local_jobs(config, Path(folder), command, config.port or free_port("127.0.0.1"))
        outcome = supervise(jobs, Path(folder), on_progress)
    if outcome is None:
        raise ExchangeError(
            "the terminal ended without a result; run again with --trace FILE and look at the last spans"
        )
    return outcome


def cluster_job(
    spec: ClusterSpec, rank: int, config: RunConfig | None, timeout_s: float, command: str
) -> RankJob:
    """The job of one device of a cluster. Only the terminal has a configuration."""
    from hw.comm import check_interface, interface_to

    leader = spec.devices[0].address
    interface = check_interface(spec.interface) if spec.interface else interface_to(leader)
    return RankJob(
        rank=rank, world_size=len(spec.devices), leader=leader, port=spec.port, interface=interface,
        timeout_s=timeout_s, config=config, command=command,
    )  # fmt: skip


def run_cluster(
    config: RunConfig, spec: ClusterSpec, command: str, on_progress: Callable[[Progress], None]
) -> Outcome | None:
    """Be the terminal of a run over several machines."""
    config = msgspec.structs.replace(config, devices=len(spec.devices))
    config.check()
    if config.plan().ranks == 1:
        return run_local(config, command, on_progress)
    with tempfile.TemporaryDirectory(prefix="prism-") as folder:
        return supervise([cluster_job(spec, 0, config, config.timeout_s, command)], Path(folder), on_progress)


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
            rank=rank,
            world_size=world,
            leader=leader,
            port=port,
            interface=config.interface or interface_to(leader),
            timeout_s=config.timeout_s,
            config=config,
            serve_store=os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
            command=command,
        ),
        lambda event: outcomes.append(event) if isinstance(event, Outcome) else None,
    )
    return outcomes[0] if outcomes else None


def supervise(
    jobs: Sequence[RankJob], folder: Path, on_progress: Callable[[Progress], None]
) -> Outcome | None:
    """Run jobs as child processes until all end. Returns the terminal's outcome if it is among them.

    Raises the error of the rank that caused the trouble. No child outlives this call.
    """
    children: list[_Child] = []
    try:
        _start(children, jobs[: 1 if jobs[0].oversubscribed else None], folder)
        # ranks that share cores slow each other's start: none begins before the terminal has its inputs
        _watch(children, on_progress, until_checked=True)
        _start(children, jobs[len(children) :], folder)
        return _watch(children, on_progress)
    finally:
        _end(children)


def _start(children: "list[_Child]", jobs: Sequence[RankJob], folder: Path) -> None:
    for job in jobs:  # one by one, so that whoever ends them sees each that was started
        children.append(_Child(job, folder))


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
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
                env={**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": str(job.config.threads if job.config else 1)},
                start_new_session=True,  # a terminal's Ctrl-C reaches us only; we end them
            )  # fmt: skip
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

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


def _watch(
    children: Sequence[_Child], on_progress: Callable[[Progress], None], until_checked: bool = False
) -> Outcome | None:
    """Follow the ranks to their end, or until the terminal has checked the plan if it is among them."""
    lost_since: float | None = None
    while True:
        for child in children:
            child.drain(on_progress)
        for child in children:
            if error := child.cause():
                raise error
        lost = [child for child in children if child.failure]
        if lost:
            lost_since = lost_since or time.monotonic()
            if time.monotonic() - lost_since > LOSER_S or all(child.done for child in children):
                raise ExchangeError(lost[0].failure.message if lost[0].failure else "a rank was lost")
        elif until_checked and (children[0].rank != 0 or children[0].checked):
            return None
        elif all(child.done for child in children):
            return next((child.outcome for child in children if child.outcome), None)
        time.sleep(0.02)


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
