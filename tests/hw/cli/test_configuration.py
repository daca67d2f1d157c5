"""A TOML file and flags mean the same as the flags alone: run, evaluate, serve."""

from pathlib import Path

import pytest

from hw.cli.main import resolve
from prism.errors import ConfigError


def written(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text)
    return path


def test_segments_imply_segment_means_with_a_file_as_without(tmp_path):
    plain = resolve(None, {"segments": 10})
    assert plain.plan.mode.value == "segment_means"
    assert resolve(written(tmp_path, "batch = 2\n"), {"segments": 10}).plan == plain.plan
    assert resolve(written(tmp_path, "segments = 10\n"), {"mode": None}).plan == plain.plan


def test_a_mode_that_is_named_stands(tmp_path):
    with pytest.raises(ConfigError, match="mode full has none"):
        resolve(written(tmp_path, 'mode = "full"\n'), {"segments": 10})
    named = resolve(written(tmp_path, 'mode = "first_and_means"\n'), {"segments": 10, "mode": None})
    assert named.plan.mode.value == "first_and_means" and named.plan.segments == 10


def test_weights_of_devices_are_finite(tmp_path):
    with pytest.raises(ConfigError, match=r"plan\.weights"):
        resolve(None, {"device_weights": [1.0, float("nan")]})
    with pytest.raises(ConfigError, match="timeout_s"):
        resolve(written(tmp_path, "timeout_s = inf\n"), {})


@pytest.mark.parametrize("agreement", ["98", "-0.1", "nan"])
def test_serve_refuses_an_agreement_that_is_no_share(prism_hw, tmp_path, agreement):
    path = written(tmp_path, f"[objective]\nleast_agreement = {agreement}\n")
    code, _, errors = prism_hw("serve", "--config", str(path))
    assert code == 2 and f"objective.least_agreement {float(agreement):g}" in errors.replace("98.0", "98")


def test_evaluate_lays_columns_over_those_of_the_file(prism_hw, tmp_path):
    path = written(tmp_path, 'data = "none.csv"\n[columns]\nlabel = "species"\n')
    code, _, errors = prism_hw("evaluate", "--config", str(path), "--text-column", "words", "--batch", "0")
    assert code == 2 and "batch 0" in errors
