"""Read single tensors out of safetensors files, into memory of their own.

The library maps the whole file: a tensor that was copied counts twice while the file is open, and one that wasn't
changes when the file is overwritten. Here a tensor's bytes are read to where they stay.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor

from prism.errors import InputError

PIECE = 1 << 20  # bytes that are read at once where they are only looked at
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class Row(msgspec.Struct, frozen=True):
    """What a file's header says of a tensor."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class Entry(NamedTuple):
    """Where a tensor lies."""

    path: Path
    start: int
    size: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class Checkpoint:
    """The tensors of some safetensors files, by name. Raises InputError for a file that can't be read."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.entries: dict[str, Entry] = {}
        for path in paths:
            self.entries |= _entries(path)

    def read(self, name: str) -> Tensor:
        """Read one tensor."""
        entry = self.entries[name]
        raw = torch.empty(entry.size, dtype=torch.uint8)
        with open(entry.path, "rb") as file:
            file.seek(entry.start)
            if file.readinto(raw.numpy().data) != entry.size:
                raise InputError(f"{entry.path}: ends within {name}; copy the file again")
        return raw.view(entry.dtype).view(entry.shape)

    def pieces(self, name: str, dtype: torch.dtype) -> Iterator[Tensor]:
        """Read one tensor piece by piece, as flat bytes of another type. A piece is gone when the next one is read."""
        entry = self.entries[name]
        raw = torch.empty(min(PIECE, entry.size), dtype=torch.uint8)
        with open(entry.path, "rb") as file:
            file.seek(entry.start)
            for start in range(0, entry.size, PIECE):
                piece = raw[: entry.size - start]
                if file.readinto(piece.numpy().data) != len(piece):
                    raise InputError(f"{entry.path}: ends within {name}; copy the file again")
                yield piece.view(entry.dtype).to(dtype).view(torch.uint8)


def _entries(path: Path) -> dict[str, Entry]:
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = msgspec.json.decode(file.read(length), type=dict[str, msgspec.Raw])
        header.pop("__metadata__", None)
        rows = {name: msgspec.json.decode(raw, type=Row) for name, raw in header.items()}
    except (OSError, msgspec.DecodeError, OverflowError, MemoryError) as error:
        raise InputError(f"{path}: is no safetensors file that can be read ({error}); copy it again") from None
    return {name: _entry(path, 8 + length, name, row) for name, row in rows.items()}


def _entry(path: Path, base: int, name: str, row: Row) -> Entry:
    dtype = DTYPES.get(row.dtype)
    if dtype is None:
        raise InputError(f"{path}: {name} is of type {row.dtype}; save the model in one of {', '.join(DTYPES)}")
    start, stop = row.data_offsets
    if stop - start != math.prod(row.shape) * dtype.itemsize:
        raise InputError(f"{path}: {name} of shape {list(row.shape)} has {stop - start} bytes; copy the file again")
    return Entry(path, base + start, stop - start, row.shape, dtype)
