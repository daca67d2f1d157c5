"""Logging of the command lines: one logger a module, one handler on stderr, one level by -v. Nothing goes to stdout."""

import logging
import os
import sys

PACKAGES = ("prism", "hw", "sim", "calibration")  # other people's loggers keep their own levels
VARIABLE = "PRISM_LOG"  # the level's name, which rank processes inherit
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _Stderr(logging.Handler):
    """Writes to the sys.stderr of the moment: a live display puts its own there for a while."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


def configure(verbose: int = 0, quiet: int = logging.WARNING) -> None:
    """Log from level `quiet` on, and from one level lower for each -v."""
    _configure(max(quiet - 10 * verbose, logging.DEBUG), FORMAT)
    os.environ[VARIABLE] = logging.getLevelName(max(quiet - 10 * verbose, logging.DEBUG))


def configure_rank(rank: int) -> None:
    """Log in a rank process as the command that started it does."""
    level = logging.getLevelName(os.environ.get(VARIABLE, ""))
    _configure(level if isinstance(level, int) else logging.WARNING, f"rank {rank}: {FORMAT}")


def pass_on(line: str) -> None:
    """Show a line of a rank process's stderr, where the command is verbose."""
    if logging.getLogger(PACKAGES[0]).isEnabledFor(logging.INFO):
        print(line, file=sys.stderr, flush=True)


def _configure(level: int, form: str) -> None:
    handler = _Stderr()
    handler.setLevel(level)
    handler.setFormatter(logging.Formatter(form, "%H:%M:%S"))
    for package in PACKAGES:
        logger = logging.getLogger(package)
        logger.setLevel(level)
        logger.handlers = [handler]
