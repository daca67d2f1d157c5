"""Round trips of small UDP packets on sockets of their own: they share a bulk transfer's link, but not its stream."""

import contextlib
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from types import TracebackType

STAMP = struct.Struct("!Q")
PACKET_BYTES = 64
POLL_S = 0.1

Trip = tuple[int, int]  # start and end in ns; an end of 0: no answer came


class Echo:
    """Answers packets of the given stations, in a thread, while the context is open.

    port: 0 where the address can't be bound.
    """

    def __init__(self, address: str, stations: Sequence[str]) -> None:
        self._stations = frozenset(stations)  # nobody else's packets are reflected
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        try:
            self._socket.bind((address, 0))
            self.port = int(self._socket.getsockname()[1])
        except OSError:
            self.port = 0

    def __enter__(self) -> "Echo":
        if self.port:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self.port:
            self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        self._socket.settimeout(POLL_S)
        while not self._stop.is_set():
            try:
                packet, sender = self._socket.recvfrom(PACKET_BYTES)
                if sender[0] in self._stations:
                    self._socket.sendto(packet, sender)
            except OSError:
                continue  # a poll's timeout, or a peer's port that has just closed


class Pinger:
    """Makes round trips to one station's Echo. Used as a context manager."""

    def __init__(self, own: str, station: str, port: int) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((own, 0))
        self._socket.connect((station, port))
        self._socket.setblocking(False)

    def __enter__(self) -> "Pinger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def trip(self, patience_s: float) -> Trip:
        """Send one packet there and back. Returns its start, and its end or 0 where no answer came in time."""
        sent = self._send()
        return next((trip for trip in self._answers(sent + int(patience_s * 1e9)) if trip[0] == sent), (sent, 0))

    def while_open(self, stop: threading.Event, every_s: float, patience_s: float) -> list[Trip]:
        """Send a packet every `every_s` until `stop`, without waiting for answers, which may take longer.

        Answers count until `patience_s` after the last packet.
        """
        answered: dict[int, int] = {}
        while not stop.is_set():
            sent = self._send()
            answered.setdefault(sent, 0)
            answered |= dict(self._answers(sent + int(every_s * 1e9)))
        deadline = time.monotonic_ns() + int(patience_s * 1e9)
        for sent, back in self._answers(deadline):
            answered[sent] = back
            if all(answered.values()):
                break
        return sorted(answered.items())

    def _send(self) -> int:
        now = time.monotonic_ns()
        with contextlib.suppress(OSError):  # counts as lost
            self._socket.send(STAMP.pack(now).ljust(PACKET_BYTES, b"\0"))
        return now

    def _answers(self, deadline_ns: int) -> Iterator[Trip]:
        """Yield the answers that come until a deadline."""
        while (left := deadline_ns - time.monotonic_ns()) > 0:
            if not select.select([self._socket], [], [], left / 1e9)[0]:
                return
            try:
                packet = self._socket.recv(PACKET_BYTES)
            except OSError:  # the peer's machine says that nobody listens there
                time.sleep(1e-3)
                continue
            yield STAMP.unpack_from(packet)[0], time.monotonic_ns()
