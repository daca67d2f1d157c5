"""Guard measurements against an overheated board: a throttled processor is slower than the one that is to be measured.

The kernel slows a processor down at a thermal zone's passive trip point (Documentation/driver-api/thermal/sysfs-api.rst
of Linux). Times are taken again when every zone lies MARGIN_C below its own.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from hw.energy.sysfs import read_count, read_text

THERMAL = Path("/sys/class/thermal")
MARGIN_C = 5.0
PATIENCE_S = 600.0
POLL_S = 2.0


class Zone(msgspec.Struct, frozen=True, kw_only=True):
    """A thermal zone in degrees Celsius: where it is, and where the kernel begins to throttle."""

    name: str
    celsius: float
    throttles_at: float

    @property
    def throttled(self) -> bool:
        """Whether the kernel slows the processor down now."""
        return self.celsius >= self.throttles_at


def zones(root: Path = THERMAL) -> list[Zone]:
    """Read the zones that have a passive trip point, the nearest to it first. Empty where the kernel shows none."""
    found = [zone for folder in sorted(root.glob("thermal_zone*")) for zone in _zone(folder)]
    return sorted(found, key=lambda zone: zone.celsius - zone.throttles_at, reverse=True)


def _zone(folder: Path) -> Iterator[Zone]:
    passive = [path for path in folder.glob("trip_point_*_type") if read_text(path) == "passive"]
    try:
        limits = [read_count(path.with_name(path.name.replace("_type", "_temp"))) for path in passive]
        celsius = read_count(folder / "temp") / 1000
    except (OSError, ValueError):  # a sensor that sleeps answers EAGAIN
        return
    above_freezing = [limit / 1000 for limit in limits if limit > 0]
    if above_freezing:
        yield Zone(name=read_text(folder / "type"), celsius=celsius, throttles_at=min(above_freezing))


def cool_down(
    warn: Callable[[str], None],
    root: Path = THERMAL,
    patience_s: float = PATIENCE_S,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Wait while the board throttles, until it has cooled by MARGIN_C, but no longer than `patience_s`.

    warn: is called when the wait begins, and when it ends in vain.
    """
    hottest = next(iter(zones(root)), None)
    if hottest is None or not hottest.throttled:
        return
    warn(f"{hottest.name} is at {hottest.celsius:.1f} °C and throttles from {hottest.throttles_at:.1f}: cooling down")
    waited_s = 0.0
    while hottest is not None and hottest.celsius > hottest.throttles_at - MARGIN_C:
        if waited_s >= patience_s:
            warn(
                f"{hottest.name} is still at {hottest.celsius:.0f} °C after {waited_s:.0f} s: what follows is measured "
                f"on a throttled board; give it a fan or a lower power mode"
            )
            return
        sleep(POLL_S)
        waited_s += POLL_S
        hottest = next(iter(zones(root)), None)
