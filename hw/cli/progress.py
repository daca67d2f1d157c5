"""What the command lines share: a progress bar, and files that are results."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from hw.run.config import Progress


@contextlib.contextmanager
def bar(quiet: bool, unit: str = "batches") -> Iterator[Callable[[Progress], None]]:
    """A progress bar with the time left, on stderr, where a person looks on."""
    console = Console(stderr=True)
    columns = (TextColumn(unit), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as shown:
        task = shown.add_task(unit, total=None)
        yield lambda event: shown.update(task, completed=event.done, total=event.total)
