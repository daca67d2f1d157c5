import re
from xml.etree import ElementTree

import msgspec
import pytest
from matplotlib.colors import to_rgba
from support.visits import FULL, MEANS, header, powered, records, visit, write

from prism.perfmap import build_map
from prism.perfmap.crossover import crossovers
from prism.perfmap.pooling import read_traces
from prism.plan import LOCAL, ExecutionPlan, Mode
from prism.report.figures import WAY_COLOURS, style
from prism.report.map_figures import colour_of, heat_figure, line_figure, pale
from prism.report.map_grid import grids
from prism.report.map_page import map_page


@pytest.fixture
def map_(tmp_path):
    for batch in (1, 8):
        visit(tmp_path, LOCAL, "loopback", [[100 * batch]] * 2, batch)
        for rate, ratio in ((100, 1.5), (400, 0.5)):
            visit(tmp_path, MEANS, f"testbed:{rate}Mbps", [[100 * batch * ratio]] * 2, batch)
            visit(tmp_path, FULL, f"testbed:{rate}Mbps", [[400 * batch * ratio]] * 2, batch)
    return build_map(read_traces([tmp_path]), command="prism-hw map <traces> -o map.json", created="today")


def svgs(text):
    return [ElementTree.fromstring(one) for one in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]


def words(svg):
    return ["".join(one.itertext()).strip() for one in svg.iter("{http://www.w3.org/2000/svg}text")]


def test_the_page_needs_no_other_file(map_):
    shown = map_page(map_)
    assert not re.findall(r'(?:src|href)="(?!#)', re.sub(r"<!DOCTYPE svg[^>]*>", "", shown))
    assert len(svgs(shown)) == 2


def test_heat_maps_hold_every_ratio_and_the_best_plan(map_):
    shown = words(svgs(map_page(map_))[0])
    assert [shown.count(value) for value in ("1.50x", "0.50x", "6.00x", "2.00x")] == [2, 4, 2, 2]
    assert shown.count("M10") == 2 and shown.count("local") == 2 + 1
    assert "2 parts, means L=10" in shown


REPLICAS = ExecutionPlan(mode=Mode.LOCAL, devices=2, replicas=2)
STAGES = ExecutionPlan(mode=Mode.LOCAL, devices=2, stages=2)


def test_the_colour_of_a_place_is_that_of_the_way_that_wins(tmp_path):
    for batch in (1, 4):
        visit(tmp_path, LOCAL, "loopback", [[100 * batch]] * 2, batch)
        for rate, ratio in ((20, 1.5), (400, 0.8)):
            visit(tmp_path, MEANS, f"testbed:{rate}Mbps", [[100 * batch * ratio]] * 2, batch)
            visit(tmp_path, STAGES, f"testbed:{rate}Mbps", [[90 * batch * ratio + 40]] * 2, batch)
    for rate in (20, 400):
        visit(tmp_path, REPLICAS, f"testbed:{rate}Mbps", [[200]] * 2, 4)
    map_ = build_map(read_traces([tmp_path]))
    with style():
        figure = heat_figure(grids(map_)[0])
    first = figure.axes[0]
    shown = [patch.get_facecolor() for patch in first.patches if patch.get_width()]
    ways = ("local", "parts", "replicas", "replicas")  # batch 1 at 20 and 400 Mbps, batch 4
    assert shown == [to_rgba(WAY_COLOURS[way]) for way in ways]
    assert [text.get_text() for text in first.texts] == ["local", "M10\n0.80x", "R2\n0.50x", "R2\n0.50x"]
    assert [text.get_text() for text in figure.legends[0].texts] == ["local", "replicas", "parts"]


def test_where_another_plan_is_as_good_the_colour_is_pale(tmp_path):
    visit(tmp_path, LOCAL, "loopback", [[10, 10], [11, 11]])
    visit(tmp_path, FULL, "testbed:100Mbps", [[10.2]])
    with style():
        figure = heat_figure(grids(build_map(read_traces([tmp_path])))[0])
    assert figure.axes[0].patches[0].get_facecolor() == to_rgba(pale(WAY_COLOURS["parts"]))


def test_lines_have_a_panel_for_each_batch_and_rings_at_crossovers(map_):
    with style():
        figure = line_figure(grids(map_)[0], crossovers(map_))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["batch 1", "batch 8"]
    rings = figure.axes[0].lines[-2].get_xdata()
    assert rings == pytest.approx([200])


def test_one_rate_makes_no_line(tmp_path):
    visit(tmp_path, LOCAL, "loopback", [[10]])
    visit(tmp_path, FULL, "testbed:100Mbps", [[20]])
    map_ = build_map(read_traces([tmp_path]))
    assert line_figure(grids(map_)[0], crossovers(map_)) is None
    assert len(svgs(map_page(map_))) == 1


def test_cells_stand_with_their_traces(map_):
    shown = map_page(map_)
    for cell in map_.cells:
        for name, digest in cell.provenance.files:
            assert f"{name} ({digest})" in shown
    assert re.search(r"configuration\s+c0ffee:", shown)
    assert "not measured" in shown and "0.00 J" not in shown


def test_the_page_says_what_reproduces_it(map_):
    shown = map_page(map_)
    assert "prism-hw map &lt;traces&gt; -o map.json" in shown  # escaped
    assert "today, from traces of a CPU, 2 cores, 1 thread(s) a rank" in shown
    assert "python 3.11  torch 2.14" in shown
    assert shown.count("<td>processor</td>") == 1


def test_measured_joules_are_in_the_table(tmp_path):
    write(tmp_path / "a.jsonl", header(LOCAL, "loopback"), powered(records([200], 1), 5))
    visit(tmp_path, FULL, "testbed:100Mbps", [[20]])
    shown = map_page(build_map(read_traces([tmp_path])))
    assert "1.00 J" in shown and "not measured" in shown


def test_a_map_without_distributed_cells_is_a_page_too(tmp_path):
    visit(tmp_path, LOCAL, "loopback", [[10]])
    shown = map_page(build_map(read_traces([tmp_path])))
    assert "1 cells, 1 visits" in shown and "vit at batch 1 has local cells alone" in shown


def test_two_machines_are_both_named(tmp_path):
    visit(tmp_path, LOCAL, "loopback", [[10]])
    visit(tmp_path, LOCAL, "loopback", [[10]], model="other", host={"processor": "B"})
    shown = map_page(build_map(read_traces([tmp_path])))
    assert shown.count("<td>processor</td>") == 2


def simulated(map_, **provenance):
    """The map as if it came from the simulator: a visit and a batch a cell."""
    replace = msgspec.structs.replace
    cells = [
        replace(
            cell,
            source="simulated",
            visits=1,
            batches=1,
            plan=replace(cell.plan, overlap=cell.plan.ranks == 1),
            provenance=replace(cell.provenance, **provenance),
        )
        for cell in map_.cells
    ]
    return replace(map_, cells=tuple(cells))


def test_a_simulated_map_claims_no_measurement(map_):
    shown = map_page(simulated(map_, files=(), commands=("",), host={"device": "a board"}))
    assert "simulated: nothing here was measured" in shown and "Simulated for" in shown
    assert not any(
        word in shown for word in ("visit", "spread", "Measured on", "written by", "The traces of each cell")
    )
    assert len(svgs(shown)) == 2


def test_how_all_plans_exchange_stands_in_the_title_alone(map_):
    shown = map_page(simulated(map_))
    assert shown.count("no overlap") == 1 and "testbed, all plans: no overlap, simulated" in shown


def test_lines_need_no_visits(map_):
    cells = tuple(msgspec.structs.replace(cell, visit_p50_ms=()) for cell in map_.cells)
    bare = msgspec.structs.replace(map_, cells=cells)
    assert line_figure(grids(bare)[0], crossovers(bare)) is not None


def test_colours_are_centred_at_one_and_saturate():
    assert min(colour_of(1.0)) > 0.95
    assert colour_of(4.0) == colour_of(9.0) != colour_of(2.0)
    red, blue = colour_of(2.0), colour_of(0.5)
    assert red[0] > red[2] and blue[2] > blue[0]
    assert sum(red) == pytest.approx(sum(blue), abs=0.5)


def test_notes_of_a_map_reach_the_page(map_):
    changed = msgspec.structs.replace(map_, left_out=("bad.jsonl: <damaged>",))
    assert "left out: bad.jsonl: &lt;damaged&gt;" in map_page(changed)
