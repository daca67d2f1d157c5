"""A folder for the duration of a run. The next run removes what a killed one left."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

LOCK = "in-use"


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Make an empty folder, and remove it on the way out; a lock that the kernel drops however we end holds it."""
    base = Path(tempfile.gettempdir())
    _remove_abandoned(base)
    made = Path(tempfile.mkdtemp(prefix=".prism-"))  # not yet under the name that others look for
    lock = os.open(made / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    fcntl.flock(lock, fcntl.LOCK_EX)
    folder = made.rename(base / made.name.lstrip("."))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _remove_abandoned(base: Path) -> None:
    for path in base.glob(f"prism-*/{LOCK}"):
        with contextlib.suppress(OSError), open(path, "rb") as file:  # another user's, or just removed
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path.parent, ignore_errors=True)
