"""Judge a measurement only beside a reference of the same minute."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import pytest

T = TypeVar("T")
TRIES, PAUSE_S = 3, 3.0
FAILURES = 2  # a burst may fall between two references that are both in order
SPIN = """
import os, time
os.sched_setaffinity(0, {%d})
wall, own = time.perf_counter(), time.process_time()
while time.perf_counter() < wall + %g:
    pass
print((time.process_time() - own) / (time.perf_counter() - wall))
"""


def core_share(seconds: float = 0.3) -> float:
    """Measure the share of a core that a process gets which asks for it all, on the core where it gets least."""
    spinning = [
        subprocess.Popen([sys.executable, "-S", "-c", SPIN % (core, seconds)], stdout=subprocess.PIPE, text=True)
        for core in sorted(os.sched_getaffinity(0))
    ]
    return min(float(process.communicate()[0]) for process in spinning)


def judged(
    measure: Callable[[], T], judge: Callable[[T, float], None], reference: Callable[[], float], least: float = 0.9
) -> None:
    """Measure between two references, and judge it where the lower one is in order.

    reference: a share of what the machine does at rest; below `least` it is disturbed, and the measurement is made
    again. judge: gets the measurement and the lower reference, and raises AssertionError. The test fails after two
    failures beside references that were in order. It is skipped where the machine was never at rest.
    """
    failed: list[AssertionError] = []
    seen: list[float] = []
    for number in range(TRIES):
        time.sleep(PAUSE_S if number else 0)  # a burst may pass
        before = reference()
        measured = measure() if before >= least else None
        seen.append(min(before, reference()) if measured is not None else before)
        if measured is None or seen[-1] < least:
            continue
        try:
            judge(measured, seen[-1])
            return
        except AssertionError as error:
            failed.append(error)
        if len(failed) == FAILURES:
            raise failed[-1]
    shares = ", ".join(f"{share:.2f}" for share in seen)
    pytest.skip(f"not measurable now: the reference gave {shares} of what it gives at rest, and needs {least:g}")
