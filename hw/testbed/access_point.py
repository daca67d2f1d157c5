"""An access point in user space, for kernels without netem: `python -m hw.testbed.access_point PARENT`.

Every station's interface is a TAP device whose frames this process reads. One virtual clock is the air: a frame
occupies it for both of its crossings, waits for the latency, and is written to its destination. Segmentation offload
keeps a bulk transfer to some hundred frames a second. Where frames may get lost it is off, so that each frame is lost
independently. The job comes on stdin as one line; a further line with bits per second changes the rate.
"""

import fcntl
import heapq
import math
import os
import random
import select
import struct
import sys
import time

import msgspec

from hw.machine.lifetime import die_with_parent
from prism.link import CROSSINGS

PAYLOAD_SHARE = 1448 / 1514  # TCP payload of a full Ethernet frame: the medium's rate counts payload
HEADERS = 66  # Ethernet, IPv4, TCP with timestamps: repeated in each frame of a segmented one
BACKLOG_BYTES = 8 << 20  # what may wait for the air, as in an access point with large buffers
TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
OFFLOAD = 1 | 2  # checksums, TCP over IPv4
VNET = struct.Struct("<BBHHHH")  # struct virtio_net_hdr
BROADCAST = 0xFF


class TapJob(msgspec.Struct, frozen=True, kw_only=True):
    """The medium to imitate. files: of the stations' TAP devices, by the last byte of their addresses from 1 on."""

    files: tuple[int, ...]
    rate_bps: float
    latency_s: float
    jitter_s: float
    loss: float
    overhead_bytes: int
    seed: int = 0


def open_tap(name: str, offload: bool) -> int:
    """Open a TAP device in the namespace of the calling thread; it is gone when the file is closed."""
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
    fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    fcntl.ioctl(file, TUNSETOFFLOAD, OFFLOAD if offload else 0)
    return file


class AccessPoint:
    """The medium's state: when the air is free, and what is on its way. Times in seconds."""

    def __init__(self, job: TapJob) -> None:
        self._job = job
        self._random = random.Random(job.seed)
        self.rate_bps = job.rate_bps
        self._free = 0.0
        self._last = [0.0] * len(job.files)
        self._count = 0
        self._waiting = 0
        self.due: list[tuple[float, int, int, bytes]] = []  # when, order, station, frame

    def airtime_s(self, frame: bytes) -> float:
        """Compute the airtime of both crossings of a frame, or of the frames that a segmented one stands for."""
        _, kind, _, size, _, _ = VNET.unpack_from(frame)
        length = len(frame) - VNET.size
        frames = max(1, math.ceil((length - HEADERS) / size)) if kind and size else 1
        charged = (length + (frames - 1) * HEADERS) * PAYLOAD_SHARE + frames * self._job.overhead_bytes
        return CROSSINGS * charged * 8 / self.rate_bps

    def accept(self, source: int, frame: bytes, now: float) -> None:
        """Put a frame that a station sends into the air, for its destination."""
        target = frame[VNET.size + 5]
        stations = range(len(self._last)) if target == BROADCAST or frame[VNET.size] & 1 else [target - 1]
        if self._waiting > BACKLOG_BYTES:
            return
        self._free = max(now, self._free) + self.airtime_s(frame)
        for station in stations:
            if station == source or not 0 <= station < len(self._last):
                continue
            if self._job.loss and self._random.random() < self._job.loss:
                continue
            delay = max(0.0, self._random.gauss(self._job.latency_s, self._job.jitter_s))
            self._last[station] = max(self._last[station], self._free + delay)  # no frame overtakes another
            self._count += 1
            self._waiting += len(frame)
            heapq.heappush(self.due, (self._last[station], self._count, station, frame))

    def deliver(self, now: float) -> None:
        """Write the frames that are due to their stations."""
        while self.due and self.due[0][0] <= now:
            _, _, station, frame = heapq.heappop(self.due)
            self._waiting -= len(frame)
            try:
                os.write(self._job.files[station], frame)
            except OSError:
                continue  # its queue is full or its interface down: the frame is lost, as in the air


def serve(job: TapJob, control: int) -> None:
    """Run the access point until the file `control` is closed."""
    point = AccessPoint(job)
    stations = {file: index for index, file in enumerate(job.files)}
    while True:
        now = time.monotonic()
        point.deliver(now)
        timeout = max(0.0, point.due[0][0] - now) if point.due else None
        ready, _, _ = select.select([*job.files, control], [], [], timeout)
        for file in ready:
            if file == control:
                line = os.read(control, 4096)
                if not line:
                    return
                point.rate_bps = float(line.split()[-1])
                continue
            try:
                point.accept(stations[file], os.read(file, 1 << 17), time.monotonic())
            except BlockingIOError:
                continue


def main() -> None:
    """Read the job, and run until the parent closes stdin or ends."""
    die_with_parent(int(sys.argv[1]))
    line = b""
    while not line.endswith(b"\n"):  # byte by byte: what follows belongs to the loop
        line += os.read(0, 1)
    serve(msgspec.json.decode(line, type=TapJob), 0)


if __name__ == "__main__":
    main()
