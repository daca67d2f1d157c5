"""A gloo group whose addresses went over authenticated channels: torch's store is never opened on the network."""

import threading
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist


class RelayStore(dist.Store):
    """The store that gloo meets by, of one epoch. What is set here is told to the others by `tell`; what they set comes
    in by `put`."""

    def __init__(self, tell: Callable[[str, bytes], None], timeout_s: float) -> None:
        super().__init__()
        self._tell, self._timeout_s = tell, timeout_s
        self._values: dict[str, bytes] = {}
        self._news = threading.Condition()
        self._closed = False

    def put(self, key: str, value: bytes) -> None:
        with self._news:
            self._values[key] = value
            self._news.notify_all()

    def give_up(self) -> None:
        """Whoever waits stops waiting: a member is gone."""
        with self._news:
            self._closed = True
            self._news.notify_all()

    # -- what torch calls -------------------------------------------------------------------------------

    def set(self, key: str, value: str | bytes) -> None:
        raw = value.encode() if isinstance(value, str) else bytes(value)
        self.put(key, raw)
        self._tell(key, raw)

    def get(self, key: str) -> bytes:
        self.wait([key])
        return self._values[key]

    def check(self, keys: list[str]) -> bool:
        with self._news:
            return all(key in self._values for key in keys)

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        limit = self._timeout_s if timeout is None else min(timeout.total_seconds(), self._timeout_s)
        with self._news:
            there = self._news.wait_for(lambda: self._closed or all(key in self._values for key in keys), timeout=limit)
            if self._closed or not there:
                raise RuntimeError("a member did not come")

    def add(self, key: str, amount: int) -> int:
        raise RuntimeError("counters are not shared")
