"""Replay active profiling on the measured map of scaled_grid, and count the visits that it saves.

    python -m experiments.active_profiling.run

The policy of `prism-hw profile --active` chooses visits one by one, and is handed the visits that were measured, in
their order. The alternative is a shuffled order of the same visits. The result, printed and written to
experiments/results/active_profiling/summary.json, has two figures. One is the number of visits after which the
decisions stay those of the full grid on every pair that is no near tie. The other is the regret against the full grid's
medians where the policy stops by itself."""

import random
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from calibration.next_visit import Candidate, candidate, expected, pick
from experiments.lib.places import RESULTS
from prism.nn.zoo import describe
from prism.perfmap import Cell, load_map

TARGET_PCT = 1.0
SHUFFLES = 20
Choose = Callable[[list[list[float]]], int | None]


def wrong(
    cells: Sequence[Cell], candidates: Sequence[Candidate], visits: Sequence[Sequence[float]]
) -> tuple[int, float]:
    """Count decisions that differ from the full grid's, near ties left out, and average the regret over all pairs.

    A cell without a visit is decided by what the model of cost expects of it, whichever order chose the visits."""
    guess = expected(candidates, visits) if any(visits) else [0.0] * len(cells)
    local = {cell.batch: k for k, cell in enumerate(cells) if cell.plan.ranks == 1}
    differ, lost = 0, []
    for k, cell in enumerate(cells):
        if cell.plan.ranks == 1:
            continue
        twin = local[cell.batch]
        distribute = bool(guess[k] < guess[twin])
        ours, theirs = cell.latency_ms.p50, cells[twin].latency_ms.p50
        lost.append((ours if distribute else theirs) / min(ours, theirs) - 1)
        differ += not cell.within_noise(cells[twin]) and distribute != (ours < theirs)
    return differ, 100 * statistics.fmean(lost)


def replay(cells: Sequence[Cell], candidates: Sequence[Candidate], choose: Choose) -> dict[str, Any]:
    """Replay a chooser; return the visits until the decisions stay right, and where it stops."""
    visits: list[list[float]] = [[] for _ in cells]
    history = [wrong(cells, candidates, visits)]
    while (place := choose(visits)) is not None:
        visits[place].append(cells[place].visit_p50_ms[len(visits[place])])
        history.append(wrong(cells, candidates, visits))
    settled = max((k + 1 for k, (differ, _) in enumerate(history) if differ), default=0)
    return {
        "visits": len(history) - 1,
        "decisions_wrong_at_end": history[-1][0],
        "regret_pct_at_end": history[-1][1],
        "visits_until_decisions_stay": settled if settled < len(history) else None,
    }


def actively(cells: Sequence[Cell], candidates: Sequence[Candidate]) -> Choose:
    """Choose visits as active profiling does."""

    def choose(visits: list[list[float]]) -> int | None:
        found = pick(candidates, visits, min(cell.visits for cell in cells))
        return None if found.regret_pct <= TARGET_PCT else found.place

    return choose


def shuffled(cells: Sequence[Cell], seed: int) -> Choose:
    """Choose visits in a shuffled order, every cell once before any comes again."""
    order = [k for repeat in range(5) for k in random.Random(f"{seed}-{repeat}").sample(range(len(cells)), len(cells))]
    todo = iter(order)
    return lambda visits: next((k for k in todo if len(visits[k]) < cells[k].visits), None)


def main() -> None:
    found: dict[str, Any] = {"target_regret_pct": TARGET_PCT}
    cells = load_map(RESULTS / "scaled_grid" / "map.json").cells
    for model in sorted({cell.model for cell in cells}):
        mine, spec = [cell for cell in cells if cell.model == model], describe(model)
        candidates = [candidate(spec, cell.plan, cell.batch, cell.link, cell.tokens) for cell in mine]
        orders = [replay(mine, candidates, shuffled(mine, seed)) for seed in range(SHUFFLES)]
        found[model] = {
            "cells": len(mine),
            "visits_full_grid": sum(cell.visits for cell in mine),
            "active": replay(mine, candidates, actively(mine, candidates)),
            "shuffled_visits_until_decisions_stay": sorted(each["visits_until_decisions_stay"] for each in orders),
        }
    text = msgspec.json.format(msgspec.json.encode(found), indent=1)
    print(text.decode())
    (RESULTS / "active_profiling").mkdir(exist_ok=True)
    (RESULTS / "active_profiling" / "summary.json").write_bytes(text + b"\n")


if __name__ == "__main__":
    main()
