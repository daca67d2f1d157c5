"""Make the traces of the medium's rate, one value a slot."""

import math
import random

from experiments.adaptive.plans import SLOTS


def wave(rng: random.Random) -> list[float]:
    """Swing between 30 and 300 Mbps, five times in ten minutes."""
    return [30e6 * 10 ** (0.5 - 0.5 * math.cos(2 * math.pi * k / 60)) for k in range(SLOTS)]


def wifi(rng: random.Random) -> list[float]:
    """Draw a wandering rate with bursts of interference.

    The logarithm of the rate is autoregressive around 110 Mbps; occasionally one to three slots drop to a fifth."""
    level, burst, found = 0.0, 0, []
    for _ in range(SLOTS):
        level = 0.97 * level + rng.gauss(0.0, 0.12)
        if burst == 0 and rng.random() < 0.04:
            burst = rng.randint(1, 3)
        found.append(min(110e6 * math.exp(level) * (0.2 if burst else 1.0), 900e6))
        burst = max(burst - 1, 0)
    return found


TRACES = {"wave": wave, "wifi": wifi}
