"""Score outputs against the local model's and the labels, and put them in words."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hw.inputs.samples import Sample
from hw.inputs.tally import PredictedLabel, Tally


def score(
    tally: Tally, output: Any, reference: Any, call: dict[str, Any], samples: Sequence[Sample], labels: tuple[str, ...]
) -> None:
    """Add one batch to the tally, at real tokens only: agreement with the reference, top-1 against the labels, and the
    largest error over the reference's largest value.

    reference: None where no device holds the whole model; nothing is compared with it then.
    """
    main = main_tensor(output)
    tally.samples += len(samples)
    tally.kind = ("top-1" if main.ndim == 2 else "token") if _has_logits(output) else "cosine"
    if reference is not None:
        _compare(tally, _real(main, call), _real(main_tensor(reference), call))
    _predict(tally, main, call, samples, labels)


def _compare(tally: Tally, ours: Tensor, theirs: Tensor) -> None:
    error = (ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30)
    tally.max_rel_error = max(tally.max_rel_error, float(error))
    if tally.kind == "cosine":
        same = torch.nn.functional.cosine_similarity(ours.flatten(0, -2), theirs.flatten(0, -2), dim=-1)
    else:
        same = (ours.argmax(-1) == theirs.argmax(-1)).float()
    tally.compared += same.numel()
    tally.agreeing += float(same.sum())


def main_tensor(output: Any) -> Tensor:
    """Take the logits, or the last hidden state of a model without a head."""
    if isinstance(output, Tensor):
        return output
    return output.logits if "logits" in output else output.last_hidden_state


def _has_logits(output: Any) -> bool:
    return isinstance(output, Tensor) or "logits" in output


def _real(main: Tensor, call: dict[str, Any]) -> Tensor:
    mask = call.get("attention_mask")
    if mask is None or main.ndim < 3 or main.shape[1] != mask.shape[1]:
        return main
    return main[mask.bool()]


def _predict(
    tally: Tally, main: Tensor, call: dict[str, Any], samples: Sequence[Sample], labels: tuple[str, ...]
) -> None:
    if tally.kind == "cosine":
        texts: list[tuple[str, float | None]] = [(f"embedding of width {main.shape[-1]}", None)] * len(samples)
    elif tally.kind == "token":
        last = call["attention_mask"].sum(1) - 1
        best = main[torch.arange(len(samples)), last].softmax(-1).max(-1)
        texts = [(f"token {int(i)}", float(p)) for i, p in zip(best.indices, best.values, strict=True)]
    else:
        best = main.softmax(-1).max(-1)
        names = labels or tuple(f"class {index}" for index in range(main.shape[-1]))
        texts = [(names[int(i)], float(p)) for i, p in zip(best.indices, best.values, strict=True)]
    for sample, (text, probability) in zip(samples, texts, strict=True):
        if sample.label is not None and sample.label in labels:
            tally.labelled += 1
            tally.correct += text == sample.label
        tally.predictions.append(
            PredictedLabel(name=sample.name, label=sample.label, predicted=text, probability=probability)
        )
