"""Load the models and the items that the variants are measured on."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
import transformers
from torch import Tensor

from experiments.variants.forward import Subject
from prism.nn.zoo import load_model

SEED = 0


def images(cache: Path, items: int) -> Subject:
    """Load images of the Fashion-MNIST test set."""
    loaded = load_model(str(cache / "models" / "dinov2-fashion"))
    from PIL import Image
    from timm.data import create_transform

    transform = create_transform(**{**loaded.image, "is_training": False})

    def read(split: str, count: int) -> tuple[Tensor, Tensor]:
        files = sorted((cache / "data" / "fashion-mnist" / split).glob("*/*.png"), key=lambda f: f.stem)
        files = [files[i] for i in np.random.default_rng(SEED).permutation(len(files))[:count]]
        x = torch.stack([transform(Image.open(f).convert("RGB")) for f in files])
        return x, torch.tensor([loaded.labels.index(f.parent.name) for f in files])

    x, y = read("test", items)
    return Subject(
        "dinov2-fashion", loaded.model, [{"x": b} for b in x.split(50)], [{"x": read("train", 64)[0]}], y, "class"
    )


def texts(cache: Path, name: str, data: str, kind: str, items: int) -> Subject:
    """Load texts of at least 256 tokens, cut there, so that there is no padding."""
    folder = cache / "models" / name
    loaded = load_model(str(folder))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def read(split: str, count: int) -> tuple[Tensor, list[str]]:
        ids, labels = [], []
        lines = (cache / "data" / data / f"{split}.jsonl").read_text().splitlines()
        for number in np.random.default_rng(SEED).permutation(len(lines)):
            item = msgspec.json.decode(lines[number])
            found = tokenizer(item["text"], truncation=True, max_length=256)["input_ids"]
            if len(found) == 256 and len(ids) < count:
                ids.append(found)
                labels.append(item.get("label", ""))
        return torch.tensor(ids), labels

    ids, labels = read("test", items)
    known = list(loaded.labels)
    y = torch.tensor([known.index(each) for each in labels]) if kind == "class" else None
    if kind == "next":
        y = ids
    calibration = [{"input_ids": read("train", 12)[0]}]
    return Subject(name, loaded.model, [{"input_ids": b} for b in ids.split(8)], calibration, y, kind)


def subjects(cache: Path, wanted: Sequence[str]) -> Iterator[Subject]:
    """Load the wanted subjects, all if none are named, one at a time."""
    makers = {
        "dinov2-fashion": lambda: images(cache, 100),
        "minilm-bbc": lambda: texts(cache, "minilm-bbc", "bbc", "class", 30),
        "minilm": lambda: texts(cache, "minilm", "bbc", "embedding", 20),
        "gpt2-brown": lambda: texts(cache, "gpt2-brown", "brown", "next", 16),
        "smollm2-135m": lambda: texts(cache, "smollm2-135m", "bbc", "next", 4),
    }
    for name in wanted or makers:
        yield makers[name]()
