"""Typed configuration: TOML or JSON text to a frozen struct, with a hint for every misspelt key."""

import difflib
import re
import sys
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from prism.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")
LARGEST = sys.float_info.max  # as an upper bound it refuses inf; a lower bound refuses nan
Positive = Annotated[int, msgspec.Meta(ge=1)]
NonNegative = Annotated[int, msgspec.Meta(ge=0)]
PositiveNumber = Annotated[float, msgspec.Meta(gt=0, le=LARGEST)]
NonNegativeNumber = Annotated[float, msgspec.Meta(ge=0, le=LARGEST)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]


def nearest(name: str, known: list[str]) -> str:
    """A hint for a misspelt name: the nearest known one, or the list of what is known."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else "known: " + ", ".join(sorted(set(known)))


def convert(data: Any, type_: type[T], source: str) -> T:
    """Build a struct from plain data. Raises ConfigError that names the key, the source and the remedy."""
    try:
        return msgspec.convert(data, type_, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {_explain(str(error), data, type_)}") from None


def load_toml(path: Path, type_: type[T]) -> T:
    try:
        return convert(tomllib.loads(path.read_text(encoding="utf-8")), type_, str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read ({error}); give the path of a TOML file") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is no valid TOML ({error})") from None


def load_json(path: Path, type_: type[T]) -> T:
    try:
        return convert(msgspec.json.decode(path.read_bytes()), type_, str(path))
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error}); give the path of a JSON file") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is no valid JSON ({error})") from None


def _explain(message: str, data: Any, type_: type) -> str:
    """msgspec's message with the value it speaks of, and a hint for an unknown key."""
    unknown = re.search(r"unknown field `(.+?)`", message)
    if unknown is not None:
        return f"{message}; {nearest(unknown[1], _field_names(type_))}"
    located = re.fullmatch(r"(.*) - at `\$\.?(.*)`", message)
    if located is None:
        return message
    try:
        for step in re.findall(r"[^.\[\]]+", located[2]):
            data = data[int(step)] if step.isdigit() else data[step]
    except (KeyError, IndexError, TypeError):
        return message
    return f"{located[2]} {data!r}: {located[1][0].lower()}{located[1][1:]}"


def _field_names(type_: type) -> list[str]:
    """Names of all fields of a struct and of the structs inside it."""
    names: list[str] = []
    pending: list[Any] = [msgspec.inspect.type_info(type_)]
    while pending:
        info = pending.pop()
        if isinstance(info, msgspec.inspect.StructType):
            names += [field.encode_name for field in info.fields]
            pending += [field.type for field in info.fields]
        elif isinstance(info, msgspec.inspect.CollectionType):
            pending.append(info.item_type)
        elif isinstance(info, msgspec.inspect.UnionType):
            pending += list(info.types)
    return names
