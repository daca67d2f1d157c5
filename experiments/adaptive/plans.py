"""Hold what every part of the adaptive study shares: plans, the measured map, and a run's folder."""

import random
from pathlib import Path

import msgspec

from experiments.lib.places import RESULTS
from prism.decide.accuracy import AccuracyTable, load_accuracy
from prism.decide.policy import LookupPolicy, State
from prism.decide.table import Objective, Observation, Table
from prism.perfmap import PerformanceMap, load_map
from prism.plan import LOCAL, ExecutionPlan, Mode

MODEL, PORT, SLOTS, SLOT_S = "vit_base_patch16_224", 29500, 300, 2.0
FULL = ExecutionPlan(mode=Mode.FULL, devices=2)
MEANS = ExecutionPlan(mode=Mode.SEGMENT_MEANS, devices=2, segments=10)
STATIC = {"local": LOCAL, "means": MEANS, "full": FULL}
FULL_EVERY = 8  # slots: it takes seconds where the link is slow
TIMEOUT_S = 15.0  # the slowest full exchange must be measured, not given up


def known_map() -> PerformanceMap:
    """Read the measured map, without plans that this study does not run."""
    whole = load_map(RESULTS / "scaled_grid" / "map.json")
    cells = tuple(cell for cell in whole.cells if cell.model == MODEL and cell.plan in STATIC.values())
    return msgspec.structs.replace(whole, cells=cells)


def objective_of(folder: Path) -> Objective:
    """Read the objective of a run's folder; the default where none was set."""
    path = folder / "objective.json"
    return msgspec.json.decode(path.read_bytes(), type=Objective) if path.exists() else Objective()


def answers_of(folder: Path) -> list[AccuracyTable]:
    """Read the accuracy table of a run's folder, where there is one."""
    return [load_accuracy(folder / "accuracy.json")] if (folder / "accuracy.json").exists() else []


def contenders(slot: int, rng: random.Random) -> list[str]:
    """Shuffle what runs in a slot."""
    names = ["adaptive", "local", "means"] + (["full"] if slot % FULL_EVERY == 0 else [])
    rng.shuffle(names)
    return names


def named(plan: ExecutionPlan) -> str:
    """Name a plan of STATIC."""
    return next(name for name, each in STATIC.items() if each == plan)


def looked_up(seen: Observation, table: Table) -> str:
    """Name the plan that the published look-up chooses."""
    return named(LookupPolicy().decide(seen, table, Objective(), State()).plan)
