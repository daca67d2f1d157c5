from collections import Counter
from pathlib import Path

import pytest

from hw.sweep.config import SweepConfig, cells, check, visits
from prism.config import load_toml
from prism.plan import Mode

EXPERIMENTS = Path(__file__).parents[3] / "experiments"


@pytest.mark.parametrize(
    ("name", "local", "full", "means", "repeats"),
    [
        ("published_grid", 6, 6 * 8, 6 * 8 * 3, 5),  # batches, times rates, times L
        ("scaled_grid", 2 * 4, 2 * 4 * 5, 2 * 4 * 5 * 2, 5),  # models and batches, rates, L
    ],
)
def test_a_shipped_grid_holds_the_cells_it_speaks_of(name, local, full, means, repeats):
    sweep = load_toml(EXPERIMENTS / name / "sweep.toml", SweepConfig)
    found = cells(sweep)
    assert Counter(config.plan.mode for config, _ in found) == {
        Mode.LOCAL: local,
        Mode.FULL: full,
        Mode.SEGMENT_MEANS: means,
    }
    assert len(visits(sweep)) == (local + full + means) * repeats
    assert {ranks for _, ranks in found} == {2}


def test_the_published_grid_is_the_published_one():
    sweep = load_toml(EXPERIMENTS / "published_grid" / "sweep.toml", SweepConfig)
    assert sweep.batches == (1, 2, 4, 8, 16, 32)
    rates = [config.link_spec().rate_bps for config, _ in cells(sweep) if config.plan.mode is not Mode.LOCAL]
    assert (min(rates), max(rates)) == (200e6, 900e6)
    tokens, devices = 197, 2
    rates_of_compression = [tokens / (segments * devices) for segments in sweep.segments]
    assert rates_of_compression == pytest.approx([9.9, 4.95, 3.3], rel=0.01)


@pytest.mark.parametrize("name", ["published_grid", "scaled_grid"])
def test_every_cell_of_a_shipped_grid_can_run(name):
    from prism.nn.zoo import describe

    sweep = load_toml(EXPERIMENTS / name / "sweep.toml", SweepConfig)
    check(sweep, {model: describe(model) for model in sweep.models})
