"""Progress of something long: the event, and a bar on a person's screen. rich is loaded for the bar alone."""

import contextlib
from collections.abc import Callable, Iterator

import msgspec


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag="progress"):
    """How far something is."""

    done: int
    total: int


@contextlib.contextmanager
def bar(quiet: bool, unit: str = "batches") -> Iterator[Callable[[Progress], None]]:
    """Show a progress bar with the time left on stderr, where that is a screen."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = (TextColumn(unit), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as shown:
        task = shown.add_task(unit, total=None)
        yield lambda event: shown.update(task, completed=event.done, total=event.total)
