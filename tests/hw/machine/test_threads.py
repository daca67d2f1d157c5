"""Cores and threads of the ranks of one machine."""

import os
import subprocess
import sys

import pytest

from hw.machine import threads
from hw.machine.threads import core_shares, even_share


@pytest.fixture
def four_cores(monkeypatch):
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: {4, 5, 6, 7})


def test_each_rank_has_its_own_cores_while_there_are_enough(four_cores):
    assert core_shares(2, 2) == ([(4, 5), (6, 7)], False)


def test_ranks_share_cores_where_there_are_too_few(four_cores):
    assert core_shares(3, 2) == ([(4, 5), (6, 7), (4, 5)], True)


def test_an_even_share_is_at_least_one_thread(monkeypatch):
    monkeypatch.setattr(threads.os, "cpu_count", lambda: 4)
    assert [even_share(ranks) for ranks in (1, 2, 3, 5)] == [4, 2, 1, 1]


def test_a_process_is_pinned_before_torch_is_there():
    core = min(os.sched_getaffinity(0))
    code = f"""
import os, sys
from hw.machine.threads import pin
pin(())
print(sorted(os.sched_getaffinity(0)))
pin([{core}])
print(sorted(os.sched_getaffinity(0)), "torch" in sys.modules)
"""
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines == [str(sorted(os.sched_getaffinity(0))), f"[{core}] False"]
