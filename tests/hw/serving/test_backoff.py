"""Exponential back-off, on a clock of its own."""

import pytest

from hw.serving.backoff import FAILURES, LONGEST_WAIT_S, YOUNG_S, Backoff


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_each_further_young_group_doubles_the_wait_up_to_a_limit():
    clock = Clock()
    backoff = Backoff(clock)
    for _ in range(FAILURES - 1):
        backoff.ended(["flaky"], 0.0)
    assert backoff.left_s("flaky") == 0
    waits = []
    for _ in range(8):
        backoff.ended(["flaky"], YOUNG_S / 2)
        waits.append(backoff.left_s("flaky"))
    assert waits == [1, 2, 4, 8, 16, 32, LONGEST_WAIT_S, LONGEST_WAIT_S]
    clock.now_s += 50
    assert backoff.left_s("flaky") == pytest.approx(LONGEST_WAIT_S - 50)
    assert backoff.left_s("steady") == 0


def test_a_group_that_lasted_resets_the_count():
    backoff = Backoff(Clock())
    for _ in range(FAILURES - 1):
        backoff.ended(["kitchen", "garden"], 0.0)
    backoff.ended(["kitchen"], YOUNG_S)
    backoff.ended(["kitchen", "garden"], 0.0)
    assert backoff.left_s("kitchen") == 0 and backoff.left_s("garden") == 1
