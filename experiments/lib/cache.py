"""Find and fill the cache of models and data, which lies outside the environment and the repository."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from prism.errors import InputError

Make = Callable[[Path], None]
TRAINED = {"dinov2-fashion": "dinov2_fashion", "minilm-bbc": "minilm_bbc", "gpt2-brown": "gpt2_brown"}
"""Models that no package has, and the suffix of the module of experiments/assets that trains each."""


def cache_folder(given: Path | None = None) -> Path:
    """Return the folder of models/ and data/: as given, else $PRISM_CACHE, else ~/.cache/prism."""
    return given or Path(os.environ.get("PRISM_CACHE") or Path.home() / ".cache" / "prism")


def training_module(model: str) -> str:
    """Name the module that trains a model of TRAINED."""
    return f"experiments.assets.train_{TRAINED[model]}"


def need(cache: Path, *names: str) -> list[Path]:
    """Return paths of parts of the cache, such as "models/minilm". Raises InputError that names the command for a
    missing one."""
    for name in names:
        if not (cache / name).exists():
            model = Path(name).name
            module = training_module(model) if model in TRAINED else "experiments.assets.run"
            raise InputError(f"{cache / name} is missing; run: python -m {module} --cache {cache}")
    return [cache / name for name in names]


def once(target: Path, make: Make) -> Path:
    """Fill the folder `target` with `make` unless it exists; fill it under another name first, so that it is complete
    or absent."""
    if not target.exists():
        print(f"{target}", flush=True)
        part = target.with_name(target.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        make(part)
        part.rename(target)
    return target
