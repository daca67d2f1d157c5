"""Fit the built-in profile `x86-core` to the measured traces of results/scaled_grid, and hold it against them.

    python experiments/x86_core.py             # prints terms and errors; writes the profile and summary.json

Compute terms come from the spans (calibration/compute.py), the link's two from whole latencies through the
simulator. Two models were measured: each is also predicted from a fit to the other alone.
"""

import hashlib
import statistics
import sys
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from scipy.optimize import least_squares

from calibration.compute import TERMS, covariance, fit, steps_of
from prism.cost import PROFILES, CalibratedProfile, Term
from prism.perfmap import Cell, PerformanceMap, build_map
from prism.plan import Mode
from prism.pooling import TraceSet, read_traces
from prism.spec import ModelSpec
from prism.zoo import describe
from sim.study import Point, summary

RESULTS = Path(__file__).parent / "results"
TRACES = RESULTS / "scaled_grid" / "traces.tar.xz"
LINK_START = (0.97, 5e-4)  # of the configured rate; seconds a message


def load() -> TraceSet:
    with tempfile.TemporaryDirectory() as folder, tarfile.open(TRACES) as archive:
        archive.extractall(folder, filter="data")
        return read_traces([Path(folder) / "scaled_grid"])


def point(cell: Cell, model: ModelSpec) -> Point:
    return Point(model=model, plan=cell.plan, batch=cell.batch, link=cell.link)


def predicted_ms(profile: CalibratedProfile, cells: Sequence[Cell], models: dict[str, ModelSpec]) -> Any:
    model = profile.model()
    return np.array([summary(profile, model, point(c, models[c.model])).latency_ms.p50 for c in cells])


def profile_of(traces: TraceSet, cells: Sequence[Cell], models: dict[str, ModelSpec]) -> CalibratedProfile:
    """Terms from the traces and cells given, and from no others."""
    steps = steps_of([file.trace for file in traces.files], models)
    values, spread = fit(steps), covariance(steps)
    digest = hashlib.sha256(TRACES.read_bytes()).hexdigest()
    source = "spans of results/scaled_grid, visits bootstrapped"
    unknown = "the traces don't tell it from the other terms; 0"
    size = len(TERMS)

    def made(link: Sequence[float], link_covariance: Any) -> CalibratedProfile:
        terms = [
            Term(
                name=name,
                value=value,
                origin="fitted" if value else "prior",
                source=source if value else unknown,
            )
            for name, value in values.items()
        ]
        terms += [
            Term(name="link.gain", value=float(link[0]), origin="fitted", source="latencies through the simulator"),
            Term(name="link.message_s", value=float(link[1]), origin="fitted", source="latencies through the simulator"),
            Term(name="overlap.power", value=1.0, origin="prior", source="a CPU launches and works by turns"),
        ]  # fmt: skip
        whole = np.zeros((size + 3, size + 3))
        whole[:size, :size], whole[size : size + 2, size : size + 2] = spread, link_covariance
        batches, rates = [c.batch for c in cells], [c.bandwidth_mbps for c in cells if c.bandwidth_mbps]
        known = {name: models[name] for name in {c.model for c in cells}}
        messages = [c.bytes_per_exchange for c in cells if c.plan.ranks > 1]
        return CalibratedProfile(
            name="x86-core", device="one core of an AMD EPYC, one thread, in the testbed", power_mode="shared host",
            note="experiments/x86_core.py: a virtual machine's cores; times compare plans, they are no board's",
            staged=False, terms=tuple(terms), covariance=tuple(tuple(map(float, row)) for row in whole),
            traces=(digest,),
            ranges={
                "batch": (min(batches), max(batches)), "devices": (1, 2), "link_mbps": (min(rates), max(rates)),
                "message_bytes": (min(messages), max(messages)),
                **{key: _range(getattr(m, key) for m in known.values()) for key in ("tokens", "width", "blocks")},
            },
        )  # fmt: skip

    shared = [cell for cell in cells if cell.plan.ranks > 1]
    measured = np.array([cell.latency_ms.p50 for cell in shared])

    def misfit(logs: Any) -> Any:
        return np.log(predicted_ms(made(np.exp(logs), np.zeros((2, 2))), shared, models) / measured)

    found = least_squares(misfit, np.log(LINK_START), loss="soft_l1", f_scale=0.05, diff_step=1e-2)
    noise = float(np.var(misfit(found.x)))
    profile = made(np.exp(found.x), noise * np.linalg.pinv(found.jac.T @ found.jac))
    errors = np.log(predicted_ms(profile, cells, models) / [cell.latency_ms.p50 for cell in cells])
    return msgspec.structs.replace(profile, residual_log_sd=1.4826 * float(np.median(np.abs(errors))))


def _range(values: Any) -> tuple[float, float]:
    known = list(values)
    return (min(known), max(known))


def score(
    profile: CalibratedProfile, cells: Sequence[Cell], models: dict[str, ModelSpec], measured: PerformanceMap
) -> dict[str, Any]:
    """Errors of the latencies, and whether the side of local on which each plan lies is right."""
    guessed = predicted_ms(profile, cells, models)
    error = [100 * (ms / cell.latency_ms.p50 - 1) for ms, cell in zip(guessed, cells, strict=True)]
    by_mode: dict[str, list[float]] = defaultdict(list)
    local = {
        cell.workload: ms for cell, ms in zip(cells, guessed, strict=True) if cell.plan.mode is Mode.LOCAL
    }
    right, ties = [], 0
    for cell, ms, each in zip(cells, guessed, error, strict=True):
        by_mode[cell.plan.mode.value].append(each)
        theirs = measured.local(cell.workload)
        if cell.plan.mode is Mode.LOCAL or theirs is None:
            continue
        if cell.within_noise(theirs):
            ties += 1
        else:
            right.append((ms < local[cell.workload]) == (cell.latency_ms.p50 < theirs.latency_ms.p50))
    return {
        "cells": len(cells), "latency_mape_pct": statistics.fmean(map(abs, error)),
        "mean_error_by_mode_pct": {mode: statistics.fmean(values) for mode, values in by_mode.items()},
        "decisions": len(right), "decision_accuracy_pct": 100 * statistics.fmean(right), "near_tie_cells": ties,
    }  # fmt: skip


def main() -> None:
    traces = load()
    measured = build_map(traces)
    models = {name: describe(name) for name in {cell.model for cell in measured.cells}}
    profile = profile_of(traces, measured.cells, models)
    for term in profile.terms:
        print(f"{term.name:22} {term.value:10.3g}  {term.origin}: {term.source}")
    found = {"fitted to both": score(profile, measured.cells, models, measured)}
    for name in sorted(models):
        part = TraceSet(files=tuple(file for file in traces.files if file.trace.header.model != name))
        other = profile_of(part, [cell for cell in measured.cells if cell.model != name], models)
        held = [cell for cell in measured.cells if cell.model == name]
        found[f"{name} from the other model alone"] = score(other, held, models, measured)
    text = msgspec.json.format(msgspec.json.encode(found), indent=1)
    print(text.decode())
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else PROFILES / "x86-core.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(profile), indent=1) + b"\n")
    (RESULTS / "x86_core").mkdir(exist_ok=True)
    (RESULTS / "x86_core" / "summary.json").write_bytes(text + b"\n")


if __name__ == "__main__":
    main()
