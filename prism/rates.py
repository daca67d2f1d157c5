"""Read CSV files of numbers: the rate of a link over time (time_s, mbps), and arrival times (time_s)."""

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from prism.errors import ConfigError


class RatePoint(msgspec.Struct, frozen=True, kw_only=True):
    """The rate of a link from a moment on."""

    at_s: float
    rate_bps: float


class NumberRow(NamedTuple):
    """One line of a CSV file: its number in the file, and the values of the columns asked for."""

    line: int
    values: tuple[float, ...]


def read_rates(path: Path) -> tuple[RatePoint, ...]:
    """Read a rate trace: a header line time_s,mbps, then times that grow from 0 or later, and rates above 0.

    Raises ConfigError with the file, the line and the remedy.
    """
    points: list[RatePoint] = []
    for line, (at_s, mbps) in read_numbers(path, ("time_s", "mbps")):
        if not 0 < mbps * 1e6 < math.inf:
            raise ConfigError(
                f"{path}: line {line}: mbps {mbps:g} must be above 0 and finite; write an outage as 0.001"
            )
        if points and at_s <= points[-1].at_s:
            raise ConfigError(f"{path}: line {line}: time_s {at_s:g} must grow, {points[-1].at_s:g} stands before it")
        points.append(RatePoint(at_s=at_s, rate_bps=mbps * 1e6))
    if not points:
        raise ConfigError(f"{path}: holds no rates; write lines of time_s,mbps below that header")
    return tuple(points)


def read_numbers(path: Path, names: Sequence[str]) -> list[NumberRow]:
    """Read columns of finite numbers, none below 0, under a header line that names them. Other columns are ignored.

    Raises ConfigError with the file, the line and the remedy.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return list(_rows(file, path, names))
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text; save it as CSV in UTF-8") from None
    except (OSError, csv.Error) as error:
        raise ConfigError(f"{path}: can't be read ({error}); give the path of a CSV file") from None


def _rows(lines: Iterator[str], path: Path, names: Sequence[str]) -> Iterator[NumberRow]:
    reader = csv.reader(lines)
    header = [name.strip() for name in next((row for row in reader if row), [])]
    if not header:
        raise ConfigError(f"{path}: is empty; write the header {','.join(names)}, and numbers below it")
    places = _places(header, path, names)
    for row in reader:
        if row:
            yield NumberRow(reader.line_num, _numbers(row, header, places, f"{path}: line {reader.line_num}"))


def _places(header: list[str], path: Path, names: Sequence[str]) -> dict[str, int]:
    """Find each column. Raises ConfigError that says why the header lacks one."""
    wanted = ",".join(names)
    if header[0].startswith("\ufeff"):
        raise ConfigError(f"{path}: line 1 begins with a byte order mark; save the file as UTF-8 without one")
    missing = [name for name in names if name not in header]
    if missing and any(";" in name for name in header):
        raise ConfigError(f"{path}: line 1 separates columns by ';'; separate them by commas, as in {wanted}")
    if missing:
        raise ConfigError(f"{path}: line 1 has no column {' and no '.join(missing)}; write the header {wanted}")
    return {name: header.index(name) for name in names}


def _numbers(row: list[str], header: list[str], places: dict[str, int], where: str) -> tuple[float, ...]:
    if len(row) != len(header):
        raise ConfigError(
            f"{where} has {len(row)} values for {len(header)} columns; separate them by commas, and write decimals "
            f"with a point"
        )
    return tuple(_number(row[place], name, where) for name, place in places.items())


def _number(text: str, name: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ConfigError(f"{where}: {name} {text!r} is no number; write one like 100 or 0.5") from None
    if not 0 <= value < math.inf:
        raise ConfigError(f"{where}: {name} {text!r} must be a finite number, at least 0")
    return value
