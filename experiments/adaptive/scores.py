"""Score the slots."""

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np

from experiments.adaptive.coarser_maps import on_every_map
from experiments.adaptive.plans import MODEL, SLOT_S, STATIC, known_map, looked_up
from prism.decide.log import Decided, DecisionLog
from prism.decide.table import Objective, Observation, Table, table_of


def with_lookups(rows: list[dict[str, Any]], log: DecisionLog) -> list[dict[str, Any]]:
    """Add to each row what was observed before each batch, and what the published look-up would have chosen."""
    table = Table(log.header.rows)
    every = iter([entry.observation for entry in log.entries if isinstance(entry, Decided)])
    seen = [[next(every) for _ in row["adaptive"]] for row in rows]
    return [
        {**row, "seen": each, "lookups": [looked_up(one, table) for one in each]}
        for row, each in zip(rows, seen, strict=True)
    ]


def judged(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Score the adaptive batches of all slots against the static plans, the look-ups and the oracle."""
    table = table_of([known_map()], MODEL)
    _add_scores(rows, table)

    def over(name: str, what: str = "prism") -> float:
        """Divide the total latency of the adaptive batches by another's, in the slots that have both."""
        both = [row for row in rows if row.get(name) is not None and what in row]
        return float(sum(row[what] for row in both) / sum(row[name] for row in both))

    modes, best = [mode for row in rows for mode in row["modes"]], [row["best_by_map"] for row in rows]
    believed = [(row["believed_bps"], row["rate_bps"]) for row in rows if row["believed_bps"]]
    return {
        "slots": len(rows),
        "adaptive_batches": len(modes),
        "modes": dict(Counter(modes)),
        "adaptive_over_oracle": over("oracle"),
        "adaptive_over_full": over("full"),
        "adaptive_over_local": over("local"),
        "adaptive_over_means": over("means"),
        "adaptive_over_best_static": max(over("local"), over("means")),
        "adaptive_over_published_lookup": over("lookup"),
        "adaptive_over_told_lookup": over("told"),
        "choices_over_oracle": over("oracle", "chosen"),
        "choices_over_published_lookup": over("lookup", "chosen"),
        "switches": sum(a != b for a, b in itertools.pairwise(modes)),
        "crossings": sum(a != b for a, b in itertools.pairwise(best)),
        "on_every_map": on_every_map(
            table,
            [({plan: row[name] for name, plan in STATIC.items() if name in row}, row.pop("seen")) for row in rows],
        ),
        "failed": sum(row["failed"] for row in rows),
        "rate_error_p50": float(np.median([abs(math.log(a / b)) for a, b in believed])),
    }


def _add_scores(rows: list[dict[str, Any]], table: Table) -> None:
    """Add to each row the times of the adaptive choices, the look-ups and the oracle in that slot."""
    before = rows[0]["rate_bps"]
    for row in rows:
        at_s = SLOT_S * row["slot"]
        told = Observation(batch=1, devices=2, bandwidth_bps=before, at_s=at_s)
        before = row["rate_bps"]
        seen = Observation(batch=1, devices=2, bandwidth_bps=row["rate_bps"], at_s=at_s)
        row["prism"] = float(np.mean(row["adaptive"]))
        ran = [next(name for name, plan in STATIC.items() if plan.mode.value == mode) for mode in row["modes"]]
        if all(name in row for name in ran):
            row["chosen"] = float(np.mean([row[name] for name in ran]))
        if all(name in row for name in row["lookups"]):
            row["lookup"] = float(np.mean([row[name] for name in row["lookups"]]))
        row["told"] = row.get(looked_up(told, table))
        row["oracle"] = min(row[name] for name in STATIC if name in row)
        row["best_by_map"] = next(table.at(seen, Objective()).ranked()).plan.mode.value
