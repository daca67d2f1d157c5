"""Sensor files of the kernel."""

from pathlib import Path


def read_text(path: Path) -> str:
    """Read a file's line; empty where there is none or it can't be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def read_count(path: Path) -> int:
    """Read a file's number anew. Raises OSError, or ValueError where it holds none."""
    with open(path, "rb", buffering=0) as file:
        return int(file.read(32))
