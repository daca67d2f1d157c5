"""Read single tensors out of safetensors files, into memory of their own.

The library maps the whole file: a tensor that was copied counts twice while the file is open, and one that wasn't
changes when the file is overwritten. Here a tensor's bytes are read to where they stay.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor

from prism.errors import InputError

PIECE = 1 << 24  # bytes that are read at once where they are only looked at
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


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
        """Read one tensor piece by piece, as flat bytes of another type."""
        entry = self.entries[name]
        with open(entry.path, "rb") as file:
            file.seek(entry.start)
            left = entry.size
            while left:
                raw = file.read(min(left, PIECE))
                if not raw:
                    raise InputError(f"{entry.path}: ends within {name}; copy the file again")
                left -= len(raw)
                values = torch.frombuffer(bytearray(raw), dtype=entry.dtype)
                yield values.to(dtype).view(torch.uint8)


def _entries(path: Path) -> dict[str, Entry]:
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = msgspec.json.decode(file.read(length))
        header.pop("__metadata__", None)
        return {name: _entry(path, 8 + length, row) for name, row in header.items()}
    except (OSError, msgspec.DecodeError, KeyError, OverflowError, MemoryError) as error:
        raise InputError(f"{path}: is no safetensors file that can be read ({error}); copy it again") from None


def _entry(path: Path, base: int, row: dict[str, Any]) -> Entry:
    start, stop = row["data_offsets"]
    return Entry(path, base + start, stop - start, tuple(row["shape"]), DTYPES[row["dtype"]])
