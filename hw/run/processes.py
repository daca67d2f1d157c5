"""The rank processes of this machine: start them, watch them, and end them all, however the command ends."""

import contextlib
import logging
import os
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from hw.link.report import LinkReport
from hw.machine.threads import thread_environment
from hw.run.messages import Checked, Event, Failure, LinkStep, Measured, Outcome, ProbeStep, RankJob, RunStep, Work
from prism.cli.logs import pass_on
from prism.cli.progress import Progress
from prism.errors import ExchangeError, PrismError

log = logging.getLogger(__name__)

WATCH_S = 0.01
GRACE_S = 0.5  # between asking a rank to end and killing it
LOSER_S = 0.5  # how long a rank's error waits for the error of the rank that caused it
KEPT_LINES = 50  # of a rank's stderr, for the error of one that ends without a message
ENVIRONMENT = {"TORCH_CPP_LOG_LEVEL": "FATAL", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


WITHOUT_RESULT = "the leader ended without a result; run again with --trace FILE and look at the last spans"


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
        """Have the leader, which must be among the jobs, lead the ranks through a step. Raises PrismError."""
        outcome = self._perform(step, on_progress)
        if not isinstance(outcome, Outcome):
            raise ExchangeError(WITHOUT_RESULT)
        return outcome

    def measure(
        self, step: LinkStep | ProbeStep, on_progress: Callable[[Progress], None] = lambda _: None
    ) -> LinkReport | None:
        """Do the same for a step that measures the links or operations. Returns the report of the links."""
        measured = self._perform(step, on_progress)
        if not isinstance(measured, Measured):
            raise ExchangeError(WITHOUT_RESULT)
        return measured.report

    def _perform(self, step: Work, on_progress: Callable[[Progress], None]) -> Outcome | Measured | None:
        first = not self._children
        if first:
            # ranks that share cores slow each other's start: none begins before the leader has its inputs
            self._start(self._jobs[: 1 if self._jobs[0].oversubscribed else None])
        self._children[0].ask(step)
        if first:
            self._watch(on_progress, lambda: self._children[0].checked)
            self._start(self._jobs[len(self._children) :])
        self._watch(on_progress, lambda: self._children[0].outcome is not None)
        outcome, self._children[0].outcome = self._children[0].outcome, None
        return outcome

    def finish(self) -> None:
        """Wait until every rank has ended by itself. Raises PrismError."""
        if not self._children:
            self._start(self._jobs)
        for child in self._children:
            child.hang_up()
        self._watch(lambda _: None, lambda: False)

    def _start(self, jobs: Sequence[RankJob]) -> None:
        for job in jobs:  # one by one, so that __exit__ sees each that was started
            log.debug("starting rank %d of %d", job.rank, job.world_size)
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
        self.failure: Failure | None = None
        self.outcome: Outcome | Measured | None = None
        self.checked = False
        self.events: queue.Queue[Event] = queue.Queue()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hw.run.rank_main", str(path), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **ENVIRONMENT, **thread_environment(job.threads)},
            start_new_session=True,  # Ctrl-C reaches this process only; it ends them
        )
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.readers = [threading.Thread(target=body, daemon=True) for body in (self._read, self._pass_on)]
        for reader in self.readers:
            reader.start()

    def ask(self, step: Work) -> None:
        """Hand the leader its next step; a dead one is noticed by watching it."""
        with contextlib.suppress(BrokenPipeError):
            if self.process.stdin is not None:
                self.process.stdin.write(msgspec.json.encode(step) + b"\n")
                self.process.stdin.flush()

    def hang_up(self) -> None:
        """Close the leader's input: no step follows."""
        with contextlib.suppress(BrokenPipeError):
            if self.process.stdin is not None:
                self.process.stdin.close()

    def _read(self) -> None:
        if self.process.stdout is not None:
            for line in self.process.stdout:
                self.events.put(msgspec.json.decode(line, type=Event))

    def _pass_on(self) -> None:
        """Keep the last lines of the rank's stderr, and show them all where the command is verbose."""
        for raw in self.process.stderr or ():
            line = raw.decode(errors="replace").rstrip()
            self.lines.append(line)
            pass_on(line)

    def drain(self, on_progress: Callable[[Progress], None]) -> None:
        """Take in the events since the last call."""
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
        """Whether the process has ended and all that it reported was taken in."""
        reading = any(reader.is_alive() for reader in self.readers)
        return self.process.poll() is not None and not reading and self.events.empty()

    def cause(self) -> PrismError | None:
        """Return the error that this rank ended with; None when it ended well or only lost another rank."""
        if self.failure is not None:  # reported before the process has ended, which takes torch a second or two
            return None if self.failure.lost_peer else ExchangeError(self._named(self.failure.message))
        code = self.process.poll() if self.done else None
        if code in (None, 0):
            return None
        if code is not None and code < 0:
            return ExchangeError(f"rank {self.rank} was killed by signal {-code}; check its memory and start again")
        return ExchangeError(self._named(f"ended with exit code {code}: {self._last_line()}"))

    def _named(self, message: str) -> str:
        return message if self.rank == 0 or message.startswith("rank ") else f"rank {self.rank}: {message}"

    def _last_line(self) -> str:
        return next((line for line in reversed(self.lines) if line), "no message")


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
