"""A file, the flags over it, and the bounds of numbers in either."""

from pathlib import Path

import msgspec
import pytest

from prism.config import NonNegative, PositiveNumber, Share, convert, merged
from prism.decide.policy import PrismPolicy
from prism.decide.table import Objective
from prism.errors import ConfigError


class Inner(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    path: str = "path"
    label: str = "label"


class Outer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: str = "vit"
    batch: NonNegative = 1
    rate: PositiveNumber = 1.0
    share: Share | None = None
    columns: Inner = Inner()


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text('batch = 4\n[columns]\nlabel = "species"\n')
    return path


def test_flags_go_over_the_file_table_by_table(file):
    flags = {"model": "gpt2", "batch": None, "columns": {"path": "file", "label": None}}
    assert merged(file, flags, Outer) == Outer(model="gpt2", batch=4, columns=Inner(path="file", label="species"))
    assert merged(file, {"batch": 2, "columns": {"path": None}}, Outer).columns == Inner(label="species")
    assert merged(None, flags, Outer) == Outer(model="gpt2", columns=Inner(path="file"))
    assert merged(None, {"columns": {"path": None}}, Outer) == Outer()


def test_what_is_implied_sees_what_was_written_and_no_defaults(file):
    seen = []
    merged(file, {"model": "gpt2"}, Outer, seen.append)
    assert seen == [{"batch": 4, "columns": {"label": "species"}, "model": "gpt2"}]


def test_an_error_names_the_file_the_flags_and_the_nearest_key(file):
    with pytest.raises(ConfigError, match=r"run\.toml with the flags: batch -1: expected `int` >= 0"):
        merged(file, {"batch": -1}, Outer)
    with pytest.raises(ConfigError, match=r"^the flags: .*did you mean 'model'"):
        merged(None, {"modle": "vit"}, Outer)
    file.write_text("bacth = 4\n")
    with pytest.raises(ConfigError, match=r"run\.toml: .*did you mean 'batch'"):
        merged(file, {"model": None}, Outer)
    file.write_text("batch = \n")
    with pytest.raises(ConfigError, match="no valid TOML"):
        merged(file, {}, Outer)
    with pytest.raises(ConfigError, match="can't be read"):
        merged(file.with_name("none.toml"), {}, Outer)


@pytest.mark.parametrize(
    ("text", "key"), [("rate = inf", "rate"), ("rate = nan", "rate"), ("rate = 0.0", "rate"), ("share = 98", "share")]
)
def test_numbers_outside_of_their_bounds_are_refused(file, text, key):
    file.write_text(text + "\n")
    with pytest.raises(ConfigError, match=f"{key} .*expected `float`"):
        merged(file, {}, Outer)


@pytest.mark.parametrize(
    "data",
    [
        {"least_agreement": 98},
        {"least_accuracy": 1.5},
        {"least_agreement": float("nan")},
        {"most_ms": float("inf")},
        {"joule_ms": float("nan")},
    ],
)
def test_an_objective_that_no_plan_can_keep_is_refused(data):
    (key,) = data
    with pytest.raises(ConfigError, match=f"{key} .*expected `float`"):
        convert(data, Objective, "serve.toml")


def test_a_policy_whose_numbers_are_none_is_refused():
    with pytest.raises(ConfigError, match="hysteresis"):
        convert({"type": "prism", "hysteresis": float("nan")}, PrismPolicy, "serve.toml")
