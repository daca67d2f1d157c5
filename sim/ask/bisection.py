"""Find by bisection where an answer changes: the crossover in the simulator.

A map can't be asked between its cells: there prism/perfmap/crossover.py interpolates.
"""

import math
from collections.abc import Callable

REFINED = 1e-3  # relative width to which a change is narrowed down


def bisected(low: float, high: float, is_low: Callable[[float], bool], *, whole: bool = False) -> float:
    """Narrow down the change between `low`, where is_low holds, and `high`, where it doesn't; return the upper end.

    Bisects the logarithm to a relative width of REFINED, or whole numbers to neighbours.
    """
    while high - low > (1.0 if whole else REFINED * high):
        middle = float((int(low) + int(high)) // 2) if whole else math.sqrt(low * high)
        if is_low(middle):
            low = middle
        else:
            high = middle
    return high
