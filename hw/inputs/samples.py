"""Read images and texts as model inputs. A file that can't be read is an error with its name."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from hw.inputs.collate import collate_texts
from prism.errors import InputError
from prism.nn.zoo import ASSETS, Loaded

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"}
SAMPLE_IMAGES = ASSETS / "fashion-mnist"
SAMPLE_TEXT = ASSETS / "sample.txt"


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One input: its name, its label's name where it has one, and the content that `collate` takes."""

    name: str
    label: str | None
    content: Any


class Inputs(msgspec.Struct, frozen=True, kw_only=True):
    """Samples, and the function from some of them to the model's keyword arguments."""

    samples: tuple[Sample, ...]
    collate: Callable[[Sequence[Sample]], dict[str, Any]]
    note: str = ""

    def batch(self, index: int, size: int, wrap: bool) -> tuple[Sample, ...]:
        """Take the index-th batch of `size` samples; past the end it starts over, or is cut without `wrap`."""
        count = len(self.samples)
        if not wrap:
            return self.samples[index * size : (index + 1) * size]
        return tuple(self.samples[(index * size + k) % count] for k in range(size))


class ImageReader:
    """Open images as a model takes them, and batch them by the model's own preprocessing."""

    def __init__(self, loaded: Loaded) -> None:
        from timm.data import create_transform

        config = dict(loaded.image or {})
        self._mode = "L" if config["input_size"][0] == 1 else "RGB"
        self._transform = create_transform(**config, is_training=False)

    def open(self, path: Path) -> Image.Image:
        """Open an image. Raises InputError for what is no readable image."""
        return _open(path, self._mode)

    def collate(self, batch: Sequence[Sample]) -> dict[str, Any]:
        """Make the model's input of some samples: {"x": [B, C, H, W]}."""
        return {"x": torch.stack([_as_tensor(self._transform(sample.content)) for sample in batch])}


def image_paths(folder: Path) -> list[Path]:
    """List all images below a folder. Raises InputError where it has none."""
    if not folder.is_dir():
        raise InputError(f"{folder}: is no folder; give a folder of images, or of one subfolder for each label")
    paths = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES]
    if not paths:
        raise InputError(f"{folder}: holds no image ({', '.join(sorted(SUFFIXES))}); give a folder that does")
    return sorted(paths, key=lambda path: (path.name, path))  # numbered over all labels, as the bundled ones: mixed


def label_of(path: Path, root: Path) -> str | None:
    """Take an image's label from the name of its subfolder."""
    return path.parent.name if path.parent != root else None


def load_images(folder: Path | None, loaded: Loaded, resize: bool) -> Inputs:
    """Load a folder of images, labelled by subfolder where there are subfolders; without a folder, the bundled samples.

    All must have one size unless `resize`: the model's own preprocessing then brings each to its input. Raises
    InputError.
    """
    root = folder or SAMPLE_IMAGES
    reader, paths = ImageReader(loaded), image_paths(root)
    images = [reader.open(path) for path in paths]
    if not resize:
        _check_one_size(paths, images)
    samples = tuple(
        Sample(name=str(path.relative_to(root)), label=label_of(path, root), content=image)
        for path, image in zip(paths, images, strict=True)
    )
    note = "bundled Fashion-MNIST test images" if folder is None else ""
    return Inputs(samples=samples, collate=reader.collate, note=note)


def _as_tensor(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise InputError(
            f"the model's preprocessing gives {type(value).__name__}, not a tensor; use a timm model's own"
        )
    return value


def _open(path: Path, mode: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert(mode)
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise InputError(f"{path}: is no readable image ({error}); remove or replace it") from None


def _check_one_size(paths: Sequence[Path], images: Sequence[Image.Image]) -> None:
    for path, image in zip(paths, images, strict=True):
        if image.size != images[0].size:
            first = f"{paths[0].name} has {images[0].width}x{images[0].height}"
            raise InputError(
                f"{path}: has {image.width}x{image.height} pixels where {first}; pass --resize to bring all to the "
                f"model's input"
            )


def load_text(file: Path | None, loaded: Loaded, tokens: int | None) -> Inputs:
    """Load one text a line, through the tokenizer in the model's folder. Raises InputError.

    A random model has no tokenizer: there the bytes of the text are its tokens, which is enough for timing.
    """
    path = file or SAMPLE_TEXT
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: can't be read as UTF-8 text ({error}); give a file with one text a line") from None
    if not lines:
        raise InputError(f"{path}: holds no text; give a file with one text a line")
    encode, note = tokenizer_of(loaded, tokens)
    samples = tuple(Sample(name=line[:60], label=None, content=encode(line)) for line in lines)
    return Inputs(samples=samples, collate=functools.partial(collate_texts, tokens=tokens), note=note)


def tokenizer_of(loaded: Loaded, tokens: int | None) -> tuple[Callable[[str], list[int]], str]:
    """Find the function from a text to its token numbers, with a note on what they are. Raises InputError."""
    config = loaded.model.config
    limit = min(tokens or config.max_position_embeddings, config.max_position_embeddings)
    if loaded.folder is None or loaded.weights.startswith("random"):

        def as_bytes(text: str) -> list[int]:
            values = [byte % config.vocab_size for byte in text.encode()]
            return (values * -(-limit // len(values)))[:limit] if tokens else values[:limit]

        return as_bytes, "bytes as tokens" + (f", repeated to {limit}" if tokens else "")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(loaded.folder, local_files_only=True)
    except Exception as error:
        raise InputError(
            f"{loaded.folder}: no tokenizer ({str(error).splitlines()[0]}); save it beside the model"
        ) from None
    return (lambda text: list(tokenizer(text, truncation=True, max_length=limit)["input_ids"])), ""
