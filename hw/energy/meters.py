"""Power meters behind one protocol, and the thread that samples one. prism.trace.energy adds up.

What each covers is in docs/jetson.md. A meter that is absent is absent: nothing stands in for it.
"""

import contextlib
import itertools
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, get_args

import msgspec

from prism.errors import ConfigError
from prism.trace import Meter, MeterName, Power, Record, SensorName

SOURCES: tuple[SensorName, ...] = get_args(SensorName)
HWMON, POWERCAP, JTOP_SOCKET = Path("/sys/class/hwmon"), Path("/sys/class/powercap"), Path("/run/jtop.sock")
JTOP_INTERVAL_S = 0.5  # below it the service's updates are unstable


class EnergyMeter(Protocol):
    """Watts by rail of the device that this process runs on.

    period_s: the shortest period worth reading at. averages: a sample is the mean since the one before,
    not the power at the moment.
    """

    period_s: float
    averages: bool

    def describe(self, rank: int, covers: tuple[int, ...]) -> Meter: ...

    def sample(self) -> dict[str, float]:
        """Watts of every rail, or nothing where nothing is new. Raises OSError when the meter is gone."""
        ...

    def close(self) -> None: ...


def find_meter(
    name: MeterName, *, hwmon: Path = HWMON, powercap: Path = POWERCAP, jtop_socket: Path = JTOP_SOCKET
) -> EnergyMeter | None:
    """The named meter; "auto" is the first usable one, or None. Raises ConfigError when a meter that was
    asked for by name can't be read."""
    makers: dict[SensorName, Callable[[], EnergyMeter]] = {
        "ina3221": lambda: Ina3221(hwmon),
        "jtop": lambda: Jtop(jtop_socket),
        "rapl": lambda: Rapl(powercap),
    }
    if name == "none":
        return None
    if name != "auto":
        return makers[name]()
    for maker in makers.values():
        with contextlib.suppress(ConfigError):
            return maker()
    return None


def _absent(source: SensorName, reason: str, remedy: str) -> ConfigError:
    return ConfigError(f"energy meter {source!r}: {reason}; {remedy}, or choose auto or none")


def _text(path: Path) -> str:
    """A sysfs file's line; empty where there is none or it can't be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _count(path: Path) -> int:
    """A sysfs file's number, read anew. Raises OSError, or ValueError where it holds none."""
    with open(path, "rb", buffering=0) as file:
        return int(file.read(32))


class Ina3221:
    """The Jetsons' monitors through hwmon: bus millivolts times milliamperes of each labelled channel.

    Channels are 1 to 3; in4 to in6 are shunt voltages, in7 and curr4 their sums (kernel: hwmon/ina3221).
    """

    averages = False

    def __init__(self, root: Path = HWMON) -> None:
        chips = [folder for folder in sorted(root.glob("hwmon*")) if _text(folder / "name") == "ina3221"]
        self._rails: dict[str, tuple[Path, Path]] = {}
        for chip, channel in itertools.product(chips, (1, 2, 3)):
            label = _text(chip / f"in{channel}_label")
            files = chip / f"in{channel}_input", chip / f"curr{channel}_input"
            if label not in ("", "NC") and all(file.exists() for file in files):
                self._rails[label if label not in self._rails else f"{label} {chip.name}"] = files
        if not self._rails:
            found = "an ina3221 without labelled channels" if chips else "no ina3221"
            raise _absent("ina3221", f"{root} has {found}", "only Jetsons have one: docs/jetson.md")
        try:
            self.sample()
        except (OSError, ValueError) as error:  # without this rail the rest would pass for the whole device
            raise _absent("ina3221", f"a rail can't be read ({error})", "enable it, or run as root") from None
        intervals = [_text(chip / "update_interval") for chip in chips]
        self.period_s = max(int(text) / 1e3 if text.isdigit() else 0.0 for text in intervals)

    def describe(self, rank: int, covers: tuple[int, ...]) -> Meter:
        total = "VDD_IN" if "VDD_IN" in self._rails else ""
        return Meter(rank=rank, source="ina3221", rails=tuple(self._rails), total=total, covers=covers)

    def sample(self) -> dict[str, float]:
        return {rail: _watts(files) for rail, files in self._rails.items()}

    def close(self) -> None:
        """Holds nothing open."""


def _watts(files: tuple[Path, Path]) -> float:
    millivolts, milliamperes = (_count(file) for file in files)
    return millivolts * milliamperes / 1e6


class Rapl:
    """x86 processors' own counters: the packages, without memory on most, without the rest of the board.

    psys, the parts of a package and the mmio copies of the same counters are left out: counted twice.
    """

    period_s = 0.01  # counters advance about every millisecond
    averages = True

    def __init__(self, root: Path = POWERCAP, clock: Callable[[], int] = time.monotonic_ns) -> None:
        zones = [zone for zone in sorted(root.glob("intel-rapl:*")) if re.fullmatch(r"\D+:\d+", zone.name)]
        packages = {name: zone for zone in zones if (name := _text(zone / "name")).startswith("package")}
        if not packages:
            raise _absent("rapl", f"{root} has no intel-rapl package", "virtual machines hide it")
        self._clock = clock
        self._counters = {name: zone / "energy_uj" for name, zone in packages.items()}
        try:
            self._range = {n: _count(zone / "max_energy_range_uj") for n, zone in packages.items()}
            self._last = self._read()
        except (OSError, ValueError) as error:
            raise _absent("rapl", f"counter can't be read ({error})", "run as root") from None

    def _read(self) -> tuple[int, dict[str, int]]:
        return self._clock(), {name: _count(file) for name, file in self._counters.items()}

    def describe(self, rank: int, covers: tuple[int, ...]) -> Meter:
        return Meter(rank=rank, source="rapl", rails=tuple(self._counters), covers=covers)

    def sample(self) -> dict[str, float]:
        (then, before), self._last = self._last, self._read()
        now, counts = self._last
        seconds = max(now - then, 1) / 1e9
        return {n: (counts[n] - before[n]) % self._range[n] / 1e6 / seconds for n in counts}

    def close(self) -> None:
        """Holds nothing open."""


class Jtop:
    """The jtop service of jetson-stats: milliwatts by rail at each of its updates, not its `avg`, which
    is no average over time. A sample is seen up to one period of reading after its update."""

    period_s = 0.05
    averages = False

    def __init__(self, socket: Path = JTOP_SOCKET) -> None:
        if not socket.exists():
            raise _absent("jtop", f"{socket} is not there", "start the service: sudo systemctl start jtop")
        try:
            from jtop import JtopException, jtop
        except ImportError as error:
            raise _absent("jtop", f"jetson-stats can't be loaded ({error})", "install it") from None
        self._new = threading.Event()
        self._client = jtop(interval=JTOP_INTERVAL_S)
        self._client.attach(lambda _: self._new.set())
        try:
            self._client.start()
        except (JtopException, OSError, EOFError) as error:
            raise _absent("jtop", f"{socket} doesn't serve ({_line(error)})", "restart the service") from None
        self._total = str(self._client.power.get("tot", {}).get("name", ""))
        self._rails = tuple(self._watts())
        if not self._rails:
            self.close()
            raise _absent("jtop", "the service knows no power rail", "see docs/jetson.md for INA3221")

    def _watts(self) -> dict[str, float]:
        """Monitors on the board only: jtop also lists power supplies, which feed the same rails."""
        power: dict[str, Any] = self._client.power
        rails: dict[str, Any] = dict(power.get("rail", {}))
        if self._total:
            rails[self._total] = power["tot"]
        return {name: r["power"] / 1e3 for name, r in rails.items() if str(r.get("type")).startswith("INA")}

    def describe(self, rank: int, covers: tuple[int, ...]) -> Meter:
        return Meter(rank=rank, source="jtop", rails=self._rails, total=self._total, covers=covers)

    def sample(self) -> dict[str, float]:
        try:
            alive = self._client.ok(spin=True)
        except Exception as error:  # whatever ended the client's own thread
            raise OSError(f"the jtop service was lost ({_line(error)})") from None
        if not alive:
            raise OSError("the jtop service was lost")
        if not self._new.is_set():
            return {}
        self._new.clear()
        return self._watts()

    def close(self) -> None:
        self._client.close()


def _line(error: Exception) -> str:
    return str(error).replace("\n", " ").strip() or type(error).__name__


class PowerSampler:
    """Samples a meter on a thread of its own and keeps the raw records, on this process's clock
    (`prism.trace.aligned_power` shifts them). A meter that fails ends the sampling, never the run: a
    second Meter record gives the reason."""

    def __init__(self, meter: EnergyMeter, rank: int, covers: tuple[int, ...], period_s: float) -> None:
        self._meter, self._rank = meter, rank
        self._period_s = max(period_s, meter.period_s)
        self._described = meter.describe(rank, covers)
        self._records: deque[Record] = deque([self._described])
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="power", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def take(self) -> list[Record]:
        """Records since the last call: the Meter first, then its samples."""
        return [self._records.popleft() for _ in range(len(self._records))]

    def stop(self) -> None:
        """End sampling and close the meter. What was sampled can still be taken."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._meter.close()

    def _loop(self) -> None:
        due, last = time.monotonic(), 0
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            start = time.monotonic_ns()
            try:
                watts = self._meter.sample()
            except (OSError, ValueError) as error:
                self._records.append(msgspec.structs.replace(self._described, ended=_line(error)))
                return
            now = (start + time.monotonic_ns()) // 2
            at = (last + now) // 2 if self._meter.averages else now
            if last or not self._meter.averages:  # the first mean reaches back before the sampling
                rows = [Power(rank=self._rank, rail=r, at_ns=at, watts=w) for r, w in watts.items()]
                self._records.extend(rows)
            due, last = max(due + self._period_s, time.monotonic()), now
