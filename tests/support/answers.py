"""Accuracy tables as `prism-hw evaluate` writes them, from a few numbers."""

from prism.decide.accuracy import AccuracyTable, PlanAccuracy
from prism.plan import ExecutionPlan


def accuracy_table(model: str, of: dict[ExecutionPlan, tuple[float, float]], metric: str = "top1") -> AccuracyTable:
    """of: value and agreement of each plan."""
    rows = tuple(
        PlanAccuracy(
            plan=plan,
            cr=1.0,
            bytes_per_exchange=0,
            gflops_per_device=1.0,
            value=value,
            value_ci90=(value, value),
            loss=0.0,
            ci90=(0.0, 0.0),
            agreement=agreement,
            agreement_ci90=(agreement, agreement),
            worse=0,
            better=0,
            mcnemar_p=None,
            kl_mean=None,
            kl_median=None,
            kl_p99=None,
            logit_cosine=1.0,
            relative_l2=0.0,
        )
        for plan, (value, agreement) in of.items()
    )
    return AccuracyTable(
        created="", command="", model=model, weights="", data="", n=100, metric=metric, tokens=1, rows=rows
    )
