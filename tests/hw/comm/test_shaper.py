"""The shared medium as a rule: airtime is shared, every byte crosses twice."""

import time

import pytest

from hw.comm.shaper import CLOCK, SharedMedium


@pytest.fixture
def pair(tmp_path):
    path = str(tmp_path / "medium")
    SharedMedium.create(path, 2, rate_bps=8e6, latency_s=0.0)
    return [SharedMedium(path, rank, 2) for rank in range(2)]


def test_a_message_alone_takes_two_crossings(pair):
    began = time.monotonic()
    pair[0].send(1, 20_000)  # 2 * 8 * 20,000 bit at 8 Mbit/s: 40 ms
    pair[1].arrive(0)
    assert time.monotonic() - began >= 0.040


def test_two_messages_share_the_air(pair):
    began = time.monotonic()
    pair[0].send(1, 20_000)
    pair[1].send(0, 20_000)
    pair[1].arrive(0)
    assert time.monotonic() - began >= 0.078  # both together need 80 ms; the first had a moment alone
    pair[0].arrive(1)
    assert time.monotonic() - began >= 0.080


def test_shares_are_those_of_processor_sharing(pair):
    medium = pair[0]
    first, second = medium._row(0, 1, 0), medium._row(1, 0, 0)
    medium._state[CLOCK] = 1000.0
    medium._left[first], medium._left[second] = 100.0, 300.0
    medium._advance(1500.0)  # 200 ns shared until the first is done, then the second alone for 200
    assert medium._done[first] == 1200.0
    assert medium._done[second] == 1400.0
    assert medium._left.max() == 0
