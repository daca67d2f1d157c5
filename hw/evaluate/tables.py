"""An accuracy table as texts by column, as a table for the console, and as rows of a Parquet file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from rich.table import Table

from prism.decide.accuracy import AccuracyTable, Metric, PlanAccuracy
from prism.errors import ConfigError
from prism.labels import plan_label

NAMES: dict[Metric, str] = {"top1": "top-1", "perplexity": "perplexity", "pearson": "Pearson", "cosine": "cosine"}
LOST: dict[Metric, str] = {"top1": "points lost", "perplexity": "% above", "pearson": "lost", "cosine": "1 - cosine"}
SCALE: dict[Metric, float] = {"top1": 100.0, "perplexity": 100.0, "pearson": 1.0, "cosine": 1.0}
Columns = dict[str, Callable[[PlanAccuracy], str]]  # how each column writes its text of a row

COST: Columns = {
    "plan": lambda row: plan_label(row.plan),
    "CR": lambda row: f"{row.cr:.1f}",
    "bytes": lambda row: f"{row.bytes_per_exchange:,}",
    "GFLOPs": lambda row: f"{row.gflops_per_device:.2f}",
}
OF_METRIC: dict[Metric, Columns] = {
    "top1": {
        "worse/better": lambda row: f"{row.worse}/{row.better}",
        "McNemar p": lambda row: _number(row.mcnemar_p, "{:.2g}"),
    },
    "pearson": {"Spearman": lambda row: _number(row.spearman, "{:.4g}")},
}
DISTANCE: Columns = {
    "KL mean": lambda row: _number(row.kl_mean, "{:.3g}"),
    "KL p99": lambda row: _number(row.kl_p99, "{:.3g}"),
    "cosine": lambda row: f"{row.logit_cosine:.4f}",
    "rel. L2": lambda row: f"{row.relative_l2:.3f}",
}
TIMED: Columns = {
    "ms": lambda row: _number(row.ms, "{:.1f}"),
    "J": lambda row: "not measured" if row.joules is None else f"{row.joules:.2f}",
}


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def columns(table: AccuracyTable) -> list[tuple[str, Callable[[PlanAccuracy], str]]]:
    """List the columns of a table of this metric: each with its head, and how it writes its text of a row."""
    metric, scale = table.metric, SCALE[table.metric]
    lost: Columns = {
        NAMES[metric]: lambda row: f"{100 * row.value:.2f} %" if metric == "top1" else f"{row.value:.4g}",
        LOST[metric]: lambda row: f"{scale * row.loss:.3g}",
        "90 %": lambda row: f"{scale * row.ci90[0]:.3g} to {scale * row.ci90[1]:.3g}",
        "agreement": lambda row: f"{100 * row.agreement:.2f} %",
    }
    parts = [COST, lost, OF_METRIC.get(metric, {}), DISTANCE, TIMED if _timed(table) else {}]
    return [column for part in parts for column in part.items()]  # the cosine may stand twice: as metric, as distance


def _timed(table: AccuracyTable) -> bool:
    return any(row.ms is not None for row in table.rows)


def console_table(table: AccuracyTable) -> Table:
    """Show what fits the console; the page has all."""
    timed, metered = _timed(table), any(row.joules is not None for row in table.rows)
    heads = ["plan", "CR", NAMES[table.metric], LOST[table.metric], "90 %", "agreement"]
    heads += ["ms"] if timed else ["KL mean"]
    heads += ["J"] if metered else []
    caption = f"{table.model} on {table.data}, {table.n} samples; agreement: with the uncompressed model"
    caption += "; energy not measured" if timed and not metered else ""
    view = Table(*heads, caption=caption, box=None)
    for column in view.columns:
        column.no_wrap = True
        column.justify = "left" if column.header == "plan" else "right"
    texts = dict(reversed(columns(table)))  # of two columns with one head the first
    for row in table.rows:
        view.add_row(*[texts[head](row) for head in heads])
    return view


def write_parquet(table: AccuracyTable, path: Path) -> None:
    """Write one row a plan, its fields flat. Raises ConfigError."""
    import pandas as pd

    try:
        pd.DataFrame([_flat(table, row) for row in table.rows]).to_parquet(path)
    except OSError as error:
        raise ConfigError(f"{path} can't be written ({error}); choose another --output") from None


def _flat(table: AccuracyTable, row: PlanAccuracy) -> dict[str, Any]:
    flat = msgspec.to_builtins(row)
    plan = flat.pop("plan")
    intervals = {name: flat.pop(name) for name in ("ci90", "value_ci90", "agreement_ci90")}
    ends = {
        f"{name}_{end}": v for name, both in intervals.items() for end, v in zip(("low", "high"), both, strict=True)
    }
    return {"model": table.model, "data": table.data, "n": table.n, "metric": table.metric, **plan, **flat, **ends}
