"""The configuration of a run: one plan, in files of today and of before, and under the flags."""

import hashlib
from pathlib import Path

import msgspec
import pytest
import tomllib

from hw.cli.flags import RUN
from hw.cli.main import resolve
from hw.run.config import RunConfig
from hw.sweep.config import SweepConfig, visits
from prism.config import convert, load_toml
from prism.errors import PrismError
from prism.plan import LOCAL, ExecutionPlan, Mode

EXPERIMENTS = Path(__file__).parents[3] / "experiments"
PLAN = ExecutionPlan(
    mode=Mode.SEGMENT_MEANS,
    devices=3,
    segments=5,
    wire="int4",
    weights=(2.0, 1.0, 1.0),
    embed="each",
    collective="ring",
    overlap=False,
)
FLAT = """
mode = "segment_means"
devices = 3
segments = 5
wire = "int4"
device_weights = [2.0, 1.0, 1.0]
embed = "each"
collective = "ring"
overlap = false
"""
TABLE = "[plan]\n" + FLAT.replace("device_weights", "weights")
# of all visits' file names, by the digest of the sweep: from the version before plans were embedded
NAMES_OF_SWEEPS = {
    "3847e7ffd319": "d4926baa5f56",
    "6fecfd462333": "36a93626303f",
    "54ed4de36213": "6eeaa95adc62",
    "94b3dd851ba6": "eabbd7933252",
    "01beca588d8b": "257a8b760b44",
    "7a9d47c72727": "5e1c3d5cea92",
    "4a9f97d995f2": "21ad14f2a765",
    "65cbe566ba50": "69f7f2db30e3",
    "dfedabb35a4e": "96b907ebbe71",
    "cc5573ef35af": "55c331213bb4",
    "4d087d3226c4": "4354f2e0e393",
    "71e57f67793b": "d38434be941d",
    "2b0a28f2429e": "581ad034791c",
    "24d8089cb2c0": "a63ad01c28ed",
    "8796977bb558": "b4c5e7ef9c6f",
}
SWEEP = """
models = ["fashion-vit"]
modes = ["local", "full", "segment_means"]
segments = [5]
rates = ["100Mbps"]
wires = ["int4"]
devices = [3]
collective = "mesh"
overlap = false
link = "shaper"
repeats = 1
"""
SWEEP_FILES = [
    "fashion-vit_B1_local_0fdd26d8acdf.0.jsonl",
    "fashion-vit_B1_segment_means5_int4_P3_shaper-100Mbps_79336f2fbaac.0.jsonl",
    "fashion-vit_B1_full_int4_P3_shaper-100Mbps_b57981b011fb.0.jsonl",
]


def config(tmp_path: Path, text: str, **flags: object) -> RunConfig:
    path = tmp_path / "run.toml"
    path.write_text(text)
    return resolve(path, flags)


def test_a_file_of_flat_keys_has_the_plan_of_a_table(tmp_path):
    assert config(tmp_path, FLAT) == config(tmp_path, TABLE) == RunConfig(plan=PLAN)


def test_a_traces_configuration_is_a_run_file(tmp_path):
    assert convert(RunConfig(plan=PLAN).flat(), RunConfig, "a header") == RunConfig(plan=PLAN)
    assert convert(RunConfig(plan=LOCAL).flat(), RunConfig, "a header") == RunConfig(plan=LOCAL)


@pytest.mark.parametrize("text", [FLAT, TABLE])
def test_flags_go_over_the_file_one_by_one(tmp_path, text):
    changed = config(tmp_path, text, wire="fp32", segments=7)
    assert changed.plan == msgspec.structs.replace(PLAN, wire="fp32", segments=7)


@pytest.mark.parametrize("text", ["", "batch = 4"])
def test_segments_alone_ask_for_means_with_and_without_a_file(tmp_path, text):
    assert config(tmp_path, text, segments=10).plan == ExecutionPlan(mode=Mode.SEGMENT_MEANS, devices=2, segments=10)
    assert resolve(None, {"segments": 10}).plan.mode is Mode.SEGMENT_MEANS


def test_a_local_run_has_one_device_whatever_stands_beside_it(tmp_path):
    assert config(tmp_path, "devices = 3\ndevice_weights = [1, 1, 1]", mode="local").plan == LOCAL


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("plan = 3", "plan 3"),
        ("[plan]\nwires = 'int4'", "did you mean 'wire'"),
        ("[plan]\nwire = 'int3'", "plan.wire 'int3'"),
        ("devcies = 3", "did you mean 'devices'"),
        ("devices = 65", "at most 64"),
        ('mode = "full"\nsegments = 3', "mode full has none"),
    ],
)
def test_a_bad_plan_names_what_is_wrong(tmp_path, text, words):
    with pytest.raises(PrismError, match=words):
        config(tmp_path, text)


def test_every_field_is_a_flag_of_run():
    assert set(RUN) - {"parts"} == set(RunConfig().flat())  # parts follow from the other counts


@pytest.mark.parametrize(
    ("fields", "digest"),
    [
        ({}, "f09940bdff97"),
        ({"plan": LOCAL}, "ea1b6dfec23f"),
        ({"plan": PLAN, "trace": "anywhere", "port": 3}, "f17caf4e036b"),
    ],
)
def test_hashes_are_those_of_the_version_before(fields, digest):
    assert RunConfig(**fields).digest() == digest


def test_folders_of_committed_sweeps_resume():
    """Sweeps resume by their digest and their visits' file names, which hold hashes of configurations."""
    seen = 0
    for path in sorted(EXPERIMENTS.rglob("*.toml")):
        sweep = load_toml(path, SweepConfig)
        expected = NAMES_OF_SWEEPS.get(sweep.digest())
        names = "\n".join(sorted(visit.file for visit in visits(sweep)))
        assert expected in (None, hashlib.blake2b(names.encode(), digest_size=6).hexdigest()), path
        seen += expected is not None
    assert seen >= 10


def test_a_visit_is_named_as_before():
    sweep = convert(tomllib.loads(SWEEP), SweepConfig, "s.toml")
    assert [visit.file for visit in visits(sweep)] == SWEEP_FILES
