"""Four real processes that stay up for the whole test session and form a gloo group per plan."""

import multiprocessing as mp
import os
from typing import Any

import torch
from support.cases import Case, build, inputs, run_rank

RANKS = 4


class GlooPool:
    """Runs cases over real gloo groups of 1 to 4 processes."""

    def __init__(self) -> None:
        from hw.comm.interfaces import free_port

        context = mp.get_context("spawn")
        port = free_port("127.0.0.1")
        self._results: Any = context.Queue()
        self._pipes = []
        self._processes = []
        for rank in range(RANKS):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, port, theirs, self._results), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def __call__(self, case: Case) -> torch.Tensor:
        for pipe in self._pipes:
            pipe.send(case)
        answers = [self._results.get(timeout=120) for _ in range(RANKS)]
        errors = [answer for answer in answers if isinstance(answer, str)]
        assert not errors, errors
        return next(answer for answer in answers if answer is not None)

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join(1)
            process.kill()


def _serve(rank: int, port: int, pipe: Any, results: Any) -> None:
    from hw.comm.group import process_group
    from hw.comm.recorder import SpanRecorder
    from hw.comm.rendezvous import open_store
    from hw.comm.staging import HostStager

    os.environ["TORCH_CPP_LOG_LEVEL"] = "FATAL"
    torch.set_num_threads(1)
    torch.multiprocessing.set_sharing_strategy("file_system")
    store = open_store("127.0.0.1", port, rank == 0, 60)
    epoch = 0
    while (case := pipe.recv()) is not None:
        epoch += 1  # a fresh prefix each time: the life of a group ends with its case
        try:
            out = None
            if rank < case.plan.ranks:
                with process_group(store, rank, case.plan.ranks, interface="lo", timeout_s=60, epoch=epoch) as control:
                    exchange = control.exchange(HostStager(), SpanRecorder(rank))
                    out = run_rank(case, exchange, build(case.family, case.seed), inputs(case))
            results.put(out)
        except Exception as error:
            results.put(repr(error))
