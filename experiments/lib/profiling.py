"""Profile models as a study does: commands of prism-hw, which resume."""

import subprocess
from pathlib import Path

from experiments.lib.places import PRISM_HW
from prism.errors import PrismError


def hw(*arguments: str) -> None:
    """Run a command of prism-hw, whose output goes to the terminal. Raises PrismError if it fails."""
    ended = subprocess.run([PRISM_HW, *arguments]).returncode
    if ended:
        raise PrismError(
            f"prism-hw {arguments[0]} ended with {ended}, see above; the same command continues where it stopped"
        )


def measure(config: Path, folder: Path) -> Path:
    """Run a sweep; one that was interrupted continues."""
    traces = folder / config.stem
    hw("profile", "--config", str(config), "--output", str(traces))
    return traces
