"""Turn TOML or JSON text into a frozen struct, with a hint for every misspelt key; and the bounds of its numbers."""

import difflib
import re
import sys
from collections.abc import Callable, Mapping
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


def nearest(name: str, names: list[str]) -> str:
    """Hint at what a misspelt name may mean: the nearest known one, or the list of all."""
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else "known: " + ", ".join(sorted(set(names)))


def convert(data: Any, type_: type[T], source: str) -> T:
    """Build a struct from plain data. Raises ConfigError that names the key, the source and the remedy.

    A struct whose files were once written otherwise has a static method `upgraded`, from any data to today's keys.
    """
    data = getattr(type_, "upgraded", lambda same: same)(data)
    try:
        return msgspec.convert(data, type_, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {_explain(str(error), data, type_)}") from None


def load_toml(path: Path, type_: type[T]) -> T:
    """Read a TOML file as a struct. Raises ConfigError that names the file, the key and the remedy."""
    return convert(_raw_toml(path), type_, str(path))


def merged(
    path: Path | None,
    flags: Mapping[str, Any],
    type_: type[T],
    complete: Callable[[dict[str, Any]], object] | None = None,
) -> T:
    """Read a TOML file, lay the flags over it, and convert the whole.

    Only what was written counts: a key that neither names keeps its default, and a flag of None was not given. A flag
    that is a table goes over the file's table key by key. complete: adds to the merged data what it implies.
    Raises ConfigError that names the file or the flags, the key and the remedy.
    """
    data = _over({} if path is None else _raw_toml(path), flags)
    if complete is not None:
        complete(data)
    sources = [*([] if path is None else [str(path)]), *(["the flags"] if path is None or _over({}, flags) else [])]
    return convert(data, type_, " with ".join(sources))


def _over(data: dict[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """Lay the flags that were given over plain data, tables key by key."""
    result = dict(data)
    for key, value in flags.items():
        if isinstance(value, Mapping):
            below = result.get(key)
            value = _over(below if isinstance(below, dict) else {}, value) or None
        if value is not None:
            result[key] = value
    return result


def _raw_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read ({error}); give the path of a TOML file") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is no valid TOML ({error})") from None


def load_json(path: Path, type_: type[T]) -> T:
    """Read a JSON file as a struct. Raises ConfigError that names the file, the key and the remedy."""
    try:
        return convert(msgspec.json.decode(path.read_bytes()), type_, str(path))
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error}); give the path of a JSON file") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is no valid JSON ({error})") from None


def _explain(message: str, data: Any, type_: type) -> str:
    """Add the value at fault to msgspec's message, and a hint for an unknown key."""
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
    value = "" if isinstance(data, dict) else f" {data!r}"
    return f"{located[2]}{value}: {located[1][0].lower()}{located[1][1:]}"


def _field_names(type_: type) -> list[str]:
    """List the names of all fields of a struct and of the structs inside it."""
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
