"""One rank as a process of its own: `python -m hw.rank JOB.json`, events as JSON lines on stdout.

Started by hw.launch. It dies with its parent, and Ctrl-C ends it at once even inside a gloo call.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

import msgspec

from hw.job import Event, Failure, RankJob
from prism.errors import PeerLostError, PrismError

PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent ends, however that ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before we asked
        os._exit(1)


def main() -> int:
    path, parent = sys.argv[1:]
    die_with_parent(int(parent))
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    events = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not mix with the events

    def emit(event: Event) -> None:
        events.write(msgspec.json.encode(event) + b"\n")
        events.flush()

    job = msgspec.json.decode(Path(path).read_bytes(), type=RankJob)
    os.sched_setaffinity(0, job.cores or os.sched_getaffinity(0))  # before torch sizes its pools
    from hw.session import run_rank

    try:
        run_rank(job, emit)
    except PrismError as error:
        emit(
            Failure(message=str(error), exit_code=error.exit_code, lost_peer=isinstance(error, PeerLostError))
        )
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
