"""Four real processes that stay up for the whole test session and form a gloo group per plan."""

import os
import pickle
import subprocess
import sys

import torch
from support.cases import Case, build, inputs, run_rank

RANKS = 4


class GlooPool:
    """Runs cases over real gloo groups of 1 to 4 processes."""

    def __init__(self) -> None:
        from hw.comm.interfaces import free_port

        port = free_port("127.0.0.1")
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "support.gloo", str(rank), str(port)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            for rank in range(RANKS)
        ]

    def __call__(self, case: Case) -> torch.Tensor:
        for process in self._processes:
            pickle.dump(case, process.stdin)
            process.stdin.flush()
        answers = [pickle.load(process.stdout) for process in self._processes]
        errors = [answer for answer in answers if isinstance(answer, str)]
        assert not errors, errors
        return next(answer for answer in answers if answer is not None)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()


def main() -> None:
    from hw.comm.group import process_group
    from hw.comm.recorder import SpanRecorder
    from hw.comm.rendezvous import open_store
    from hw.comm.staging import HostStager

    rank, port = map(int, sys.argv[1:])
    cases, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not mix with the answers
    torch.set_num_threads(1)
    store = open_store("127.0.0.1", port, rank == 0, 60)
    epoch = 0
    while True:
        try:
            case = pickle.load(cases)
        except EOFError:
            return
        epoch += 1  # a fresh prefix each time: the life of a group ends with its case
        try:
            out = None
            if rank < case.plan.ranks:
                with process_group(store, rank, case.plan.ranks, interface="lo", timeout_s=60, epoch=epoch) as control:
                    exchange = control.exchange(HostStager(), SpanRecorder(rank))
                    out = run_rank(case, exchange, build(case.family, case.seed), inputs(case))
        except Exception as error:
            out = repr(error)
        pickle.dump(out, answers)
        answers.flush()


if __name__ == "__main__":
    main()
