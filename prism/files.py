"""Write result files so that no reader ever sees half of one: beside the target first, then renamed over it."""

import os
from pathlib import Path
from typing import Any

import msgspec

from prism.errors import ConfigError


def write_file(path: Path, data: bytes) -> None:
    """Write a whole file; missing folders are made. Raises ConfigError where it can't be written.

    What is no regular file, such as /dev/stdout, is written in place.
    """
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return
        target = path.resolve()  # a link stays a link
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            part.write_bytes(data)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{path} can't be written ({error.strerror or error}); choose another place") from None


def write_json(path: Path, value: Any) -> None:
    """Write a struct as indented JSON. Raises ConfigError where it can't be written."""
    write_file(path, msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n")
