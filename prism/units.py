"""Read and write SI quantities: "400 Mbps" to bits per second and back. Mbps is 10^6 bit/s, MB is 10^6 bytes."""

import math
import re

from prism.errors import ConfigError

_PREFIX = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
_RATE = {f"{prefix}{unit}": factor for prefix, factor in _PREFIX.items() for unit in ("bps", "bit/s")}
_TIME = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_SIZE = {**{f"{prefix}b": factor for prefix, factor in _PREFIX.items()}, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}
_UNITS = {"rate": "bps, kbps, Mbps or Gbps", "time": "s, ms, us or ns", "memory": "B, kB, MB, GB or MiB, GiB"}
_QUANTITY = re.compile(r"\s*(-?[0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-zµ/]*)\s*", re.IGNORECASE)


def _quantity(text: str, what: str, example: str, units: dict[str, float]) -> float:
    """Read a number with one of `units` in SI. Raises ConfigError for anything else, and for what is not finite."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ConfigError(f"{what} {text!r} is not a number with a unit; write it like {example}")
    value, unit = float(match[1]), match[2]
    if unit.lower() not in units:
        raise ConfigError(f"{what} {text!r} has the unit {unit or 'none'!r}; use {_UNITS[what]}, as in {example}")
    if not math.isfinite(value * units[unit.lower()]):
        raise ConfigError(f"{what} {text!r} is too large for a number; write it like {example}")
    return value * units[unit.lower()]


def parse_rate(text: str) -> float:
    """Read bits per second from "100Mbps", "1.5 Gbit/s" or "800 kbps".

    Raises ConfigError for a bare number, and for what is not finite and above 0.
    """
    rate = _quantity(text, "rate", "100Mbps", _RATE)
    if rate <= 0:
        raise ConfigError(f"rate {text!r} must be above 0; write it like 100Mbps")
    return rate


def parse_seconds(text: str) -> float:
    """Read seconds from "2ms", "0.5 s" or "150us".

    Raises ConfigError for a bare number, and for what is negative or not finite.
    """
    seconds = _quantity(text, "time", "2ms", _TIME)
    if seconds < 0:
        raise ConfigError(f"time {text!r} must not be negative; write it like 2ms")
    return seconds


def parse_bytes(text: str) -> float:
    """Read bytes from "8GB" or "512 MiB". Raises ConfigError for a bare number, and for what is not above 0."""
    size = _quantity(text, "memory", "8GB", _SIZE)
    if size <= 0:
        raise ConfigError(f"memory {text!r} must be above 0; write it like 8GB")
    return size


def parse_share(text: str) -> float:
    """Read a share of 1 from "1%" or "0.01". Raises ConfigError outside of [0, 1)."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(%?)\s*", text)
    value = float(match[1]) / (100 if match[2] else 1) if match else -1.0
    if not 0 <= value < 1:
        raise ConfigError(f"share {text!r} must be from 0 to below 100%; write it like 1%")
    return value


def _format(value: float, steps: tuple[tuple[float, str], ...]) -> str:
    for size, unit in steps:
        if abs(value) >= size:
            return f"{value / size:.4g} {unit}"
    size, unit = steps[-1]
    return f"{value / size:.4g} {unit}"


def format_rate(bps: float) -> str:
    """Write "100 Mbps" for 1e8 bits per second."""
    return _format(bps, ((1e9, "Gbps"), (1e6, "Mbps"), (1e3, "kbps"), (1.0, "bps")))


def format_bytes(count: float) -> str:
    """Write "303.1 kB" for 303104 bytes."""
    return _format(count, ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")))


def format_seconds(seconds: float) -> str:
    """Write "2.5 ms" for 0.0025 seconds."""
    return _format(seconds, ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns")))
