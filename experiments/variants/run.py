"""What compression of the exchange costs in accuracy, by variant, at equal bytes.

    python experiments/variants.py [--cache DIR] [--models minilm,...] [--only NAME,...]

All parts of a batch run one after another in one thread through the adapters' blocks, with one copy of the weights;
what crosses the link is coded and decoded by variant_schemes. Weights and data are those of experiments/assets.py.
Each cell is a line of results/variants/cells.jsonl as soon as it is measured, and a second run measures only what is
missing; summary.json, table.md and pareto.png are made of all lines.

Loss, per item: KL to the uncompressed model for classes and next tokens, 1 - cosine for embeddings. CR: bytes of the
rows in fp32 by the bytes that cross. Interval: 90 %, bootstrap over items.
"""

import argparse
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from prism.adapters import adapter_for
from prism.model import _with_stack
from prism.partition import Partition, segments_for_rate
from prism.zoo import load_model

from assets import cache_folder  # isort: skip
from variant_list import CORE, EVERYTHING_ON, candidates  # isort: skip
from variant_report import plot, table  # isort: skip
from variant_schemes import Coder, Scheme, Sent  # isort: skip

OUT = Path(__file__).parent / "results" / "variants"
SEED = 0


@dataclass(frozen=True)
class Subject:
    """A model with its items: batches of keyword arguments, labels where there are some, and what is compared."""

    name: str
    model: Any
    batches: list[dict[str, Tensor]]
    calibration: list[dict[str, Tensor]]
    labels: Tensor | None
    kind: str  # class, embedding or next


def run(subject: Subject, kwargs: dict[str, Tensor], scheme: Scheme, parts: int) -> tuple[Tensor, float]:
    """The model's output with `parts` parts, and the bits that all of them sent per sample and peer."""
    adapter = adapter_for(subject.model)
    blocks = list(adapter.blocks())
    coders: list[Coder] = []

    def stack(x_BND: Tensor, *_: Any, **__: Any) -> Tensor:
        partition = Partition.even(x_BND.shape[1], parts)
        bounds = [partition.bounds(p) for p in range(parts)]
        coders.extend(Coder(scheme, *each) for each in bounds)
        for index, block in enumerate(blocks):
            x_BND = step(block, index, x_BND, bounds)
        return x_BND

    def at(places: Tensor) -> Tensor | None:
        return adapter.rotation(places[None]) if adapter.rotation else None

    def step(block: Any, index: int, x_BND: Tensor, bounds: list[tuple[int, int]]) -> Tensor:
        places = torch.arange(x_BND.shape[1]).float()
        query, key, value = block.project(x_BND, at(places))
        seen = _without_norm(block, x_BND) if scheme.after_norm else x_BND
        bare = _Bare(block) if scheme.after_norm else block
        received = [
            c(index, seen[:, a:b], lambda x, places: block.project_kv(x, at(places))[0])
            for c, (a, b) in zip(coders, bounds, strict=True)
        ]
        foreign = [bare.project_kv(s.rows, at(s.positions)) for s in received]
        out = []
        for p, (a, b) in enumerate(bounds):
            others = [q for q in range(parts) if q != p and (q < p or not adapter.causal)]
            keys = torch.cat([key[:, :, a:b], *(foreign[q][0] for q in others)], 2)
            values = torch.cat([value[:, :, a:b], *(foreign[q][1] for q in others)], 2)
            bias = _bias(query[:, :, a:b], [received[q] for q in others], adapter.causal, block.scale)
            mixed = F.scaled_dot_product_attention(
                query[:, :, a:b], keys, values, attn_mask=bias, scale=block.scale
            )
            out.append(block.finish(x_BND[:, a:b], mixed.transpose(1, 2).flatten(2)))
        return torch.cat(out, 1)

    shell = _with_stack(subject.model, adapter.stack_path, stack)
    return _output(subject, shell(**{**adapter.forced, **kwargs})), sum(c.bits for c in coders)


def _output(subject: Subject, out: Any) -> Tensor:
    """Logits [items, classes], or unit embeddings; of a language model the logits at every position."""
    if subject.kind == "embedding":
        return F.normalize(out.last_hidden_state.mean(1), dim=-1)
    return out if isinstance(out, Tensor) else out.logits


def _bias(query: Tensor, received: Sequence[Sent], causal: bool, scale: float) -> Tensor:
    own = query.shape[2]
    counts = torch.cat([torch.ones(own), *(s.counts for s in received)])
    bias = counts.log().expand(own, -1).clone()
    if causal:
        bias[:, :own].masked_fill_(torch.ones(own, own, dtype=torch.bool).triu(1), torch.finfo().min)
    if not received or received[0].variance is None:
        return bias
    # log mean exp(q k) = q mean(k) + q' Cov(k) q / 2 for Gaussian keys, with Cov(k) = variance times the identity
    spread = torch.cat([s.variance for s in received if s.variance is not None], 2)
    extra = 0.5 * scale**2 * query.pow(2).sum(-1, keepdim=True) * spread.unsqueeze(2)
    return bias + torch.cat([torch.zeros(*extra.shape[:3], own), extra], 3)


_NORMS = ("norm1", "ln_1", "input_layernorm")


def _norm_of(block: Any) -> tuple[Any, str]:
    inner = getattr(block, "_block", None) or block._layer
    return inner, next(name for name in _NORMS if hasattr(inner, name))


def _without_norm(block: Any, x: Tensor) -> Tensor:
    inner, name = _norm_of(block)
    return getattr(inner, name)(x)


class _Bare:
    """A block whose projection of received rows skips the norm."""

    def __init__(self, block: Any) -> None:
        self._block = block

    def project_kv(self, z: Tensor, at: Tensor | None) -> Any:
        inner, name = _norm_of(self._block)
        norm = inner._modules[name]
        inner._modules[name] = torch.nn.Identity()
        try:
            return self._block.project_kv(z, at)
        finally:
            inner._modules[name] = norm


# -- subjects -----------------------------------------------------------------------------------------


def images(cache: Path, items: int) -> Subject:
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
        "dinov2-fashion", loaded.model, [{"x": b} for b in x.split(50)],
        [{"x": read("train", 64)[0]}], y, "class",
    )  # fmt: skip


def texts(cache: Path, name: str, data: str, kind: str, items: int) -> Subject:
    """Texts of at least 256 tokens, cut there: nothing is padding."""
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
    makers = {
        "dinov2-fashion": lambda: images(cache, 100),
        "minilm-bbc": lambda: texts(cache, "minilm-bbc", "bbc", "class", 30),
        "minilm": lambda: texts(cache, "minilm", "bbc", "embedding", 20),
        "gpt2-brown": lambda: texts(cache, "gpt2-brown", "brown", "next", 16),
        "smollm2-135m": lambda: texts(cache, "smollm2-135m", "bbc", "next", 4),
    }
    for name in wanted or makers:
        yield makers[name]()


# -- measuring ----------------------------------------------------------------------------------------


def losses(subject: Subject, reference: Tensor, found: Tensor) -> dict[str, Tensor]:
    """Per item: the loss, agreement with the reference's choice, cosine of the outputs."""
    cosine = F.cosine_similarity(reference, found, dim=-1)
    if subject.kind == "embedding":
        return {"loss": 1 - cosine, "cosine": cosine}
    kl = F.kl_div(found.log_softmax(-1), reference.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    agree = (reference.argmax(-1) == found.argmax(-1)).float()
    each = {"loss": kl, "agreement": agree, "cosine": cosine}
    return {k: v.mean(1) if v.ndim == 2 else v for k, v in each.items()}


def metric(subject: Subject, out: Tensor, labels: Tensor) -> Tensor:
    """Per item: correct or not, or the mean log-likelihood of the next tokens."""
    if subject.kind == "next":
        return -F.cross_entropy(out[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none").mean(1)
    return (out.argmax(-1) == labels).float()


@torch.inference_mode()
def measure(subject: Subject, reference: list[Tensor], scheme: Scheme, parts: int) -> dict[str, Any]:
    kept: dict[str, list[Tensor]] = {}
    bits = 0.0
    labels = subject.labels.split(len(reference[0])) if subject.labels is not None else [None] * len(reference)
    for kwargs, whole, label in zip(subject.batches, reference, labels, strict=True):
        out, bits = run(subject, kwargs, scheme, parts)
        for key, values in losses(subject, whole, out).items():
            kept.setdefault(key, []).append(values)
        if label is not None:
            kept.setdefault("metric", []).append(metric(subject, out, label))
    found = {key: torch.cat(values).double().numpy() for key, values in kept.items()}
    spec = adapter_for(subject.model).spec
    tokens = next(iter(subject.batches[0].values())).shape[1] if subject.kind != "class" or spec.family != "vit" else spec.tokens
    draws = np.random.default_rng(SEED).choice(found["loss"], (1000, len(found["loss"]))).mean(1)
    row = {
        "cr": round(32 * tokens * spec.width * spec.blocks / bits, 3) if bits else None,
        "loss": float(found["loss"].mean()),
        "ci90": [float(x) for x in np.quantile(draws, (0.05, 0.95))],
        **{key: float(found[key].mean()) for key in ("agreement", "cosine", "metric") if key in found},
        "n": len(found["loss"]),
    }  # fmt: skip
    if subject.kind == "next":
        row["perplexity"] = float(np.exp(-row.pop("metric")))
    return row


@torch.inference_mode()
def sensitivity(subject: Subject, parts: int, segments: int) -> list[float]:
    """Loss on the calibration items when one block alone exchanges so few means, the others everything."""
    tokens = subject.calibration[0]
    blocks = adapter_for(subject.model).spec.blocks
    whole, _ = run(subject, tokens, Scheme(), parts)
    lost = []
    for block in range(blocks):
        each = tuple(segments if b == block else 10_000 for b in range(blocks))
        out, _ = run(subject, tokens, Scheme(segments=each), parts)
        lost.append(float(losses(subject, whole, out)["loss"].mean()))
    return lost


def spread_budget(lost: Sequence[float], mean: int, most: int) -> tuple[int, ...]:
    """L per block around `mean`, in proportion to the square root of what a block loses, at least 1, never more in all."""
    shares = np.sqrt(np.maximum(lost, 1e-12))
    shares = shares / shares.mean()
    found = np.clip(np.floor(shares * mean), 1, most).astype(int)
    return tuple(int(x) for x in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=cache_folder())
    parser.add_argument("--models", default="")
    parser.add_argument("--only", default="", help="variants whose names contain one of these")
    parser.add_argument("--core", action="store_true", help="the variants of variant_list.CORE alone")
    parser.add_argument("--devices", default="2,3,4")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.manual_seed(SEED)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "cells.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    done = {(r["model"], r["devices"], r["variant"]) for r in map(msgspec.json.decode, lines)}
    for subject in subjects(args.cache, [m for m in args.models.split(",") if m]):
        with torch.inference_mode():
            reference = [_output(subject, subject.model(**kwargs)) for kwargs in subject.batches]
        for parts in map(int, args.devices.split(",")):
            spec = adapter_for(subject.model).spec
            tokens = spec.tokens if spec.family == "vit" else 256
            plain = segments_for_rate(tokens, parts, 9.9)
            schemes = candidates(plain, spec.family)
            whole = parts == 2 and subject.name in EVERYTHING_ON and not args.core
            names = [n for n in schemes if whole or n in CORE]
            names = [n for n in names if not args.only or any(o in n for o in args.only.split(","))]
            for name in names:
                if (subject.name, parts, name) in done:
                    continue
                scheme = schemes[name]
                if name.endswith("L per block"):
                    most = tokens // parts
                    budget = spread_budget(sensitivity(subject, parts, plain), plain, most)
                    scheme = Scheme(quantiser=scheme.quantiser, segments=budget)
                began = time.monotonic()
                row = measure(subject, reference, scheme, parts)
                row = {"model": subject.name, "devices": parts, "variant": name, **row}
                with path.open("ab") as file:
                    file.write(msgspec.json.encode(row) + b"\n")
                print(
                    f"{subject.name:14s} P={parts} {name:44s} CR {row['cr'] or 0:7.2f} loss {row['loss']:.5f} "
                    f"[{row['ci90'][0]:.5f} {row['ci90'][1]:.5f}] {time.monotonic() - began:.1f} s", flush=True,
                )  # fmt: skip
    summarise(path, args.out)


def summarise(path: Path, out: Path) -> None:
    """summary.json, table.md and pareto.png of all lines; of a cell measured twice the last."""
    lines = map(msgspec.json.decode, path.read_text().splitlines())
    rows = list({(r["model"], r["devices"], r["variant"]): r for r in lines}.values())
    versions = {"python": platform.python_version(), "torch": str(torch.__version__), "transformers": transformers.__version__}
    summary = {"command": "python experiments/variants.py", "seed": SEED, "versions": versions, "cells": rows}
    (out / "summary.json").write_bytes(msgspec.json.format(msgspec.json.encode(summary), indent=1) + b"\n")
    (out / "table.md").write_text(table(rows))
    plot(rows, out / "pareto.png")


if __name__ == "__main__":
    main()
