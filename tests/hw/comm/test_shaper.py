"""The shared medium as a rule: airtime is shared, every byte crosses twice."""

import pytest

from hw.comm import shaper
from hw.comm.shaper import CLOCK, SharedMedium


class Time:
    """Time that passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.now_ns = 1_000_000_000

    def monotonic_ns(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)

    @property
    def ms(self) -> float:
        return (self.now_ns - 1_000_000_000) / 1e6


@pytest.fixture
def time(monkeypatch):
    monkeypatch.setattr(shaper, "time", time := Time())
    return time


def pair_of(folder, latency_s=0.0):
    path = str(folder / "medium")
    SharedMedium.create(path, 2, rate_bps=8e6, latency_s=latency_s)
    return [SharedMedium(path, rank, 2) for rank in range(2)]


@pytest.fixture
def pair(tmp_path):
    return pair_of(tmp_path)


def test_a_message_alone_takes_two_crossings(pair, time):
    pair[0].send(1, 20_000)  # 2 * 8 * 20,000 bit at 8 Mbit/s
    pair[1].arrive(0)
    assert time.ms == pytest.approx(40)


def test_two_messages_share_the_air(pair, time):
    pair[0].send(1, 20_000)
    pair[1].send(0, 20_000)
    pair[1].arrive(0)
    assert time.ms == pytest.approx(80)
    pair[0].arrive(1)
    assert time.ms == pytest.approx(80)


def test_who_came_first_had_the_air_alone(pair, time):
    pair[0].send(1, 20_000)
    time.sleep(0.010)
    pair[1].send(0, 20_000)
    pair[1].arrive(0)
    assert time.ms == pytest.approx(70)  # 10 ms alone, and 30 ms of air while two share it
    pair[0].arrive(1)
    assert time.ms == pytest.approx(80)


def test_latency_is_added_once_a_step(tmp_path, time):
    pair = pair_of(tmp_path, latency_s=0.005)
    pair[0].send(1, 20_000)
    pair[1].arrive(0)
    assert time.ms == pytest.approx(45)
    pair[0].send(1, 20_000)
    pair[1].arrive(0, steps=3)
    assert time.ms == pytest.approx(45 + 40 + 15)


def test_shares_are_those_of_processor_sharing(pair):
    medium = pair[0]
    first, second = medium._row(0, 1, 0), medium._row(1, 0, 0)
    medium._state[CLOCK] = 1000.0
    medium._left[first], medium._left[second] = 100.0, 300.0
    medium._advance(1500.0)  # 200 ns shared until the first is done, then the second alone for 200
    assert medium._done[first] == 1200.0
    assert medium._done[second] == 1400.0
    assert medium._left.max() == 0
