"""Read the published tables 2 and 4."""

import csv
from typing import NamedTuple

from experiments.lib.places import PUBLISHED
from prism.cost import Taken
from prism.plan import ExecutionPlan, Mode
from prism.spec import ModelSpec

TABLES = ("prism_jetson_latency.csv", "prism_jetson_energy.csv", "prism_compute_accuracy.csv")
MODEL = ModelSpec(
    name="vit_base_patch16_224",
    family="vit",
    blocks=12,
    width=768,
    heads=12,
    mlp_width=3072,
    tokens=197,
    prefix_tokens=1,
    patch_values=768,
    output_width=10,
)
NOMINAL_BPS = 400e6
PARTS = ("compute_ms", "staging_ms", "communication_ms")
# choices that the source leaves open: fp32, gloo's all_gather, no overlap, inputs on both devices
TAKEN = Taken(overlap=False, embed="each", collective="ring")


class Row(NamedTuple):
    """Hold one row of Table 2."""

    mode: Mode
    segments: int | None
    batch: int
    published: dict[str, float]

    @property
    def plan(self) -> ExecutionPlan:
        if self.mode is Mode.LOCAL:
            return ExecutionPlan(mode=Mode.LOCAL)
        return ExecutionPlan(
            mode=self.mode,
            devices=2,
            segments=self.segments,
            collective=TAKEN.collective,
            overlap=TAKEN.overlap,
            embed=TAKEN.embed,
        )


def table2() -> list[Row]:
    """Read the published latencies."""
    with open(PUBLISHED / TABLES[0], newline="") as file:
        return [
            Row(
                Mode(line["mode"]),
                int(line["segments_per_partition"]) if line["mode"] == "segment_means" else None,
                int(line["batch"]),
                {part: float(line[part]) for part in (*PARTS, "total_ms")},
            )
            for line in csv.DictReader(file)
        ]


class EnergyRow(NamedTuple):
    """Hold one figure of Table 4: joules per batch of a mode."""

    row: Row
    joules: float


def table4() -> list[EnergyRow]:
    """Read the published joules."""
    rows = {(row.mode.value, row.batch): row for row in table2()}
    with open(PUBLISHED / TABLES[1], newline="") as file:
        lines = list(csv.DictReader(file))
    full = [EnergyRow(rows["full", int(line["batch"])], float(line["full_energy_j"])) for line in lines]
    adaptive = [
        EnergyRow(rows[line["adaptive_mode"], int(line["batch"])], float(line["adaptive_energy_j"])) for line in lines
    ]
    return full + adaptive
