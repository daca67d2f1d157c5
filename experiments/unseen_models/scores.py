"""Predict held-out cells, and compare the predictions with the measurements."""

import hashlib
import os
from pathlib import Path
from typing import Any

import msgspec

from calibration.decision_scores import Guess
from calibration.fit import Calibration, calibrate
from calibration.validate import compared
from experiments.unseen_models.sets import SWEEPS, HeldOut, key_of, points_of
from hw.sweep.runner import Report
from prism.config import load_json
from prism.cost import CalibratedProfile
from prism.errors import PrismError
from prism.nn.zoo import describe
from prism.perfmap import PerformanceMap, build_map
from prism.perfmap.pooling import TraceSet, read_traces
from prism.spec import ModelSpec
from prism.trace import now_text, read_trace
from sim.ask.for_calibration import guess_of, pooled, simulator_of

DRAWS, SEED = 64, 0


class Predicted(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the predictions of held-out cells, by the key of each cell, and when they were made."""

    created: str
    profile: str
    guesses: dict[str, Guess]


def predicted(profile: CalibratedProfile, held_out: HeldOut, folder: Path) -> Predicted:
    """Read the predictions of every held-out cell from the file if there is one, else make and write them."""
    path, digest = folder / "predictions.json", hashlib.sha256(msgspec.json.encode(profile)).hexdigest()
    points = points_of(held_out)
    if path.exists():
        known = load_json(path, Predicted)
        if known.profile != digest:
            raise PrismError(f"{path} was made from another profile; delete it to predict again")
        if known.guesses.keys() != points.keys():
            raise PrismError(f"{path} is of another set of models; give each set an --output of its own")
        return known
    guesses = pooled(guess_of(profile, DRAWS, SEED), list(points.values()), os.cpu_count() or 1)
    found = Predicted(created=now_text(), profile=digest, guesses=dict(zip(points, guesses, strict=True)))
    path.write_bytes(msgspec.json.encode(found))
    return found


def described(traces: TraceSet) -> dict[str, ModelSpec]:
    """Return the shape of each model: from its traces, or by its name where older traces carry no shape."""
    found = traces.shapes()
    return {name: found.get(name) or describe(name) for name in traces.models()}


def held_against(
    found: Calibration, guesses: Predicted, held_out: HeldOut, folder: Path
) -> tuple[Report, PerformanceMap, PerformanceMap, bool]:
    """Return the comparison, both maps, and whether every prediction is older than the first held-out trace."""
    reference = read_traces([folder / "calibration"])
    held = read_traces([folder / name for name in SWEEPS])
    shared = {file.digest for file in held.files} & set(found.profile.traces)
    known = {file.trace.header.model for file in reference.files} & {file.trace.header.model for file in held.files}
    if shared or known:
        raise PrismError(f"held-out traces or models are part of the fit: {sorted(shared) or sorted(known)}")
    measured, learned = build_map(held), build_map(reference)
    models = described(held) | described(reference)
    tokens = {model: sweep.tokens for sweep in held_out.sweeps() for model in sweep.models}
    chosen = [guesses.guesses[key_of(cell, tokens[cell.model])] for cell in measured.cells]
    before = guesses.created <= min(file.trace.header.created for file in held.files)
    return compared(found.profile, measured, chosen, models, learned), measured, learned, before


def left_out(folder: Path) -> dict[str, float]:
    """Fit to all measured models but one, in turn; return the mean absolute error of that one in per cent."""
    traces = read_traces([folder / name for name in ("calibration", *SWEEPS)])
    models = described(traces)
    probes = read_trace(folder / "probes.jsonl").probes
    return calibrate(traces, models, simulator_of(models), "all models", probes).left_out_mape_pct


def passes(map_: PerformanceMap) -> int:
    """Count the measured batches of a map."""
    return sum(cell.batches for cell in map_.cells)


def summary(
    found: Calibration,
    report: Report,
    measured: PerformanceMap,
    learned: PerformanceMap,
    before: bool,
    others: dict[str, float],
) -> Any:
    """Gather the figures that are committed."""
    scores = report.scores
    return {
        "models_calibrated": sorted({cell.model for cell in learned.cells}),
        "models_held_out": sorted({cell.model for cell in measured.cells}),
        "predicted_before_measured": before,
        "cells": scores.cells,
        "latency_mape_pct": scores.latency_mape_pct,
        "decision_accuracy_pct": scores.prism.decision_accuracy_pct,
        "near_tie_cells": scores.near_tie_cells,
        "regret_mean_pct": scores.prism.regret_mean_pct,
        "regret_p95_pct": scores.prism.regret_p95_pct,
        "crossover_log2_median": scores.crossover_log2_median,
        "coverage90_pct": scores.coverage90_pct,
        "measurement_noise_pct": scores.measurement_noise_pct,
        "baselines": scores.baselines,
        "passes_calibration": passes(learned),
        "passes_held_out": passes(measured),
        "fit_mape_pct": found.mape_pct,
        "leave_one_model_out_mape_pct": found.left_out_mape_pct,
        "leave_one_of_all_out_mape_pct": others,
        "scores": scores,
        "slowness": report.slowness,
        "scores_at_measured_pace": report.paced,
    }
