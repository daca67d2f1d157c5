"""RAPL, the energy counters of x86 processors, through the kernel's powercap files."""

import re
import time
from collections.abc import Callable
from pathlib import Path

from hw.energy.meter import absent
from hw.energy.sysfs import read_count, read_text
from prism.trace import Meter

ROOT = Path("/sys/class/powercap")


class Rapl:
    """The processor packages: on most machines without memory, always without the rest of the board.

    psys, the parts of a package and the mmio copies of the same counters are left out, or they would count twice.
    Raises ConfigError where there is no package, or its counter can't be read.
    """

    period_s = 0.01  # counters advance about every millisecond
    averages = True

    def __init__(self, root: Path = ROOT, clock: Callable[[], int] = time.monotonic_ns) -> None:
        zones = [zone for zone in sorted(root.glob("intel-rapl:*")) if re.fullmatch(r"\D+:\d+", zone.name)]
        packages = {name: zone for zone in zones if (name := read_text(zone / "name")).startswith("package")}
        if not packages:
            raise absent("rapl", f"{root} has no intel-rapl package", "virtual machines hide it")
        self._clock = clock
        self._counters = {name: zone / "energy_uj" for name, zone in packages.items()}
        try:
            self._range = {name: read_count(zone / "max_energy_range_uj") for name, zone in packages.items()}
            self._last = self._read()
        except (OSError, ValueError) as error:
            raise absent("rapl", f"counter can't be read ({error})", "run as root") from None

    def _read(self) -> tuple[int, dict[str, int]]:
        return self._clock(), {name: read_count(file) for name, file in self._counters.items()}

    def describe(self, rank: int, covers: tuple[int, ...]) -> Meter:
        return Meter(rank=rank, source="rapl", rails=tuple(self._counters), covers=covers)

    def sample(self) -> dict[str, float]:
        (then, before), self._last = self._last, self._read()
        now, counts = self._last
        seconds = max(now - then, 1) / 1e9
        return {name: (counts[name] - before[name]) % self._range[name] / 1e6 / seconds for name in counts}

    def close(self) -> None:
        """Nothing is held open."""


open_meter = Rapl
