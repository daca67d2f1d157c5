"""Compare outputs with the uncompressed model's and the labels, for each sample and over all samples of a plan.

Shapes: B batch, T tokens, C classes, V vocabulary, D width; K resamples, n samples.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from hw.evaluate.datasets import RatedPair, Task
from hw.inputs.samples import Sample
from hw.inputs.score import main_tensor
from prism.decide.accuracy import Figures, Metric
from prism.errors import InputError
from prism.trace.quantiles import quantiles

METRICS: dict[Task, Metric] = {"classify": "top1", "language": "perplexity", "embed": "cosine", "pairs": "pearson"}
RESAMPLES = 1000
Floats = NDArray[np.float64]


class SampleScore(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One sample under one plan.

    value: 1 or 0 for a right or wrong label, or a text's negative log-likelihood summed over `tokens`.
    reference: the same of the uncompressed model.
    agreement: 1 or 0, a share of tokens, or a cosine.
    kl: divergence from the uncompressed model's distribution, in nats.
    answer: the class. embedding: only for pairs.
    """

    plan: int
    sample: int
    agreement: float
    cosine: float
    relative_l2: float
    tokens: int = 1
    value: float | None = None
    reference: float | None = None
    kl: float | None = None
    answer: int | None = None
    embedding: tuple[float, ...] | None = None


def scored(
    plan: int,
    numbers: Sequence[int],
    output: Any,
    reference: Any,
    call: dict[str, Tensor],
    samples: Sequence[Sample],
    labels: tuple[str, ...],
    task: Task,
) -> list[SampleScore]:
    """Score the samples of a batch, at real tokens only."""
    ours, theirs = main_tensor(output).float(), main_tensor(reference).float()
    if task == "classify":
        return _classes(plan, numbers, ours, theirs, samples, labels)
    if task == "language":
        rows = zip(numbers, ours, theirs, call["input_ids"], call["attention_mask"].bool(), strict=True)
        return [_text(plan, number, a[m], b[m], ids[m]) for number, a, b, ids, m in rows]
    mask = call.get("attention_mask")
    a, b = _pooled(ours, mask), _pooled(theirs, mask)
    cosine, distance = _likeness(a, b)
    return [
        SampleScore(
            plan=plan,
            sample=number,
            agreement=float(cosine[k]),
            cosine=float(cosine[k]),
            relative_l2=float(distance[k]),
            embedding=tuple(round(v, 6) for v in a[k].tolist()) if task == "pairs" else None,
        )
        for k, number in enumerate(numbers)
    ]


def _classes(
    plan: int,
    numbers: Sequence[int],
    ours_BC: Tensor,
    theirs_BC: Tensor,
    samples: Sequence[Sample],
    labels: tuple[str, ...],
) -> list[SampleScore]:
    a, b = ours_BC.argmax(-1), theirs_BC.argmax(-1)
    cosine, distance = _likeness(ours_BC, theirs_BC)
    kl = _kl(ours_BC, theirs_BC)
    scores = []
    for k, (number, sample) in enumerate(zip(numbers, samples, strict=True)):
        has_label = sample.label in labels
        scores.append(
            SampleScore(
                plan=plan,
                sample=number,
                answer=int(a[k]),
                agreement=float(a[k] == b[k]),
                kl=float(kl[k]),
                cosine=float(cosine[k]),
                relative_l2=float(distance[k]),
                value=float(labels[int(a[k])] == sample.label) if has_label else None,
                reference=float(labels[int(b[k])] == sample.label) if has_label else None,
            )
        )
    return scores


def _text(plan: int, number: int, ours_TV: Tensor, theirs_TV: Tensor, ids_T: Tensor) -> SampleScore:
    """Score a text: every token but the first is predicted from those before it."""
    ours, theirs, next_T = ours_TV[:-1], theirs_TV[:-1], ids_T[1:]
    cosine, distance = _likeness(ours, theirs)
    return SampleScore(
        plan=plan,
        sample=number,
        tokens=len(next_T),
        value=float(F.cross_entropy(ours, next_T, reduction="sum")),
        reference=float(F.cross_entropy(theirs, next_T, reduction="sum")),
        agreement=float((ours.argmax(-1) == theirs.argmax(-1)).float().mean()),
        kl=float(_kl(ours, theirs).mean()),
        cosine=float(cosine.mean()),
        relative_l2=float(distance.mean()),
    )


def _kl(ours: Tensor, theirs: Tensor) -> Tensor:
    return (
        F.kl_div(ours.log_softmax(-1), theirs.log_softmax(-1), reduction="none", log_target=True).sum(-1).clamp(min=0)
    )


def _likeness(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    distance = (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1).clamp(min=1e-12)
    return F.cosine_similarity(ours, theirs, dim=-1), distance


def _pooled(rows_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
    """Average over real tokens, as sentence encoders do; features of an image are pooled already. Returns [B, D]."""
    if mask_BT is None:
        return rows_BTD
    weights = mask_BT.unsqueeze(-1).float()
    return (rows_BTD * weights).sum(1) / weights.sum(1).clamp(min=1)


def figures(
    rows: Sequence[SampleScore], metric: Metric, pairs: Sequence[RatedPair], base: Sequence[SampleScore], seed: int
) -> Figures:
    """Summarise a plan's scores over all samples, in their order. base: those of the uncompressed model.

    Intervals are 90 %, paired, by a bootstrap over samples; for pairs, over the texts that they share.
    """
    from scipy.stats import binomtest, spearmanr

    rng = np.random.default_rng(seed)
    picks_Kn = rng.integers(len(rows), size=(RESAMPLES, len(rows)))
    agreement = np.array([row.agreement for row in rows])
    spearman = None
    if metric == "pearson":
        value, loss = _rated(rows, base, pairs, picks_Kn)
        spearman = float(spearmanr(_cosines(rows, pairs), [pair.score for pair in pairs]).statistic)
    else:
        value, loss = _averaged(rows, metric, picks_Kn)
    kl = np.array([row.kl for row in rows if row.kl is not None])
    worse = sum(row.reference == 1 and row.value == 0 for row in rows) if metric == "top1" else 0
    better = sum(row.reference == 0 and row.value == 1 for row in rows) if metric == "top1" else 0
    kl_median, kl_p99 = quantiles(kl, 50, 99) if len(kl) else (None, None)
    return Figures(
        value=value[0],
        value_ci90=_interval(value[1]),
        loss=loss[0],
        ci90=_interval(loss[1]),
        agreement=float(agreement.mean()),
        agreement_ci90=_interval(agreement[picks_Kn].mean(1)),
        worse=worse,
        better=better,
        mcnemar_p=float(binomtest(worse, worse + better).pvalue) if worse + better else None,
        kl_mean=float(kl.mean()) if len(kl) else None,
        kl_median=kl_median,
        kl_p99=kl_p99,
        logit_cosine=float(np.mean([row.cosine for row in rows])),
        relative_l2=float(np.mean([row.relative_l2 for row in rows])),
        spearman=spearman,
    )


Sampled = tuple[float, Floats]  # a figure, and the same of every resample


def _averaged(rows: Sequence[SampleScore], metric: Metric, picks_Kn: NDArray[np.int64]) -> tuple[Sampled, Sampled]:
    if metric == "cosine":
        cosine = np.array([row.cosine for row in rows])
        mean, means = float(cosine.mean()), cosine[picks_Kn].mean(1)
        return (mean, means), (1 - mean, 1 - means)
    ours = np.array([np.nan if row.value is None else row.value for row in rows])
    theirs = np.array([np.nan if row.reference is None else row.reference for row in rows])
    if metric == "top1":  # samples without a known label are left out
        labelled = np.isfinite(ours)
        with np.errstate(invalid="ignore"):  # a resample may hold none
            labelled_K = labelled[picks_Kn].sum(1)
            right, lost = (np.where(labelled, values, 0.0) for values in (ours, theirs - ours))
            right_share, lost_share = (
                (float(v.sum() / labelled.sum()), v[picks_Kn].sum(1) / labelled_K) for v in (right, lost)
            )
        return right_share, lost_share
    tokens = np.array([row.tokens for row in rows])
    counts_K = tokens[picks_Kn].sum(1)
    value, values = np.exp(ours.sum() / tokens.sum()), np.exp(ours[picks_Kn].sum(1) / counts_K)
    ratio = np.exp((ours - theirs).sum() / tokens.sum()) - 1
    return (float(value), values), (float(ratio), np.exp((ours - theirs)[picks_Kn].sum(1) / counts_K) - 1)


def _rated(
    rows: Sequence[SampleScore], base: Sequence[SampleScore], pairs: Sequence[RatedPair], picks_Kn: NDArray[np.int64]
) -> tuple[Sampled, Sampled]:
    """Correlate cosines with people's ratings (Pearson); a pair counts as often as both of its texts are drawn."""
    scores = np.array([pair.score for pair in pairs])
    a, b = np.array([pair.a for pair in pairs]), np.array([pair.b for pair in pairs])
    draws_Kn = np.stack([np.bincount(picks, minlength=len(rows)) for picks in picks_Kn])
    weights = (draws_Kn[:, a] * draws_Kn[:, b]).astype(float)
    once = np.ones((1, len(pairs)))
    correlations = []
    for scores_of in (rows, base):
        cosine = _cosines(scores_of, pairs)
        with np.errstate(invalid="ignore"):  # a resample may hold too few pairs
            correlations.append((float(_pearson(cosine, scores, once)[0]), _pearson(cosine, scores, weights)))
    (value, values), (reference, references) = correlations
    if not np.isfinite(reference - value):
        raise InputError(f"{len(pairs)} rated pairs are too few or too alike for a correlation; give more")
    return (value, values), (reference - value, references - values)


def _cosines(rows: Sequence[SampleScore], pairs: Sequence[RatedPair]) -> Floats:
    unit = np.array([row.embedding for row in rows])
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return np.array([unit[pair.a] @ unit[pair.b] for pair in pairs])


def _pearson(x: Floats, y: Floats, weights: Floats) -> Floats:
    total = weights.sum(1)
    mean_x, mean_y = weights @ x / total, weights @ y / total
    cov = weights @ (x * y) / total - mean_x * mean_y
    return cov / np.sqrt((weights @ x**2 / total - mean_x**2) * (weights @ y**2 / total - mean_y**2))


def _interval(values: Floats) -> tuple[float, float]:
    low, high = quantiles(values[~np.isnan(values)], 5, 95)  # a resample may be too small for a figure
    return low, high
