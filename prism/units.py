"""SI quantities as text: "400 Mbps" to bits per second and back. Mbps is 10^6 bit/s, MB is 10^6 bytes."""

import re

from prism.errors import ConfigError

_PREFIX = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
_TIME = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_QUANTITY = re.compile(r"\s*(-?[0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-zµ/]*)\s*", re.IGNORECASE)


def _split(text: str, what: str, example: str) -> tuple[float, str]:
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ConfigError(f"{what} {text!r} is not a number with a unit; write it like {example}")
    return float(match[1]), match[2]


def parse_rate(text: str) -> float:
    """Bits per second from "100Mbps", "1.5 Gbit/s" or "800 kbps"; a bare number is refused."""
    value, unit = _split(text, "rate", "100Mbps")
    stem = unit.lower().removesuffix("bit/s").removesuffix("bps")
    if stem == unit.lower() or stem not in _PREFIX:
        raise ConfigError(f"rate {text!r} has the unit {unit or 'none'!r}; use bps, kbps, Mbps or Gbps, as in 100Mbps")
    if value <= 0:
        raise ConfigError(f"rate {text!r} must be above 0; write it like 100Mbps")
    return value * _PREFIX[stem]


def parse_seconds(text: str) -> float:
    """Seconds from "2ms", "0.5 s" or "150us"; a bare number is refused."""
    value, unit = _split(text, "time", "2ms")
    if unit.lower() not in _TIME:
        raise ConfigError(f"time {text!r} has the unit {unit or 'none'!r}; use s, ms, us or ns, as in 2ms")
    if value < 0:
        raise ConfigError(f"time {text!r} must not be negative; write it like 2ms")
    return value * _TIME[unit.lower()]


def parse_share(text: str) -> float:
    """A share of 1 from "1%" or "0.01"."""
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
    """ "100 Mbps" from 1e8 bits per second."""
    return _format(bps, ((1e9, "Gbps"), (1e6, "Mbps"), (1e3, "kbps"), (1.0, "bps")))


def format_bytes(count: float) -> str:
    """ "303 kB" from 303104 bytes."""
    return _format(count, ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")))


def format_seconds(seconds: float) -> str:
    """ "2.5 ms" from 0.0025 seconds."""
    return _format(seconds, ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns")))
