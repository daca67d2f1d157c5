"""The committed result: nothing of a held-out model entered the fit, by hashes, and the figures are those of the traces."""

import hashlib
import json
import tarfile
from pathlib import Path

import msgspec
import pytest

from prism.cost import load_profile
from prism.plan import ExecutionPlan

RESULTS = Path(__file__).parents[2] / "experiments" / "results" / "unseen_models"
LATER = [RESULTS / "second", RESULTS / "third", RESULTS]  # the newest lies on top
PROFILE_OF = {RESULTS / "first": "x86-core"} | {results: str(results / "profile.json") for results in LATER}


def traces(path: Path) -> dict[str, dict]:
    """Header of each trace of an archive, by the hash of its bytes."""
    found = {}
    with tarfile.open(path) as archive:
        for member in archive:
            if member.name.endswith(".jsonl") and "probes" not in member.name:
                raw = archive.extractfile(member).read()
                found[hashlib.blake2b(raw, digest_size=8).hexdigest()] = json.loads(raw.split(b"\n", 1)[0])
    return found


@pytest.fixture(scope="module", params=PROFILE_OF, ids=["first", "second", "third", "newest"])
def results(request) -> Path:
    return request.param


@pytest.fixture(scope="module")
def archives(results) -> tuple[dict, dict]:
    return traces(results / "calibration.tar.xz"), traces(results / "held_out.tar.xz")


def test_the_profile_read_the_calibration_traces_and_no_others(results, archives):
    calibrated, held = archives
    read = set(load_profile(PROFILE_OF[results]).traces)
    assert read == set(calibrated)
    assert not read & set(held)


def test_no_model_is_on_both_sides(results, archives):
    calibrated, held = ({header["model"] for header in each.values()} for each in archives)
    assert len(calibrated) <= 3 and len(held) >= 6 and not calibrated & held
    summary = json.loads((results / "summary.json").read_text())
    assert set(summary["models_calibrated"]) == calibrated and set(summary["models_held_out"]) == held


def test_every_cell_was_predicted_and_the_summary_says_when(results, archives):
    _, held = archives
    predictions = json.loads((results / "predictions.json").read_text())
    summary = json.loads((results / "summary.json").read_text())
    plans = {
        (
            h["model"],
            msgspec.convert(h["plan"], ExecutionPlan),
            h["batch"],
            h["link"] if h["plan"]["devices"] > 1 else "",
        )
        for h in held.values()
    }
    assert len(plans) == summary["cells"] <= len(predictions["guesses"])
    first = min(header["created"] for header in held.values())
    assert summary["predicted_before_measured"] == (predictions["created"] <= first)
