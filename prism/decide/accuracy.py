"""Look up what each plan costs in accuracy, in a table that `prism-hw evaluate` measures. No tensors here."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import msgspec

from prism.codecs import CODECS
from prism.config import load_json
from prism.errors import ConfigError
from prism.plan import LOCAL, ExecutionPlan, Mode

Metric = Literal["top1", "perplexity", "pearson", "cosine"]
RISING: tuple[Metric, ...] = ("top1", "pearson", "cosine")  # the higher the better
VERSION = 1


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """How good answers are.

    value: the metric. loss: of the metric against the uncompressed model, positive where the plan is worse (of a
    perplexity the ratio minus 1). ci90: paired bootstrap interval of the loss.
    agreement: share of samples (tokens, for a causal model) with the uncompressed model's answer, or the mean cosine of
    embeddings. worse, better: samples that became wrong, or right.
    kl_*, logit_cosine, relative_l2: against the uncompressed model's output.
    spearman: for rated pairs, beside Pearson's correlation.
    """

    value: float
    value_ci90: tuple[float, float]
    loss: float
    ci90: tuple[float, float]
    agreement: float
    agreement_ci90: tuple[float, float]
    worse: int
    better: int
    mcnemar_p: float | None
    kl_mean: float | None
    kl_median: float | None
    kl_p99: float | None
    logit_cosine: float
    relative_l2: float
    spearman: float | None = None


class PlanAccuracy(Figures, frozen=True, kw_only=True):
    """One plan over `n` samples. cr: rows and codec together, bytes of a full fp32 exchange over this plan's."""

    plan: ExecutionPlan
    cr: float
    bytes_per_exchange: int
    gflops_per_device: float
    ms: float | None = None
    joules: float | None = None


class AccuracyTable(msgspec.Struct, frozen=True, kw_only=True):
    """Plans of one model over one set of data."""

    version: int = VERSION
    created: str
    command: str
    model: str
    weights: str
    data: str
    n: int
    unreadable: tuple[str, ...] = ()
    metric: Metric
    tokens: int
    config: dict[str, Any] = {}
    host: dict[str, Any] = {}
    rows: tuple[PlanAccuracy, ...]

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise ValueError(f"version {self.version} is not {VERSION}; run prism-hw evaluate again")

    def save(self, path: Path) -> None:
        """Write the table as JSON. Raises ConfigError where it can't be written."""
        try:
            path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")
        except OSError as error:
            raise ConfigError(f"{path} can't be written ({error.strerror}); choose another place") from None


def load_accuracy(path: Path) -> AccuracyTable:
    """Read an accuracy table. Raises ConfigError for another file."""
    return load_json(path, AccuracyTable)


def answers_alike(plan: ExecutionPlan) -> ExecutionPlan:
    """Drop what doesn't change a plan's answers: replicas, who embeds, the collective, overlap, microbatches.

    Stages change them where a codec is lossy: rows between stages cross in it too.
    """
    alike = {_answers_of(plan.replica(k)) for k, weight in enumerate(plan.replica_weights) if weight}
    return alike.pop() if len(alike) == 1 else plan  # replicas of unlike parts answer unlike


def _answers_of(replica: ExecutionPlan) -> ExecutionPlan:
    plain = replica.stage(0) if CODECS[replica.wire].lossless else replica
    return ExecutionPlan(
        mode=plain.mode,
        devices=plain.ranks,
        segments=plain.segments,
        wire=plain.wire,
        weights=plain.weights,
        stages=plain.stages,
        boundaries=plain.boundaries,
    )


def is_exact(plan: ExecutionPlan) -> bool:
    """Say whether a plan gives the uncompressed model's answers by construction: nothing is averaged or rounded."""
    exchanged = plan.mode in (Mode.LOCAL, Mode.FULL)
    return plan.ranks == 1 or (exchanged and CODECS[plan.wire].lossless)


class AnswerQuality(msgspec.Struct, frozen=True):
    """What policies read of a plan's answers; None where not measured. accuracy: only of a metric that rises."""

    accuracy: float | None
    agreement: float | None


class Answers:
    """Look plans up in the tables of one model. An exact plan agrees with the model, measured or not."""

    def __init__(self, tables: Iterable[AccuracyTable], model: str) -> None:
        self._by_plan: dict[ExecutionPlan, AnswerQuality] = {}
        for table in tables:
            if Path(table.model).name != Path(model).name:  # one folder may be given by several paths
                raise ConfigError(
                    f"the accuracy table is of {table.model!r}, the model is {model!r}; run prism-hw evaluate {model}"
                )
            for row in table.rows:
                value = row.value if table.metric in RISING else None
                self._by_plan[answers_alike(row.plan)] = AnswerQuality(value, row.agreement)

    def of(self, plan: ExecutionPlan) -> AnswerQuality:
        """Look up a plan; figures of None where no table has it."""
        key = LOCAL if is_exact(plan) else answers_alike(plan)
        quality = self._by_plan.get(key, AnswerQuality(None, None))
        return AnswerQuality(quality.accuracy, 1.0) if is_exact(plan) else quality
