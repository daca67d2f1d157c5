"""Predict models that nobody profiled, and only then measure them.

    python -m experiments.unseen_models.run
    python -m experiments.unseen_models.run --held-out set-3      # an older set

1. Probe this machine and profile three small models on the testbed; fit a profile to them.
2. Predict every cell of seven to nine held-out models, and write the predictions to a file.
3. Measure the held-out models, and compare.

This runs unattended for about an hour, as root, on two cores. The same command continues a run that was killed. Nothing
of a held-out model enters the fit. Predictions that are older than the first measurement are not made again: delete
predictions.json to see a changed model of cost, which the summary then says. The model of cost was changed after set-1
and set-2 had been measured; set-3 and set-4 were chosen after its last change."""

from pathlib import Path
from typing import Annotated

import typer

from calibration import report as pages
from calibration.fit import Calibration, calibrate
from calibration.validate import ComparisonReport
from experiments.lib.profiling import hw, measure
from experiments.unseen_models.publish import pretty, publish
from experiments.unseen_models.scores import described, held_against, left_out, predicted, summary
from experiments.unseen_models.sets import CONFIGS, NEWEST, SWEEPS, HeldOut
from prism.cli.entry import run
from prism.perfmap.pooling import read_traces
from prism.trace import read_trace
from sim.ask.for_calibration import simulator_of

ABOUT = {
    True: "The predictions were written before the first of these cells was measured.",
    False: "The model of cost was changed after these cells were measured, because of what their traces showed; the "
    "fit itself "
    "saw none of them.",
}
LINK = "testbed:250Mbps"  # of the probes


def fitted(folder: Path) -> Calibration:
    """Probe and profile what is missing, then fit a profile and write it."""
    probes = folder / "probes.jsonl"
    if not probes.exists():
        hw("probe", "--output", str(probes), "--link", LINK, "--budget", "100")
    traces = read_traces([measure(CONFIGS / "calibration.toml", folder)])
    models = described(traces)
    note = "experiments/unseen_models: probes and three small models in the testbed of a virtual machine"
    found = calibrate(traces, models, simulator_of(models), "unseen-models", read_trace(probes).probes, note)
    (folder / "profile.json").write_bytes(pretty(found.profile))
    return found


def write_pages(found: Calibration, report: ComparisonReport, before: bool, held_out: HeldOut, output: Path) -> None:
    """Write the comparison and the fit as HTML."""
    command = f"python -m experiments.unseen_models.run --held-out {held_out} --output {output}"
    title = "Unseen models: predicted, then measured"
    (output / "report.html").write_text(pages.comparison_page(report, found.profile, 0, command, title, ABOUT[before]))
    (output / "calibration.html").write_text(pages.fit_page(found, command))


def print_left_out(others: dict[str, float], found: Calibration) -> None:
    """Print the error of each model from a fit to the others."""
    print("Error of each model from a fit to the others, of the profiled models and of all:")
    for model, error in others.items():
        fitted_to = found.left_out_mape_pct.get(model)
        print(f"{model:28} {'-' if fitted_to is None else f'{fitted_to:.1f} %':>7} {error:6.1f} %")


def main(
    output: Annotated[
        Path | None, typer.Option(help="Folder of traces and results; out/unseen_models/SET by default.")
    ] = None,
    held_out: Annotated[HeldOut, typer.Option(help="Set of models to predict.")] = NEWEST,
    publish_: Annotated[
        bool,
        typer.Option(
            "--publish",
            help="Put results, profile and raw traces into the repository; the profile of set-1 is x86-core.",
        ),
    ] = False,
    only_predict: Annotated[bool, typer.Option(help="Stop before the held-out models are measured.")] = False,
) -> None:
    """Profile three small models, predict the held-out ones, then measure those and compare."""
    output = output or Path("out/unseen_models") / held_out
    output.mkdir(parents=True, exist_ok=True)
    found = fitted(output)
    print(pages.fit_line(found))
    guesses = predicted(found.profile, held_out, output)
    if only_predict:
        return
    for name in SWEEPS:
        measure(held_out.config(name), output)
    report, measured, learned, before = held_against(found, guesses, held_out, output)
    others = left_out(output)
    (output / "summary.json").write_bytes(pretty(summary(found, report, measured, learned, before, others)))
    write_pages(found, report, before, held_out, output)
    for row in pages.goal_rows(report):
        print(*row, sep="  ")
    if publish_:
        publish(output, held_out)
    print_left_out(others, found)


if __name__ == "__main__":
    app = typer.Typer()
    app.command()(main)
    run(app, "python -m experiments.unseen_models.run")
