"""INA3221 power monitors, as on Jetsons, through the kernel's hwmon files."""

import itertools
from pathlib import Path

from hw.energy.meter import absent
from hw.energy.sysfs import read_count, read_text
from prism.trace import Meter

ROOT = Path("/sys/class/hwmon")


class Ina3221:
    """Bus millivolts times milliamperes of each labelled channel.

    Channels are 1 to 3; in4 to in6 are shunt voltages, in7 and curr4 their sums (kernel: hwmon/ina3221).
    Raises ConfigError where there is no monitor, or one of its rails can't be read.
    """

    averages = False

    def __init__(self, root: Path = ROOT) -> None:
        chips = [folder for folder in sorted(root.glob("hwmon*")) if read_text(folder / "name") == "ina3221"]
        self._rails: dict[str, tuple[Path, Path]] = {}
        for chip, channel in itertools.product(chips, (1, 2, 3)):
            label = read_text(chip / f"in{channel}_label")
            files = chip / f"in{channel}_input", chip / f"curr{channel}_input"
            if label not in ("", "NC") and all(file.exists() for file in files):
                self._rails[label if label not in self._rails else f"{label} {chip.name}"] = files
        if not self._rails:
            lacking = "an ina3221 without labelled channels" if chips else "no ina3221"
            raise absent("ina3221", f"{root} has {lacking}", "only Jetsons have one: docs/jetson.md")
        try:
            self.sample()
        except (OSError, ValueError) as error:  # without this rail the rest would pass for the whole device
            raise absent("ina3221", f"a rail can't be read ({error})", "enable it, or run as root") from None
        intervals = [read_text(chip / "update_interval") for chip in chips]
        self.period_s = max(int(text) / 1e3 if text.isdigit() else 0.0 for text in intervals)

    def describe(self, rank: int, covers: tuple[int, ...]) -> Meter:
        total = "VDD_IN" if "VDD_IN" in self._rails else ""
        return Meter(rank=rank, source="ina3221", rails=tuple(self._rails), total=total, covers=covers)

    def sample(self) -> dict[str, float]:
        return {rail: _watts(files) for rail, files in self._rails.items()}

    def close(self) -> None:
        """Nothing is held open."""


def _watts(files: tuple[Path, Path]) -> float:
    millivolts, milliamperes = (read_count(file) for file in files)
    return millivolts * milliamperes / 1e6


open_meter = Ina3221
