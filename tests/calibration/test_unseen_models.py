"""The committed results: nothing of a held-out model entered a fit, by hashes, and the figures are those of the traces.

The traces of the newest set are in the tree. Those of the older sets are in the history; archives.json says what they
hold.
"""

import json
from pathlib import Path

import msgspec
import pytest

from experiments.unseen_models.publish import ARCHIVES, RESULTS, Contents, contents_of, traces_digest
from experiments.unseen_models.sets import NEWEST, HeldOut
from prism.cost import load_profile


@pytest.fixture(scope="module", params=list(HeldOut), ids=str)
def results(request) -> Path:
    return RESULTS / request.param


@pytest.fixture(scope="module")
def archives(results) -> dict[str, Contents]:
    return msgspec.json.decode((results / "archives.json").read_bytes(), type=dict[str, Contents])


def read(path: Path) -> dict:
    return json.loads(path.read_bytes())


def test_the_archives_of_the_newest_set_hold_what_is_said_of_them():
    folder = RESULTS / NEWEST
    said = msgspec.json.decode((folder / "archives.json").read_bytes(), type=dict[str, Contents])
    assert said == {name: contents_of(folder / f"{name}.tar.xz") for name in ARCHIVES}


def test_the_profile_read_the_calibration_traces_and_no_others(results, archives):
    own = results / "profile.json"
    fitted = load_profile(str(own) if own.exists() else "x86-core").traces
    assert len(fitted) == archives["calibration"].traces
    assert traces_digest(fitted) == archives["calibration"].traces_digest


def test_no_model_is_on_both_sides(results, archives):
    calibrated, held = (set(archives[name].models) for name in ("calibration", "held_out"))
    assert len(calibrated) <= 3 and len(held) >= 6 and not calibrated & held
    summary = read(results / "summary.json")
    assert set(summary["models_calibrated"]) == calibrated and set(summary["models_held_out"]) == held


def test_every_cell_was_predicted_and_the_summary_says_when(results, archives):
    held, summary, predictions = (
        archives["held_out"],
        read(results / "summary.json"),
        read(results / "predictions.json"),
    )
    assert held.cells == summary["cells"] <= len(predictions["guesses"])
    assert summary["predicted_before_measured"] == (predictions["created"] <= held.first_created)


def test_the_summary_of_the_study_is_that_of_the_newest_set():
    assert read(RESULTS / "summary.json") == {"set": NEWEST, **read(RESULTS / NEWEST / "summary.json")}
