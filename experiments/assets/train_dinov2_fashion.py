"""Fine-tune the DINOv2 ViT-S on 6,000 Fashion-MNIST images at 112 px (65 tokens), with a head on the class token.

    python -m experiments.assets.train_dinov2_fashion [--cache DIR]     # about five minutes on two cores

Blocks 8 to 11, the norm and the head are trained; see experiments/lib/vit_tail.py. The result is models/dinov2-fashion
in the cache. The test images chose nothing."""

import argparse
from pathlib import Path

import msgspec
import torch

from experiments.assets.train_fashion_vit import CLASSES
from experiments.assets.weights import save_timm, timm_config
from experiments.lib.cache import cache_folder, need, once
from experiments.lib.vit_tail import LOCAL, front, images, logits, train_tail
from prism.nn.zoo import load_model

EPOCHS, RATE, HEAD_RATE, SEED = 2, 2e-4, 2e-3, 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, help="folder of models and data")
    args = parser.parse_args()
    cache = cache_folder(args.cache)
    backbone, data = need(cache, "models/dinov2", "data/fashion-mnist")

    def make(folder: Path) -> None:
        loaded = msgspec.structs.replace(load_model(str(backbone)), labels=CLASSES)
        model = loaded.model
        torch.manual_seed(SEED)
        model.reset_classifier(len(CLASSES))
        inputs, classes = images(data / "train", loaded)
        features = front(model, LOCAL, inputs, cache / "features" / "local-train.safetensors")
        settings = {"epochs": EPOCHS, "rate": RATE, "head_rate": HEAD_RATE, "seed": SEED}
        seconds = train_tail(model, LOCAL, features, classes, **settings)
        inputs, classes = images(data / "test", loaded)
        features = front(model, LOCAL, inputs, cache / "features" / "local-test.safetensors")
        right = logits(model, LOCAL, features).argmax(1) == classes
        top1 = round(right.float().mean().item(), 4)
        save_timm(folder, model, timm_config(CLASSES, data="Fashion-MNIST, 6,000 images", test_top1=top1, **settings))
        print(f"top-1 of {len(classes)} test images {top1:.4f}; training the tail took {seconds:.0f} s")

    once(cache / "models" / "dinov2-fashion", make)


if __name__ == "__main__":
    main()
