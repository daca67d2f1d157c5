"""Opening a trace for writing, with an error that people can use."""

import contextlib
from collections.abc import Iterator
from typing import IO

from prism.errors import InputError


@contextlib.contextmanager
def trace_file(path: str | None) -> Iterator[IO[bytes] | None]:
    if path is None:
        yield None
        return
    try:
        file = open(path, "wb", buffering=0)  # noqa: SIM115 - closed below; only opening it may fail as bad input
    except OSError as error:
        raise InputError(f"trace {path} can't be written ({error}); choose another --trace") from None
    with file:
        yield file
