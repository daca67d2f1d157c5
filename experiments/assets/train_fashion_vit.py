"""Train the small ViT that ships with Prism, and export its labelled test images.

Fashion-MNIST (MIT licence) comes from the Debian package `dataset-fashion-mnist`. The model is a
timm VisionTransformer: 28 px, patch 4, 50 tokens, width 64, 6 blocks, 0.2 M parameters. The weights,
timm's own config.json and the first 300 test images are written to prism/assets, which is where
`prism-hw run fashion-vit` reads them.

    python -m experiments.assets.train_fashion_vit --epochs 20
"""

import argparse
import gzip
import json
import time
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

CLASSES = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
ARCHITECTURE = "vit_tiny_patch16_224"
MODEL_ARGS = dict(img_size=28, patch_size=4, in_chans=1, embed_dim=64, depth=6, num_heads=4, mlp_ratio=2)
MEAN, STD = 0.286, 0.353
ASSETS = Path(__file__).parents[2] / "prism" / "assets"


def read_idx(path: Path, offset: int) -> np.ndarray:
    """Read a gzipped IDX file."""
    return np.frombuffer(gzip.open(path).read(), np.uint8, offset=offset)


def load(data: Path, stem: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Load pixels and labels of one split."""
    pixels = read_idx(data / f"{stem}-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28)
    labels = read_idx(data / f"{stem}-labels-idx1-ubyte.gz", 8)
    return torch.from_numpy(pixels.copy()), torch.from_numpy(labels.astype(np.int64))


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """Scale pixels to the mean and deviation of the data set."""
    return (pixels.float() / 255 - MEAN) / STD


def augment(pixels: torch.Tensor) -> torch.Tensor:
    """Flip and shift a batch of images at random."""
    if torch.rand(()) < 0.5:
        pixels = pixels.flip(3)
    shift = torch.randint(-2, 3, (2,)).tolist()
    return torch.roll(pixels, shift, (2, 3))


@torch.no_grad()
def accuracy(model: torch.nn.Module, pixels: torch.Tensor, labels: torch.Tensor) -> float:
    """Compute the share of images that are classified right."""
    model.eval()
    guesses = torch.cat([model(normalise(part)).argmax(1) for part in pixels.split(500)])
    return (guesses == labels).float().mean().item()


def train(data: Path, epochs: int, batch: int, seed: int) -> tuple[torch.nn.Module, float]:
    """Train the model; return it with its accuracy on the test images."""
    torch.manual_seed(seed)
    x, y = load(data, "train")
    x_test, y_test = load(data, "t10k")
    model = timm.create_model(ARCHITECTURE, pretrained=False, num_classes=len(CLASSES), **MODEL_ARGS)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05)
    steps = epochs * (len(x) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps + 1, pct_start=0.15)
    began = time.perf_counter()
    test = 0.0
    for epoch in range(epochs):
        model.train()
        for index in torch.randperm(len(x)).split(batch)[: len(x) // batch]:
            logits = model(normalise(augment(x[index])))
            loss = F.cross_entropy(logits, y[index], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        test = accuracy(model, x_test, y_test)
        print(f"epoch {epoch}  {time.perf_counter() - began:.0f} s  loss {loss:.3f}  test {test:.4f}", flush=True)
    return model, test


def export(model: torch.nn.Module, test: float, data: Path, images: int, args: dict[str, object]) -> None:
    """Write weights, config.json and the first test images to prism/assets."""
    folder = ASSETS / "fashion-vit"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    config = {
        "architecture": ARCHITECTURE,
        "num_classes": len(CLASSES),
        "num_features": MODEL_ARGS["embed_dim"],
        "model_args": MODEL_ARGS,
        "pretrained_cfg": {
            "input_size": [1, 28, 28],
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "mean": [MEAN],
            "std": [STD],
            "num_classes": len(CLASSES),
            "label_names": CLASSES,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "fixed_input_size": True,
        },
        "trained": {"data": "Fashion-MNIST, 60,000 images", "test_top1": round(test, 4), **args},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    x, y = load(data, "t10k")
    for index in range(images):
        place = ASSETS / "fashion-mnist" / CLASSES[y[index]]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x[index, 0].numpy()).save(place / f"{index:04d}.png", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--images", type=int, default=300, help="how many test images to export")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model, test = train(args.data, args.epochs, args.batch, args.seed)
    export(model, test, args.data, args.images, {"epochs": args.epochs, "batch": args.batch, "seed": args.seed})


if __name__ == "__main__":
    main()
