"""Power meters behind one protocol, found by the name of their sensor.

A sensor is a module of this folder under its name in `prism.trace.SensorName`, and `open_meter(root)` in it: a name and
a module are all that a further sensor takes. What each covers is in docs/jetson.md. A meter that is absent is absent:
nothing stands in for it.
"""

import contextlib
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Protocol, get_args

from prism.errors import ConfigError
from prism.trace import Meter, MeterName, SensorName

SENSORS: tuple[SensorName, ...] = get_args(SensorName)


class EnergyMeter(Protocol):
    """Watts by rail of the device that this process runs on.

    period_s: the shortest period worth reading at. averages: a sample is the mean since the one before,
    not the power at the moment.
    """

    period_s: float
    averages: bool

    def describe(self, rank: int, covers: tuple[int, ...]) -> Meter:
        """Describe the meter for a trace. covers: the ranks that run on this device."""
        ...

    def sample(self) -> dict[str, float]:
        """Read the watts of every rail, or nothing where nothing is new. Raises OSError when the meter is gone."""
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...


def find_meter(name: MeterName, roots: Mapping[SensorName, Path] | None = None) -> EnergyMeter | None:
    """Open the named meter; "auto" opens the first usable one, or none. roots: files of a sensor, where not the usual.

    Raises ConfigError when a meter that was asked for by name can't be read.
    """
    if name == "none":
        return None
    if name != "auto":
        return _open(name, roots or {})
    for sensor in SENSORS:
        with contextlib.suppress(ConfigError):
            return _open(sensor, roots or {})
    return None


def _open(sensor: SensorName, roots: Mapping[SensorName, Path]) -> EnergyMeter:
    module = import_module(f"hw.energy.{sensor}")
    meter: EnergyMeter = module.open_meter(roots.get(sensor, module.ROOT))
    return meter


def absent(sensor: SensorName, reason: str, remedy: str) -> ConfigError:
    """Make the error of a sensor that can't be read."""
    return ConfigError(f"energy meter {sensor!r}: {reason}; {remedy}, or choose auto or none")


def one_line(error: Exception) -> str:
    """Put an error's message on one line; its type where there is none."""
    return str(error).replace("\n", " ").strip() or type(error).__name__
