"""Measure what a variant loses against the uncompressed model."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.variants.forward import Subject, run
from experiments.variants.schemes import Scheme
from experiments.variants.subjects import SEED
from prism.nn.families import adapter_for
from prism.trace.quantiles import quantiles


def losses(subject: Subject, reference: Tensor, found: Tensor) -> dict[str, Tensor]:
    """Compute per item the loss, the agreement with the reference's choice, and the cosine of the outputs."""
    cosine = F.cosine_similarity(reference, found, dim=-1)
    if subject.kind == "embedding":
        return {"loss": 1 - cosine, "cosine": cosine}
    kl = F.kl_div(found.log_softmax(-1), reference.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    agree = (reference.argmax(-1) == found.argmax(-1)).float()
    each = {"loss": kl, "agreement": agree, "cosine": cosine}
    return {k: v.mean(1) if v.ndim == 2 else v for k, v in each.items()}


def metric(subject: Subject, out: Tensor, labels: Tensor) -> Tensor:
    """Score each item: correct or not, or the mean log-likelihood of the next tokens."""
    if subject.kind == "next":
        return -F.cross_entropy(out[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none").mean(1)
    return (out.argmax(-1) == labels).float()


@torch.inference_mode()
def measure(subject: Subject, reference: list[Tensor], scheme: Scheme, parts: int) -> dict[str, Any]:
    """Run one variant over all batches; return its line of cells.jsonl."""
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
    return _row(subject, found, bits)


def _row(subject: Subject, found: dict[str, np.ndarray], bits: float) -> dict[str, Any]:
    """Reduce figures of items to their means, with the compression rate and a bootstrap interval of the loss."""
    spec = adapter_for(subject.model).spec
    tokens = (
        next(iter(subject.batches[0].values())).shape[1]
        if subject.kind != "class" or spec.family != "vit"
        else spec.tokens
    )
    draws = np.random.default_rng(SEED).choice(found["loss"], (1000, len(found["loss"]))).mean(1)
    row = {
        "cr": round(32 * tokens * spec.width * spec.blocks / bits, 3) if bits else None,
        "loss": float(found["loss"].mean()),
        "ci90": list(quantiles(draws, 5, 95)),
        **{key: float(found[key].mean()) for key in ("agreement", "cosine", "metric") if key in found},
        "n": len(found["loss"]),
    }
    if subject.kind == "next":
        row["perplexity"] = float(np.exp(-row.pop("metric")))
    return row


@torch.inference_mode()
def sensitivity(subject: Subject, parts: int, segments: int) -> list[float]:
    """Measure the loss on calibration items when one block alone exchanges so few means, and the others everything."""
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
    """Choose L per block around `mean`, in proportion to the square root of the block's loss: at least 1, and no more
    in total."""
    shares = np.sqrt(np.maximum(lost, 1e-12))
    shares = shares / shares.mean()
    found = np.clip(np.floor(shares * mean), 1, most).astype(int)
    return tuple(int(x) for x in found)
