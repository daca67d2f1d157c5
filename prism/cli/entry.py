"""Start and end both command lines: one line on stderr for an error of ours or a misused flag, never a traceback."""

import errno
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from prism.errors import INTERRUPTED, MENDABLE, PrismError

OURS = ("prism", "hw", "sim", "calibration")


def command_line() -> str:
    """Return the command as it was typed."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"prism-edge {version('prism-edge')}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
]
Verbose = Annotated[
    int, typer.Option("--verbose", "-v", count=True, help="Log on stderr; -vv logs more.", rich_help_panel="Output")
]


def show(view: Any) -> None:
    """Print a table, or whatever rich renders, on stdout."""
    from rich.console import Console

    Console().print(view)


def run(app: typer.Typer, name: str) -> None:
    """Run a command line and exit: 0, MENDABLE for what the user can mend, INTERRUPTED after Ctrl-C."""
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except PrismError as error:
        _fail(name, str(error), error.exit_code)
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package in OURS:
            raise
        _fail(name, f"{package} is not installed, and this needs it: pip install 'prism-edge[hw]'", MENDABLE)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _fail(name, f"the disk is full ({error}); free space, then run the same command again", MENDABLE)
    except (typer.Abort, KeyboardInterrupt):
        _fail(name, "interrupted; every rank has ended", INTERRUPTED)
    except Exception as error:
        if not hasattr(error, "format_message"):  # a usage error; typer doesn't export its class
            raise
        message = error.format_message()
        if len(sys.argv) == 1:  # a bare command shows its help, and that is the message
            print(message)
            sys.exit(MENDABLE)
        _fail(name, f"{message} See {name} --help.", MENDABLE)


def _fail(name: str, message: str, code: int) -> None:
    print(f"{name}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
