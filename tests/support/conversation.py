"""Three ranks that use all of the control plane, each a process of its own."""

import os
import pickle
import sys

import torch

from hw.comm.clocks import Clocks
from hw.comm.control import share_addresses
from hw.comm.group import joined_group

RANKS = 3


def main() -> None:
    """Talk as one rank, and write what it heard."""
    rank, port = map(int, sys.argv[1:])
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not mix with the answer
    torch.set_num_threads(1)
    with joined_group("127.0.0.1", port, rank, RANKS, interface="lo", timeout_s=30, serve=rank == 0) as control:
        told = share_addresses(control, f"10.0.0.{rank}")
        shared = control.share([float(rank), 0.5])
        if rank:
            control.send(b"x" * 100_000 * rank, 0)
            control.send(b"", 0)
            echo: list[object] = []
        else:
            echo = [len(control.receive(peer)) + len(control.receive(peer)) for peer in range(1, RANKS)]
        control.barrier()
        clocks = Clocks(control)
        estimates = clocks.refresh(RANKS)
        clocks.refresh(RANKS)  # not due
        pickle.dump((rank, told, shared, echo, estimates), answers)
        answers.flush()


if __name__ == "__main__":
    main()
