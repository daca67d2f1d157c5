"""The flagship: profile three small models, predict seven to nine others, and only then measure those.

    python experiments/unseen_models.py
    python experiments/unseen_models.py --held-out third      # an older set

Probe and three small models on the testbed -> a profile -> predictions of every held-out cell, written to a file ->
the held-out models measured -> predictions against measurements. Runs unattended for about an hour as
root on two cores; killed at any point it goes on where it stopped. Nothing of a held-out model enters the fit, and
predictions older than the first measurement are not made again: delete predictions.json to see a changed model of
cost, which the summary then says. The model of cost has seen the first and the second set of held-out models; the third and
the fourth were chosen when it had last been changed.
"""

import enum
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from calibration.decision_scores import Guess
from calibration.fit import Calibration, calibrate
from calibration import report as pages
from calibration.validate import Report, compared
from hw.run.config import RunConfig
from hw.sweep.config import SweepConfig
from hw.sweep.config import cells as cells_of
from prism.cli.entry import run
from prism.config import load_json, load_toml
from prism.cost import PROFILES, CalibratedProfile
from prism.errors import PrismError
from prism.nn.zoo import describe
from prism.perfmap import Cell, PerformanceMap, build_map
from prism.perfmap.pooling import TraceSet, read_traces
from prism.spec import LinkSpec, ModelSpec
from prism.trace import now_text, read_trace
from sim.ask.for_calibration import guess_of, pooled, simulate
from sim.ask.point import Point

CONFIGS = Path(os.path.relpath(Path(__file__).parent)) / "unseen_models"  # as a user would type it
RESULTS = Path(__file__).parent / "results" / "unseen_models"
SWEEPS = ("images", "large", "text")  # of each set of held-out models
DRAWS, SEED = 64, 0
ABOUT = {
    True: "The predictions were written before the first of these cells was measured.",
    False: "The model of cost was changed after these cells were measured, by what their traces showed; the fit itself "
    "saw none of them.",
}
LINK = "testbed:250Mbps"  # of the probes


class Predicted(msgspec.Struct, frozen=True, kw_only=True):
    """Guesses of held-out cells, by the hash of each cell's configuration, and when they were made."""

    created: str
    profile: str
    guesses: dict[str, Guess]


def hw(*arguments: str) -> None:
    """A command of prism-hw; what it printed stays on the terminal. Raises PrismError on failure."""
    ended = subprocess.run([Path(sys.executable).with_name("prism-hw"), *arguments]).returncode
    if ended:
        raise PrismError(
            f"prism-hw {arguments[0]} ended with {ended}, see above; the same command goes on where it stopped"
        )


class HeldOut(enum.StrEnum):
    """A set of held-out models: a folder of sweeps' configurations."""

    FIRST = "first"
    SECOND = "second"
    THIRD = "third"
    FOURTH = "fourth"

    def config(self, name: str) -> Path:
        return CONFIGS / self / f"{name}.toml"

    def sweeps(self) -> list[SweepConfig]:
        return [load_toml(self.config(name), SweepConfig) for name in SWEEPS]


NEWEST = HeldOut.FOURTH


def measure(config: Path, folder: Path) -> Path:
    traces = folder / config.stem
    hw("profile", "--config", str(config), "--output", str(traces))
    return traces


def fitted(folder: Path) -> Calibration:
    """Probe and profile what is missing, and fit."""
    probes = folder / "probes.jsonl"
    if not probes.exists():
        hw("probe", "--output", str(probes), "--link", LINK, "--budget", "100")
    traces = read_traces([measure(CONFIGS / "calibration.toml", folder)])
    models = described(traces)
    note = "experiments/unseen_models.py: probes and three small models in the testbed of a virtual machine"
    found = calibrate(traces, models, simulate(models), "unseen-models", read_trace(probes).probes, note)
    (folder / "profile.json").write_bytes(
        msgspec.json.format(msgspec.json.encode(found.profile), indent=1) + b"\n"
    )
    return found


def described(traces: TraceSet) -> dict[str, ModelSpec]:
    """Of older traces, which don't say it, by the name."""
    found = traces.shapes()
    return {name: found.get(name) or describe(name) for name in traces.models()}


def key(config: RunConfig) -> str:
    """Names a cell: its model, plan, batch, tokens and link, and nothing of how it was visited."""
    same = (
        config.model,
        config.tokens,
        config.plan(),
        config.batch,
        config.link if config.plan().ranks > 1 else "",
    )
    return hashlib.blake2b(msgspec.json.encode(same), digest_size=8).hexdigest()


def key_of(cell: Cell, tokens: int | None) -> str:
    same = (cell.model, tokens, cell.plan, cell.batch, str(cell.link) if cell.plan.ranks > 1 else "")
    return hashlib.blake2b(msgspec.json.encode(same), digest_size=8).hexdigest()


def points_of(held_out: HeldOut) -> dict[str, Point]:
    """What is predicted, by the names of the cells."""
    points: dict[str, Point] = {}
    for sweep in held_out.sweeps():
        specs = {model: describe(model) for model in sweep.models}
        for config, _ in cells_of(sweep):
            spec = msgspec.structs.replace(
                specs[config.model], tokens=config.tokens or specs[config.model].tokens
            )
            link = LinkSpec() if config.plan().ranks == 1 else config.link_spec()
            points[key(config)] = Point(model=spec, plan=config.plan(), batch=config.batch, link=link)
    return points


def predicted(profile: CalibratedProfile, held_out: HeldOut, folder: Path) -> Predicted:
    """Guesses of every cell that will be measured: from the file where there is one, else made now."""
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


def held_against(
    found: Calibration, guesses: Predicted, held_out: HeldOut, folder: Path
) -> tuple[Report, PerformanceMap, PerformanceMap, bool]:
    """The comparison, the two maps, and whether every prediction is older than what it predicts."""
    reference = read_traces([folder / "calibration"])
    held = read_traces([folder / name for name in SWEEPS])
    shared = {file.digest for file in held.files} & set(found.profile.traces)
    known = {file.trace.header.model for file in reference.files} & {
        file.trace.header.model for file in held.files
    }
    if shared or known:
        raise PrismError(f"held-out traces or models are part of the fit: {sorted(shared) or sorted(known)}")
    measured, learned = build_map(held), build_map(reference)
    models = described(held) | described(reference)
    tokens = {model: sweep.tokens for sweep in held_out.sweeps() for model in sweep.models}
    chosen = [guesses.guesses[key_of(cell, tokens[cell.model])] for cell in measured.cells]
    before = guesses.created <= min(file.trace.header.created for file in held.files)
    return compared(found.profile, measured, chosen, models, learned), measured, learned, before


def left_out(folder: Path) -> dict[str, float]:
    """Mean absolute error, in per cent, of each measured model, profiled or held out, from a fit to all the others."""
    traces = read_traces([folder / name for name in ("calibration", *SWEEPS)])
    models = described(traces)
    probes = read_trace(folder / "probes.jsonl").probes
    return calibrate(traces, models, simulate(models), "all models", probes).left_out_mape_pct


def passes(map_: PerformanceMap) -> int:
    return sum(cell.batches for cell in map_.cells)


def summary(
    found: Calibration,
    report: Report,
    measured: PerformanceMap,
    learned: PerformanceMap,
    before: bool,
    others: dict[str, float],
) -> Any:
    """What is committed beside the report."""
    scores = report.scores
    return {
        "models_calibrated": sorted({cell.model for cell in learned.cells}),
        "models_held_out": sorted({cell.model for cell in measured.cells}),
        "predicted_before_measured": before,
        "cells": scores.cells, "latency_mape_pct": scores.latency_mape_pct,
        "decision_accuracy_pct": scores.prism.decision_accuracy_pct, "near_tie_cells": scores.near_tie_cells,
        "regret_mean_pct": scores.prism.regret_mean_pct, "regret_p95_pct": scores.prism.regret_p95_pct,
        "crossover_log2_median": scores.crossover_log2_median, "coverage90_pct": scores.coverage90_pct,
        "measurement_noise_pct": scores.measurement_noise_pct, "baselines": scores.baselines,
        "passes_calibration": passes(learned), "passes_held_out": passes(measured),
        "fit_mape_pct": found.mape_pct, "leave_one_model_out_mape_pct": found.left_out_mape_pct,
        "leave_one_of_all_out_mape_pct": others, "scores": scores, "slowness": report.slowness,
        "scores_at_measured_pace": report.paced,
    }  # fmt: skip


def _publish(output: Path, held_out: HeldOut) -> None:
    """Raw traces as two archives, so that what was fitted and what was held out stay apart."""
    results = RESULTS if held_out is NEWEST else RESULTS / held_out  # on top is what a reader opens first
    results.mkdir(parents=True, exist_ok=True)
    for name in ("summary.json", "report.html", "calibration.html", "predictions.json"):
        shutil.copy(output / name, results / name)
    profile, path = load_json(output / "profile.json", CalibratedProfile), results / "profile.json"
    if held_out is HeldOut.FIRST:
        profile, path = msgspec.structs.replace(profile, name="x86-core"), PROFILES / "x86-core.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(profile), indent=1) + b"\n")
    for archive, members in (("calibration", ("calibration", "probes.jsonl")), ("held_out", SWEEPS)):
        with tarfile.open(results / f"{archive}.tar.xz", "w:xz") as packed:
            for member in members:
                packed.add(output / member, f"{output.name}/{member}", filter=_plain)


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Without the lock, and without what tells whose machine it was."""
    if member.name.endswith(".lock"):
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def main(
    output: Annotated[
        Path | None, typer.Option(help="Folder of traces and results; out/unseen_models_SET by default.")
    ] = None,
    held_out: Annotated[HeldOut, typer.Option(help="Which set of models is predicted.")] = NEWEST,
    publish: Annotated[
        bool,
        typer.Option(
            help="Put results, profile and raw traces into the repository; the first set's profile is x86-core."
        ),
    ] = False,
    only_predict: Annotated[bool, typer.Option(help="Stop before the held-out models are measured.")] = False,
) -> None:
    output = output or Path(f"out/unseen_models_{held_out}")
    output.mkdir(parents=True, exist_ok=True)
    found = fitted(output)
    print(pages.fit_line(found))
    guesses = predicted(found.profile, held_out, output)
    if only_predict:
        return
    for name in SWEEPS:
        measure(held_out.config(name), output)
    report, measured, learned, before = held_against(found, guesses, held_out, output)
    command = f"python experiments/unseen_models.py --held-out {held_out} --output {output}"
    title = "Unseen models: predicted, then measured"
    (output / "report.html").write_text(
        pages.comparison_page(report, found.profile, 0, command, title, ABOUT[before])
    )
    (output / "calibration.html").write_text(pages.fit_page(found, command))
    others = left_out(output)
    text = msgspec.json.format(
        msgspec.json.encode(summary(found, report, measured, learned, before, others)), indent=1
    )
    (output / "summary.json").write_bytes(text + b"\n")
    for row in pages.goal_rows(report):
        print(*row, sep="  ")
    if publish:
        _publish(output, held_out)
    print("Each model from the others alone, of the profiled and of all:")
    for model, error in others.items():
        fitted_to = found.left_out_mape_pct.get(model)
        print(f"{model:28} {'-' if fitted_to is None else f'{fitted_to:.1f} %':>7} {error:6.1f} %")


if __name__ == "__main__":
    app = typer.Typer()
    app.command()(main)
    run(app, Path(sys.argv[0]).name)
