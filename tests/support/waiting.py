"""Wait for what another thread or process does. The limit only tells a hang from a machine that is busy."""

import time
from collections.abc import Callable

HANG_S = 60.0


def until(condition: Callable[[], object], seconds: float = HANG_S) -> bool:
    """Wait until the condition holds; say whether it came to that."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if condition():
            return True
        time.sleep(0.01)
    return bool(condition())
