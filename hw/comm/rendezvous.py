"""Where ranks meet before they are a group: a key-value store on the leader, or one relayed over channels."""

import socket
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import torch.distributed as dist

from prism.errors import ExchangeError, PeerLostError

Store = dist.Store
POLL_S = 0.05


def join_store(leader: str, port: int, rank: int, world_size: int, *, serve: bool, timeout_s: float) -> Store:
    """Meet the other ranks at the leader's store. serve: whether this process is to open it.

    Raises ExchangeError where nobody answers or a rank stays away, and PeerLostError where the leader is lost.
    """
    store = open_store(leader, port, serve, timeout_s)
    try:
        store.set(f"joined/{rank}", "")
        await_ranks(store, range(world_size), "joined", timeout_s)
    except dist.DistError as error:
        raise PeerLostError(f"the leader was lost while rank {rank} joined ({error}); see what it says") from None
    return store


def open_store(leader: str, port: int, is_leader: bool, timeout_s: float) -> Store:
    """Open the store where the ranks meet. The leader serves it on its own address only.

    Raises ExchangeError for a port in use, and where no leader answers within `timeout_s`.
    """
    limit = timedelta(seconds=timeout_s)
    if not is_leader:
        _await_leader(leader, port, timeout_s)
        return dist.TCPStore(leader, port, None, False, timeout=limit, wait_for_workers=False)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((leader, port))
        listener.listen(64)
    except OSError as error:
        listener.close()
        raise ExchangeError(
            f"port {port} on {leader} can't be used ({error.strerror}); free it or choose another with --port"
        ) from None
    return dist.TCPStore(
        leader, port, None, True, timeout=limit, wait_for_workers=False, master_listen_fd=listener.detach()
    )


def _await_leader(leader: str, port: int, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection((leader, port), timeout=1).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise ExchangeError(
                    f"no leader at {leader}:{port} after {timeout_s:g} s ({error}); start it there, "
                    f"or check the address and port in the cluster file"
                ) from None
            time.sleep(POLL_S)


def await_ranks(store: Store, ranks: Sequence[int], stage: str, timeout_s: float) -> None:
    """Wait until every rank has announced `stage`.

    Raises ExchangeError that names the rank that failed or never came.
    """
    deadline = time.monotonic() + timeout_s
    waiting = list(ranks)
    while waiting:
        for rank in ranks:
            if store.check([f"failed/{rank}"]):
                raise ExchangeError(f"rank {rank} failed: {store.get(f'failed/{rank}').decode()}")
        waiting = [rank for rank in waiting if not store.check([f"{stage}/{rank}"])]
        if waiting and time.monotonic() > deadline:
            missing = ", ".join(map(str, waiting))
            raise ExchangeError(
                f"rank {missing} of {len(ranks)} did not come within {timeout_s:g} s; start prism-hw worker there, "
                f"or allow more time with --timeout"
            )
        if waiting:
            time.sleep(POLL_S)


class RelayStore(dist.Store):
    """The store of one epoch whose keys travel over authenticated channels: torch's own is never opened on the network.

    A key that is set here goes to the other ranks by `tell`; a key that another rank set comes in by `put`.
    """

    def __init__(self, tell: Callable[[str, bytes], None], timeout_s: float) -> None:
        super().__init__()
        self._tell, self._timeout_s = tell, timeout_s
        self._values: dict[str, bytes] = {}
        self._news = threading.Condition()
        self._closed = False

    def put(self, key: str, value: bytes) -> None:
        """Take in a key that another rank set."""
        with self._news:
            self._values[key] = value
            self._news.notify_all()

    def give_up(self) -> None:
        """End every wait with an error, because a rank is gone."""
        with self._news:
            self._closed = True
            self._news.notify_all()

    # -- torch's own protocol ---------------------------------------------------------------------------

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
                raise RuntimeError("a device did not come")

    def add(self, key: str, amount: int) -> int:
        raise RuntimeError("counters are not shared")
