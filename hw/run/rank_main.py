"""One rank as a process of its own: `python -m hw.run.rank_main JOB.json PARENT`, events as JSON lines on stdout.

hw.run.processes starts it. It dies with its parent, and Ctrl-C ends it at once even inside a gloo call.
"""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from hw.machine.lifetime import die_with_parent
from hw.machine.threads import pin
from hw.run.messages import AnyStep, EndStep, Event, Failure, RankJob
from hw.testbed.netns import enter
from prism.cli.logs import configure_rank
from prism.errors import PeerLostError, PrismError


def steps_from_stdin() -> Iterator[AnyStep]:
    """Read the steps that the parent asks of the leader, one JSON line each, until the end."""
    for line in sys.stdin.buffer:
        yield msgspec.json.decode(line, type=AnyStep)
    yield EndStep()


def main() -> int:
    """Run the rank of a job file. Returns the exit code."""
    path, parent = sys.argv[1:]
    die_with_parent(int(parent))
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    events = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not mix with the events

    def emit(event: Event) -> None:
        events.write(msgspec.json.encode(event) + b"\n")
        events.flush()

    job = msgspec.json.decode(Path(path).read_bytes(), type=RankJob)
    configure_rank(job.rank)
    if job.netns:
        enter(job.netns)
    pin(job.cores)
    from hw.run.session import run_rank

    try:
        run_rank(job, steps_from_stdin(), emit)
    except PrismError as error:
        emit(Failure(message=str(error), exit_code=error.exit_code, lost_peer=isinstance(error, PeerLostError)))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
