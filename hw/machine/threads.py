"""Share the cores of this machine between its ranks: cores of each, threads of each, and the pinning to them.

Nothing here imports torch: a process is pinned, and its environment made, before torch sizes its pools. How many
threads torch then takes, each process says by torch.set_num_threads.
"""

import os
from collections.abc import Sequence


def core_shares(ranks: int, threads: int) -> tuple[list[tuple[int, ...]], bool]:
    """Choose the cores of each rank, `threads` each, and say whether ranks have to share cores."""
    cores = sorted(os.sched_getaffinity(0))
    shares = [tuple(cores[(rank * threads + k) % len(cores)] for k in range(threads)) for rank in range(ranks)]
    return [tuple(sorted(set(share))) for share in shares], ranks * threads > len(cores)


def even_share(ranks: int) -> int:
    """Return the threads of each of `ranks` that share all cores of the machine evenly, at least 1."""
    return max(1, (os.cpu_count() or 1) // ranks)


def thread_environment(threads: int) -> dict[str, str]:
    """Make the variables that tell a new process how many threads its libraries may start."""
    return {"OMP_NUM_THREADS": str(threads)}


def pin(cores: Sequence[int]) -> None:
    """Pin this process to cores, or leave it where it is without any. Call before torch is imported."""
    os.sched_setaffinity(0, cores or os.sched_getaffinity(0))
