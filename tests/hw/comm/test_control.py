"""The control plane: what every transport must do, over real gloo processes and alone."""

import pickle
import subprocess
import sys
import threading

import pytest
import torch
from support.conversation import RANKS

from hw.comm.clocks import Clocks, estimate_offset
from hw.comm.control import LoneControl, share_addresses
from hw.comm.group import joined_group
from hw.comm.interfaces import free_port
from hw.comm.recorder import recorder_for
from hw.comm.staging import HostStager
from prism.errors import ConfigError, ExchangeError
from prism.nn.exchange import InProcessExchange
from prism.trace import Clock


def test_ranks_send_share_and_compare_clocks():
    port = str(free_port("127.0.0.1"))
    command = [sys.executable, "-m", "support.conversation"]
    ranks = [subprocess.Popen([*command, str(rank), port], stdout=subprocess.PIPE) for rank in range(RANKS)]
    rows = [pickle.loads(process.communicate(timeout=60)[0]) for process in ranks]
    assert [row[0] for row in rows] == list(range(RANKS))
    assert all(row[1] == [f"10.0.0.{rank}" for rank in range(RANKS)] for row in rows)
    assert all(row[2] == [[float(rank), 0.5] for rank in range(RANKS)] for row in rows)
    assert rows[0][3] == [100_000, 200_000]
    clocks = rows[0][4]
    assert [clock.rank for clock in clocks] == [1, 2] and not rows[1][4]
    for clock in clocks:  # one machine, one clock
        assert isinstance(clock, Clock) and clock.error_ns > 0 and abs(clock.offset_ns) <= clock.error_ns


def test_a_group_of_one_needs_no_store_and_sends_nothing():
    recorder = recorder_for(torch.device("cpu"), 0)
    with joined_group("nowhere", 1, 0, 1, interface="none", timeout_s=1, serve=True) as control:
        assert isinstance(control, LoneControl)
        exchange = control.exchange(HostStager(), recorder)
        assert isinstance(exchange, InProcessExchange) and (exchange.rank, exchange.world_size) == (0, 1)
        assert exchange.deadline_s is None
        assert control.share([1.0]) == [[1.0]] and share_addresses(control, "a") == ["a"]
        assert Clocks(control).refresh(1) == []
        with pytest.raises(ExchangeError, match="group of one rank"):
            control.send(b"", 1)


class Late:
    """Answers stamps from a clock that is ahead, over queues; rank 0 asks."""

    def __init__(self, rank: int, boxes: list, ahead_ns: int = 0) -> None:
        self.rank, self._boxes, self._ahead_ns = rank, boxes, ahead_ns

    def send_stamp(self, stamp_ns: int, peer: int) -> None:
        self._boxes[peer].put(stamp_ns + self._ahead_ns)

    def receive_stamp(self, peer: int) -> int:
        return self._boxes[self.rank].get(timeout=10)


def test_an_offset_is_known_to_half_of_the_shortest_round_trip():
    import queue

    boxes = [queue.Queue(), queue.Queue()]
    follower = threading.Thread(target=estimate_offset, args=(Late(1, boxes, 5_000_000_000), 1, 4))
    follower.start()
    offset, error = estimate_offset(Late(0, boxes), 1, 4)
    follower.join()
    assert 0 < error < 1_000_000_000 and abs(offset - 5_000_000_000) <= error


def test_an_interface_that_does_not_exist_is_refused_before_anybody_connects():
    from hw.comm.group import process_group
    from hw.comm.rendezvous import RelayStore

    with (
        pytest.raises(ConfigError, match="wlan9"),
        process_group(RelayStore(lambda key, value: None, 1.0), 0, 2, interface="wlan9", timeout_s=1),
    ):
        raise AssertionError("a group formed")
