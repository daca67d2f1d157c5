"""Imitate devices by network namespaces around an access point with one shared half-duplex medium.

There are two media, chosen by the link's specification and the kernel's abilities:
- `ifb+tbf`: a bridge in the access point's namespace; what comes in from any station goes through one
  ifb with one token bucket, so that all directions share the rate. Each frame passes it once, so it
  runs at half of the medium's rate: station to access point and back are two crossings. With netem
  the ports add latency, jitter and loss.
- `tap`: hw/testbed/access_point.py, a user-space access point, where latency, jitter, loss or per-frame overhead is
  asked for and the kernel has no netem.
The rate counts TCP payload: full frames carry 1448 of 1514 bytes, so frames run that much faster.
"""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import msgspec

from hw.testbed.access_point import BACKLOG_BYTES, PAYLOAD_SHARE, TapJob, open_tap
from hw.testbed.netns import Namespace
from prism.errors import ConfigError
from prism.link import CROSSINGS, LinkSpec
from prism.rates import read_rates

INTERFACE = "eth0"
BURST_BYTES = 3200  # two frames: a larger bucket would let small messages pass for nothing
BURST_S = 0.25e-3  # and where frames are quick, what a host that is late by this long doesn't lose
PEAK = 1.25  # of the rate, how quickly a full bucket empties: by this much a small message can be too quick
GSO_BYTES = 16384  # of the user-space medium: short enough that others get a turn in between


class Medium(Protocol):
    """The link between the stations' interfaces."""

    name: str

    def set_rate(self, rate_bps: float) -> None:
        """Change the rate under running traffic."""
        ...

    def close(self) -> None:
        """Remove the medium."""
        ...


class NamespaceTestbed:
    """Stations with addresses around one medium. Used as a context manager; nothing outlives its process.

    Raises ConfigError without root, and for a link that this kernel can't imitate.
    """

    def __init__(self, link: LinkSpec, devices: int) -> None:
        self._link = link
        self._points = read_rates(Path(link.rates)) if link.rates else ()
        self._rate = self._points[0].rate_bps if self._points else link.rate_bps or 0.0
        self._stop = threading.Event()
        self._driver: threading.Thread | None = None
        self._medium: Medium | None = None
        self.stations: list[Namespace] = []
        self.addresses = [f"10.66.0.{number + 1}" for number in range(devices)]

    def __enter__(self) -> "NamespaceTestbed":
        try:
            self.stations = [Namespace() for _ in self.addresses]
            self._medium = _medium(self._link, self._rate, self.stations)
            for station, address in zip(self.stations, self.addresses, strict=True):
                station.call(lambda: Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1"))
                station.run("ip", "address", "add", f"{address}/24", "dev", INTERFACE)
                station.run("ip", "link", "set", INTERFACE, "up")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._driver is not None:
            self._driver.join()
        if self._medium is not None:
            self._medium.close()
        for station in self.stations:
            station.close()

    def set_rate(self, rate_bps: float) -> None:
        """Change the medium's rate under running traffic."""
        if self._medium is not None:
            self._medium.set_rate(rate_bps)
        self._rate = rate_bps

    def play(self) -> None:
        """Drive the rate by the link's rate trace from now on, over and over; no-op without one."""
        if self._points:
            self._driver = threading.Thread(target=self._drive, daemon=True)
            self._driver.start()

    def _drive(self) -> None:
        period = self._points[-1].at_s
        began = time.monotonic()
        while True:
            for point in self._points:
                if self._stop.wait(max(0.0, began + point.at_s - time.monotonic())):
                    return
                self.set_rate(point.rate_bps)
            if period <= 0:
                return
            began += period

    def facts(self) -> dict[str, Any]:
        """Describe the chosen medium for trace headers."""
        return {
            "medium": self._medium.name if self._medium else "none",
            "crossings": CROSSINGS,
            "rate_counts": "TCP payload",
            "devices": len(self.addresses),
            "rates": [[point.at_s, point.rate_bps / 1e6] for point in self._points],
        }


def _medium(link: LinkSpec, rate_bps: float, stations: list[Namespace]) -> Medium:
    shaped = link.latency_s or link.jitter_s or link.loss
    if not shaped and not link.overhead_bytes:
        return KernelMedium(link, rate_bps, stations)
    if not link.overhead_bytes and has_netem(stations[0]):
        return KernelMedium(link, rate_bps, stations)
    return TapMedium(link, rate_bps, stations)


def has_netem(station: Namespace) -> bool:
    """Find out whether the running kernel has netem, by making such a queue."""
    try:
        station.run("tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms")
        station.run("tc", "qdisc", "del", "dev", "lo", "root")
    except ConfigError:
        return False
    return True


class KernelMedium:
    """A token bucket (tbf) on one ifb, in a namespace of its own; netem where latency, jitter or loss is asked for."""

    def __init__(self, link: LinkSpec, rate_bps: float, stations: list[Namespace]) -> None:
        netem = netem_arguments(link)
        self.name = "ifb+tbf+netem" if netem else "ifb+tbf"
        self._point = point = Namespace()
        point.run("ip", "link", "add", "br0", "type", "bridge")
        point.run("ip", "link", "set", "br0", "up")
        point.run("ip", "link", "add", "ifb0", "type", "ifb")
        point.run("ip", "link", "set", "ifb0", "up")
        self._shape("add", rate_bps)
        for number, station in enumerate(stations):
            port = f"port{number}"
            point.run("ip", "link", "add", port, "type", "veth", "peer", "name", INTERFACE, "netns", station.path)
            point.run("ip", "link", "set", port, "master", "br0", "up")
            point.run("tc", "qdisc", "add", "dev", port, "ingress")
            everything = ("protocol", "all", "u32", "match", "u32", "0", "0")
            into = ("action", "mirred", "egress", "redirect", "dev", "ifb0")
            point.run("tc", "filter", "add", "dev", port, "parent", "ffff:", *everything, *into)
            if netem:
                point.run("tc", "qdisc", "add", "dev", port, "root", "netem", *netem)

    def _shape(self, verb: str, rate_bps: float) -> None:
        frames_bps = rate_bps / CROSSINGS / PAYLOAD_SHARE
        burst = round(frames_bps / 8 * BURST_S)
        peak = ("peakrate", f"{PEAK * frames_bps:.0f}bit", "mtu", str(BURST_BYTES)) if burst > BURST_BYTES else ()
        self._point.run(
            "tc",
            "qdisc",
            verb,
            "dev",
            "ifb0",
            "root",
            "tbf",
            "rate",
            f"{frames_bps:.0f}bit",
            "burst",
            str(max(burst, BURST_BYTES)),
            "limit",
            str(BACKLOG_BYTES),
            *peak,
        )

    def set_rate(self, rate_bps: float) -> None:
        """Change the rate of the medium."""
        self._shape("change", rate_bps)

    def close(self) -> None:
        """End the access point."""
        self._point.close()


def netem_arguments(link: LinkSpec) -> list[str]:
    """Write a link's latency, jitter and loss as netem's arguments; none where it has none of them."""
    words: list[str] = []
    if link.latency_s or link.jitter_s:
        words += ["delay", f"{link.latency_s * 1e6:.0f}us"]
        words += [f"{link.jitter_s * 1e6:.0f}us", "distribution", "normal"] if link.jitter_s else []
    return [*words, *(["loss", f"{100 * link.loss:g}%"] if link.loss else [])]


class TapMedium:
    """The user-space access point of hw.testbed.access_point, as a child process."""

    name = "tap"

    def __init__(self, link: LinkSpec, rate_bps: float, stations: list[Namespace]) -> None:
        offload = not link.loss
        files = [station.call(lambda: open_tap(INTERFACE, offload)) for station in stations]
        for number, station in enumerate(stations):
            station.run("ip", "link", "set", INTERFACE, "address", f"02:00:00:00:00:{number + 1:02x}")
            station.run("ip", "link", "set", INTERFACE, "gso_max_size", str(GSO_BYTES))
        job = TapJob(
            files=tuple(files),
            rate_bps=rate_bps,
            latency_s=link.latency_s,
            jitter_s=link.jitter_s,
            loss=link.loss,
            overhead_bytes=link.overhead_bytes,
        )
        self._process = subprocess.Popen(
            [sys.executable, "-m", "hw.testbed.access_point", str(os.getpid())],
            stdin=subprocess.PIPE,
            pass_fds=files,
            start_new_session=True,
        )
        self._write(msgspec.json.encode(job))
        for tap in files:
            os.close(tap)

    def set_rate(self, rate_bps: float) -> None:
        """Change the rate of the medium."""
        self._write(str(rate_bps).encode())

    def _write(self, line: bytes) -> None:
        if self._process.stdin is not None:
            self._process.stdin.write(line + b"\n")
            self._process.stdin.flush()

    def close(self) -> None:
        """End the access point."""
        self._process.kill()
        self._process.wait()
