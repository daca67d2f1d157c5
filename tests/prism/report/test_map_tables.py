import re

import msgspec
import pytest
from rich.console import Console
from support.visits import FULL, MEANS, header, records, visit, write

from prism.link import LinkSpec
from prism.perfmap import build_map
from prism.perfmap.crossover import compare_maps
from prism.perfmap.pooling import read_traces
from prism.plan import LOCAL, ExecutionPlan, Mode
from prism.report.map_grid import grids, plan_codes, rate_label
from prism.report.map_tables import comparison_view, map_view


def text(view, width=100, **fields):
    console = Console(width=width, record=True, file=open("/dev/null", "w"), **fields)
    console.print(view)
    return console.export_text(styles=bool(fields))


def row(shown, title, batch):
    """The cells of a batch's row in the table of this title."""
    part = shown[shown.index(title) :]
    line = next(line for line in part.splitlines() if re.match(rf"│ +{batch} │", line))
    return [cell.strip() for cell in line.strip("│").split("│")]


@pytest.fixture
def map_(tmp_path):
    for batch, local in ((1, 100), (8, 800)):
        visit(tmp_path, LOCAL, "loopback", [[local, local], [local * 1.04] * 2], batch)
        for rate, full, means in ((50, 4.0, 1.5), (400, 1.1, 0.6), (1000, 1.03, 0.58)):
            visit(tmp_path, FULL, f"testbed:{rate}Mbps", [[full * local] * 2], batch)
            visit(tmp_path, MEANS, f"testbed:{rate}Mbps", [[means * local] * 2], batch)
    return build_map(read_traces([tmp_path]))


def test_ratios_stand_by_batch_and_rate(map_):
    shown = text(map_view(map_))
    assert "vit, 197 tokens, testbed" in shown
    assert row(shown, "2 parts, full: latency over local", 1) == ["1", "102.0", "3.92x", "1.08x", "~1.01x"]
    assert row(shown, "2 parts, means L=10: latency", 8) == ["8", "816.0", "1.47x", "0.59x", "0.57x"]


def test_the_best_plan_of_each_place(map_):
    shown = text(map_view(map_))
    assert row(shown, "best plan", 1) == ["1", "local", "M10", "M10"]
    assert "M10: 2 parts, means L=10" in shown


def test_crossovers_are_shown_with_never_and_always(map_):
    shown = text(map_view(map_))
    part = shown[shown.index("as fast as local from ... Mbps") :]
    full, means = (re.search(rf"{name}[^│]*│ +(\S+) │ +(\S+) │", part) for name in ("full", "means"))
    assert full.groups() == ("~never", "~never")
    assert [float(value) for value in means.groups()] == pytest.approx([152.6, 152.6], rel=0.02)


def test_without_colour_the_text_is_the_same(map_):
    plain = text(map_view(map_))
    assert "\x1b" not in plain
    coloured = text(map_view(map_), force_terminal=True, color_system="truecolor")
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain
    assert "\x1b[1;31m3.92x" in coloured and "\x1b[1;32m0.59x" in coloured and "\x1b[90m~1.01x" in coloured


def test_a_wide_grid_fits_100_columns(tmp_path):
    models = "vit_base_patch16_224.augreg2_in21k_ft_in1k"
    for batch in (1, 2, 4, 8, 16, 32):
        visit(tmp_path, LOCAL, "loopback", [[12345.6]], batch, models)
        for rate in range(100, 1300, 100):
            visit(tmp_path, FULL, f"testbed:{rate}Mbps", [[99999.9]], batch, models)
    found = build_map(read_traces([tmp_path]))
    shown = text(map_view(found), width=200)
    assert max(len(line.rstrip()) for line in shown[shown.index(models) :].splitlines()) <= 100
    assert "…" not in text(map_view(found))
    assert all(re.search(rf" {rate} ", shown) for rate in range(100, 1300, 100))


def test_what_is_missing_shows_as_missing(tmp_path):
    visit(tmp_path, LOCAL, "loopback", [[10]])
    visit(tmp_path, FULL, "testbed:100Mbps", [[20]])
    visit(tmp_path, FULL, "testbed:200Mbps", [[15]], batch=2)
    (tmp_path / "bad.jsonl").write_text("?\n")
    shown = text(map_view(build_map(read_traces([tmp_path]))))
    assert row(shown, "2 parts, full", 1) == ["1", "10.0", "2.00x", "-"]
    assert row(shown, "2 parts, full", 2) == ["2", "-", "-", "-"]
    assert row(shown, "best plan", 1) == ["1", "local", "-"]
    assert "vit at batch 2 has no local cell" in shown
    assert "left out: bad.jsonl: line 1" in shown
    assert "energy: not measured: no power meter was read" in shown
    assert "one visit each" in shown


def test_oversubscribed_and_failed_cells_are_named(tmp_path):
    visit(tmp_path, LOCAL, "loopback", [[10]])
    found = [
        msgspec.structs.replace(r, failed="lost") if r.batch == 2 and hasattr(r, "failed") else r
        for r in records([20, 20], 3)
    ]
    plan = ExecutionPlan(mode=Mode.FULL, devices=3)
    write(tmp_path / "3.jsonl", header(plan, "testbed:100Mbps", oversubscribed=True), found)
    shown = text(map_view(build_map(read_traces([tmp_path]))))
    assert "oversubscribed" in shown and "1 batches failed" in shown


def test_links_that_differ_in_more_than_their_rate_make_grids_of_their_own(tmp_path):
    visit(tmp_path, LOCAL, "loopback", [[10]])
    for link in ("testbed:100Mbps", "testbed:100Mbps,2ms", "shaper:100Mbps", "loopback"):
        visit(tmp_path, FULL, link, [[20]])
    found = grids(build_map(read_traces([tmp_path])))
    assert {grid.title for grid in found} == {
        f"vit, 197 tokens, {link}" for link in ("testbed", "testbed, latency 2 ms", "shaper", "loopback")
    }
    assert {grid.rates for grid in found} == {(100.0,), (None,)}
    assert rate_label(None) == "as it is"


def test_plan_codes_are_short_and_different():
    plans = [FULL, MEANS, msgspec.structs.replace(MEANS, wire="int8"), msgspec.structs.replace(FULL, overlap=False)]
    assert list(plan_codes(plans).values()) == ["F", "M10", "M10-int8", "F.2"]
    assert list(plan_codes([FULL, msgspec.structs.replace(FULL, devices=3)]).values()) == ["F-P2", "F-P3"]


def test_plan_codes_name_replicas_and_stages():
    pair = ExecutionPlan(mode=Mode.LOCAL, devices=2, replicas=2)
    line = ExecutionPlan(mode=Mode.LOCAL, devices=2, stages=2, microbatch=4, wire="int8")
    four = [msgspec.structs.replace(MEANS, devices=4, **{name: 2}) for name in ("replicas", "stages")]
    codes = plan_codes([pair, line, FULL, MEANS, *four, msgspec.structs.replace(pair, devices=4, stages=2)])
    assert list(codes.values()) == ["R2", "S2m4-int8", "F", "M10", "R2xM10", "S2xM10", "R2xS2"]


def test_what_parts_share_stands_in_the_title_where_replicas_have_no_exchange(tmp_path):
    visit(tmp_path, LOCAL, "loopback", [[10]], 2)
    visit(tmp_path, msgspec.structs.replace(FULL, overlap=False), "testbed:100Mbps", [[20]], 2)
    visit(tmp_path, ExecutionPlan(mode=Mode.LOCAL, devices=2, replicas=2), "testbed:100Mbps", [[5]], 2)
    (grid,) = grids(build_map(read_traces([tmp_path])))
    assert grid.title == "vit, 197 tokens, testbed, all plans: no overlap"
    assert [grid.label(plan) for plan in grid.plans] == ["2 replicas", "2 parts, full"]


def test_the_best_plan_says_when_another_is_as_good(tmp_path):
    visit(tmp_path, LOCAL, "loopback", [[10, 10], [11, 11]])
    visit(tmp_path, FULL, "testbed:100Mbps", [[10.2]])
    (grid,) = grids(build_map(read_traces([tmp_path])))
    cell, tie = grid.best(1, 100.0)
    assert (cell.plan, tie) == (FULL, True)
    assert grid.best(2, 100.0) is None and grid.link == LinkSpec(kind="testbed")


def test_comparison_shows_the_largest_differences_first(map_, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    visit(other, LOCAL, "loopback", [[103]])
    visit(other, FULL, "testbed:50Mbps", [[500]])
    shown = text(comparison_view(compare_maps(map_, build_map(read_traces([other])))))
    assert "1 of 2 cells agree within their spread (50%)" in shown
    assert shown.index("+25.0%") < shown.index("+1.0%")
    assert "only in the first: vit B=1 2 parts, means L=10, testbed:50Mbps" in shown
