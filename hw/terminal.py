"""What the command lines share: a progress bar, and files that are results."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from hw.job import Progress
from prism.errors import ConfigError


def write_file(path: Path, data: bytes) -> None:
    """Raises ConfigError where it can't be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"{path} can't be written ({error}); choose another place") from None


@contextlib.contextmanager
def bar(quiet: bool, unit: str = "batches") -> Iterator[Callable[[Progress], None]]:
    """A progress bar with the time left, on stderr, where a person looks on."""
    console = Console(stderr=True)
    columns = (TextColumn(unit), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as shown:
        task = shown.add_task(unit, total=None)
        yield lambda event: shown.update(task, completed=event.done, total=event.total)
