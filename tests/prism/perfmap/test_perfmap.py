import itertools
import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.visits import FULL, HOST, MEANS, MS, header, powered, records, visit, write

from prism.errors import TraceError
from prism.labels import plan_label
from prism.link import LinkSpec
from prism.perfmap import Case, build_map, load_map
from prism.perfmap.crossover import chance_of_agreement, compare_maps, crossing, crossovers, ratio
from prism.perfmap.pooling import TraceSet, pool, read_traces
from prism.plan import LOCAL, ExecutionPlan, Mode
from prism.spec import ModelSpec
from prism.trace import Batch
from prism.trace.metrics import summarise

B1 = Case("measured", "vit", 197, 1)


def map_of(folder, **fields):
    return build_map(read_traces([folder]), created="now", **fields)


def grid(folder, table, batch=1):
    """Files of {(plan, rate): [milliseconds of each visit]}; rate None is local."""
    for (plan, rate), visits in table.items():
        link = "loopback" if rate is None else f"testbed:{rate}Mbps"
        visit(folder, plan, link, [[ms] * 3 for ms in visits], batch)


def test_the_batches_of_all_visits_are_pooled(tmp_path):
    visit(tmp_path, FULL, "testbed:100Mbps,2ms", [[10, 20, 60], [30, 40]])
    (cell,) = map_of(tmp_path).cells
    assert cell.latency_ms.p50 == 30  # of 10 20 30 40 60; the mean of the visits' medians would be 27.5
    assert cell.latency_ms.p95 == pytest.approx(56)
    assert cell.visit_p50_ms == (20, 35)
    assert (cell.batches, cell.visits, cell.failed) == (5, 2, 0)
    assert cell.spread_ms == (20, 40)  # quartiles; the visits' medians lie between 20 and 35
    assert cell.split_ms["compute"] == 15 and cell.split_ms["wire"] == 15
    assert cell.bytes_per_exchange == 1000
    assert cell.link == LinkSpec(kind="testbed", rate_bps=1e8, latency_s=2e-3) and cell.bandwidth_mbps == 100


def test_the_spread_is_the_range_of_the_visits(tmp_path):
    visit(tmp_path, LOCAL, "loopback", [[10] * 9, [18], [11] * 9])
    (cell,) = map_of(tmp_path).cells
    assert cell.spread_ms == (10, 18)  # the quartiles are 10 and 11


def test_one_stalled_visit_of_many_does_not_hide_what_all_others_say(tmp_path):
    visit(tmp_path, LOCAL, "loopback", [[10, 10]] * 4 + [[11, 11]] * 4 + [[900, 900]])
    visit(tmp_path, FULL, "testbed:100Mbps", [[20, 20]] * 9)
    local, full = map_of(tmp_path).cells
    assert max(local.visit_p50_ms) == 900
    assert not full.within_noise(local)


def test_local_has_one_cell_whatever_link_was_set(tmp_path):
    visit(tmp_path, LOCAL, "loopback", [[10]])
    visit(tmp_path, msgspec.structs.replace(LOCAL, overlap=False), "testbed:100Mbps", [[12]])
    (cell,) = map_of(tmp_path).cells
    assert (cell.plan, cell.link, cell.bandwidth_mbps, cell.visits) == (LOCAL, LinkSpec(), None, 2)


def test_per_sample_latency(tmp_path):
    visit(tmp_path, LOCAL, "loopback", [[80]], batch=4)
    assert map_of(tmp_path).cells[0].per_sample_ms == 20


def test_a_smaller_last_batch_and_a_failed_one_do_not_count(tmp_path):
    found = records([10, 10], ranks=1, size=4)
    found += [
        Batch(batch=3, size=2, start_ns=0, end_ns=5 * MS),
        Batch(batch=4, size=4, start_ns=0, end_ns=9 * MS, failed="peer lost"),
    ]
    write(tmp_path / "a.jsonl", header(LOCAL, "loopback", batch=4), found)
    (cell,) = map_of(tmp_path).cells
    assert (cell.latency_ms.p50, cell.batches, cell.failed) == (10, 2, 1)


def test_spans_of_a_batch_that_was_cut_stay_out_of_the_next_visit(tmp_path):
    whole = visit(tmp_path, LOCAL, "loopback", [[10, 10], [10, 10]])
    lines = whole[0].read_bytes().splitlines(keepends=True)
    whole[0].write_bytes(b"".join(lines[:-1]) + lines[-1][:20])  # the last batch's record is cut in two
    (cell,) = map_of(tmp_path).cells
    assert cell.provenance.cut
    assert (cell.batches, cell.split_ms["compute"]) == (3, 5)


def test_pooling_one_visit_changes_no_figure(tmp_path):
    visit(tmp_path, FULL, "loopback", [[10, 30, 20]])
    trace = read_traces([tmp_path]).files[0].trace
    assert summarise(pool([trace])) == summarise(trace)


def test_energy_of_pooled_visits_is_their_mean(tmp_path):
    for number, watts in enumerate((4.0, 8.0)):
        found = powered(records([100, 100, 100], ranks=1), watts)
        write(tmp_path / f"{number}.jsonl", header(LOCAL, "loopback"), found)
    (cell,) = map_of(tmp_path).cells
    assert cell.energy_j == pytest.approx(0.6, rel=1e-3)  # 0.1 s at 6 W
    assert cell.energy is not None and cell.energy.source == "ina3221"


def test_two_short_visits_make_no_long_energy_window(tmp_path):
    for number in range(2):  # 60 samples each, no warm-up between: too few, and together no window
        found = [record for record in records([60], 1, warmup_ms=1) if record.batch > 0]
        write(tmp_path / f"{number}.jsonl", header(LOCAL, "loopback", seed=number), powered(found, 5))
    (cell,) = map_of(tmp_path).cells
    assert cell.energy_j is None and "samples" in cell.energy_note


def test_without_a_meter_energy_is_null_with_a_note(tmp_path):
    visit(tmp_path, LOCAL, "loopback", [[10]])
    (cell,) = map_of(tmp_path).cells
    assert cell.energy_j is None and cell.energy_note == "not measured: no power meter was read"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"host": {"processor": "another"}}, "processor is 'a CPU' in .* and 'another'"),
        ({"host": {"power_mode": "15W"}}, "power_mode is None in .* and '15W'"),
        ({"host": {"versions": {"python": "3.11", "torch": "2.4"}}}, "version of torch is '2.14' .* '2.4'"),
        ({"host": {"testbed": {"medium": "tap"}}}, "medium is 'ifb.tbf' .* 'tap'"),
        ({"weights": "trained"}, "weights is 'random' .* 'trained'"),
        ({"oversubscribed": True}, "oversubscribed is False .* True"),
    ],
)
def test_visits_that_do_not_belong_together_are_refused(tmp_path, fields, words):
    visit(tmp_path, FULL, "testbed:100Mbps", [[10]])
    write(tmp_path / "z.jsonl", header(FULL, "testbed:100Mbps", created="2026-02", **fields), records([10], 2))
    with pytest.raises(TraceError, match=words) as error:
        map_of(tmp_path)
    assert "\n" not in str(error.value)


def test_local_and_distributed_of_two_machines_are_refused(tmp_path):
    visit(tmp_path, LOCAL, "loopback", [[10]])
    visit(tmp_path, FULL, "testbed:100Mbps", [[10]], host={"cores": 8})
    with pytest.raises(TraceError, match="vit at batch 1: cores is"):
        map_of(tmp_path)


def test_a_drifting_clock_and_another_seed_are_no_reason_to_refuse(tmp_path):
    visit(tmp_path, FULL, "testbed:100Mbps", [[10]])
    head = header(FULL, "testbed:100Mbps", created="2026-02", host={"clock_mhz": 9.0}, seed=5)
    write(tmp_path / "z.jsonl", head, records([10], 2))
    assert map_of(tmp_path).cells[0].visits == 2


def test_what_is_left_out_is_listed(tmp_path):
    (path,) = visit(tmp_path, LOCAL, "loopback", [[10]])
    (tmp_path / "again.jsonl").write_bytes(path.read_bytes())
    (tmp_path / "bad.jsonl").write_bytes(b'{"type":"header"}\n')
    write(tmp_path / "short.jsonl", header(LOCAL, "loopback"), records([], 1))
    (tmp_path / "notes.txt").write_text("not a trace")
    found = map_of(tmp_path).left_out
    assert [line.split(":")[0] for line in found] == ["bad.jsonl", "short.jsonl", path.name]
    assert "same bytes as again.jsonl" in found[2] and "no complete measured batch" in found[1]
    assert str(tmp_path) not in "".join(found)
    assert map_of(tmp_path).cells[0].visits == 1


def test_nothing_to_map_is_one_clear_line(tmp_path):
    with pytest.raises(TraceError, match=r"holds no \*.jsonl"):
        read_traces([tmp_path])
    with pytest.raises(TraceError, match="doesn't exist"):
        read_traces([tmp_path / "none.jsonl"])
    (tmp_path / "bad.jsonl").write_bytes(b"?\n")
    with pytest.raises(TraceError, match=r"no trace to make a map of: bad\.jsonl: line 1"):
        map_of(tmp_path)


def test_traces_say_their_models_shapes(tmp_path):
    spec = ModelSpec(name="vit", family="vit", blocks=2, width=64, heads=1, mlp_width=256, tokens=197)
    longer = msgspec.structs.replace(spec, tokens=577)
    visit(tmp_path, LOCAL, "loopback", [[10.0]], spec=spec)
    visit(tmp_path, LOCAL, "loopback", [[20.0]], 2, spec=longer, tokens=577)
    visit(tmp_path, LOCAL, "loopback", [[30.0]], model="older")
    known = read_traces([tmp_path])
    assert known.models() == ["older", "vit"] and list(known.shapes()) == ["vit"]
    assert msgspec.structs.replace(known.shapes()["vit"], tokens=197) == spec
    visit(tmp_path, LOCAL, "loopback", [[40.0]], 3, spec=msgspec.structs.replace(spec, width=128))
    with pytest.raises(TraceError, match="of vit are of two shapes"):
        read_traces([tmp_path]).shapes()


def test_a_map_survives_its_file(tmp_path):
    (tmp_path / "t").mkdir()
    visit(tmp_path / "t", FULL, "testbed:100Mbps", [[10, 20]])
    write(tmp_path / "t/e.jsonl", header(LOCAL, "loopback"), powered(records([200], 1), 5))
    map_ = map_of(tmp_path / "t", command="prism-hw map t")
    map_.save(tmp_path / "map.json")
    assert load_map(tmp_path / "map.json") == map_
    assert any(cell.energy for cell in map_.cells)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda raw: raw.replace(b'"version": 1', b'"version": 7', 1), "version 7, this version reads 1"),
        (lambda raw: raw[: len(raw) // 2], "damaged"),
        (lambda raw: raw.replace(b'"batches"', b'"badges"'), "badges|batches"),
        (lambda raw: b"[]", "no performance map"),
        (lambda raw: raw.replace(b'"vit"', b'"v\xff"'), "damaged"),
        (lambda raw: raw.replace(b'"devices": 1', b'"devices": 0'), r"map\.json.*0 devices.*\$\.cells\[0\]\.plan"),
    ],
)
def test_a_map_that_cannot_be_read_says_why(tmp_path, change, words):
    (tmp_path / "t").mkdir()
    visit(tmp_path / "t", LOCAL, "loopback", [[10]])
    path = tmp_path / "map.json"
    map_of(tmp_path / "t").save(path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(TraceError, match=words):
        load_map(path)
    with pytest.raises(TraceError, match="can't be read"):
        load_map(tmp_path / "none.json")


def test_lookup(tmp_path):
    grid(tmp_path, {(LOCAL, None): [100], (FULL, 100): [150], (FULL, 400): [50]})
    map_ = map_of(tmp_path)
    assert map_.lookup(B1, FULL, LinkSpec.parse("testbed:400Mbps")).latency_ms.p50 == 50
    assert map_.lookup(B1, FULL, LinkSpec.parse("testbed:400Mbps,2ms")) is None
    assert map_.lookup(B1, MEANS, LinkSpec.parse("testbed:400Mbps")) is None
    assert map_.local(B1).latency_ms.p50 == 100


def test_crossover_in_bandwidth(tmp_path):
    means20 = msgspec.structs.replace(MEANS, segments=20)
    grid(
        tmp_path,
        {
            (LOCAL, None): [100],
            (FULL, 100): [150],
            (FULL, 400): [50],  # half way in the logarithm: 200
            (MEANS, 100): [90],
            (MEANS, 400): [80],
            (means20, 100): [120],
            (means20, 400): [110],
        },
    )
    found = {c.plan: c for c in crossovers(map_of(tmp_path)) if c.axis == "bandwidth_mbps"}
    assert found[FULL].kind == "at" and found[FULL].at == pytest.approx(200)
    assert (found[MEANS].kind, found[MEANS].at) == ("always", None)
    assert (found[means20].kind, found[means20].at) == ("never", None)
    assert found[FULL].measured == (100, 400) and found[FULL].batch == 1


def test_crossover_in_batch(tmp_path):
    for batch, local, full in ((1, 100, 130), (2, 200, 220), (8, 800, 720)):
        grid(tmp_path, {(LOCAL, None): [local], (FULL, 100): [full]}, batch)
    (found,) = [c for c in crossovers(map_of(tmp_path)) if c.axis == "batch"]
    # 10 % slower at 2 and 10 % faster at 8: half way in the logarithm
    assert found.kind == "at" and found.at == pytest.approx(4)
    assert found.link == LinkSpec.parse("testbed:100Mbps") and found.measured == (1, 2, 8)


@pytest.mark.parametrize(
    ("excess", "kind", "at"),
    [
        ([0.5, 0.1], "never", None),
        ([0.5, 0.0], "never", None),
        ([-0.1], "always", None),
        ([0.0, -0.1], "at", 10),
        ([0.1, -0.3], "at", 10 * math.exp(0.25 * math.log(10))),
        ([0.1, -0.1, 0.1, -0.1], "at", 10**3.5),
        ([-0.1, 0.1], "at", 10**1.5),
    ],
)
def test_crossing_classes(excess, kind, at):
    values = [10.0 ** (k + 1) for k in range(len(excess))]
    found, where, every = crossing(values, excess)
    assert found == kind and where == (None if at is None else pytest.approx(at))
    assert len(every) == sum((a < 0) != (b < 0) for a, b in itertools.pairwise(excess))


def test_ties_are_the_rates_within_noise(tmp_path):
    grid(tmp_path, {(LOCAL, None): [100, 104], (FULL, 100): [150], (FULL, 400): [101]})
    (found,) = [c for c in crossovers(map_of(tmp_path)) if c.axis == "bandwidth_mbps"]
    assert found.ties == (400,)


def test_without_a_local_cell_there_is_no_crossover(tmp_path):
    grid(tmp_path, {(FULL, 100): [150], (FULL, 400): [50]})
    assert crossovers(map_of(tmp_path)) == ()


def test_compare_counts_what_agrees_within_the_spread(tmp_path):
    first, second = tmp_path / "1", tmp_path / "2"
    first.mkdir(), second.mkdir()
    grid(first, {(LOCAL, None): [100, 104], (FULL, 100): [150], (MEANS, 100): [1]})
    grid(second, {(LOCAL, None): [103], (FULL, 100): [180], (FULL, 200): [1]})
    found = compare_maps(map_of(first), map_of(second))
    assert found.share == 0.5
    assert [row.agrees for row in found.differences] == [False, True]
    assert found.differences[0].relative == pytest.approx(0.2)
    assert found.differences[1].first_spread_ms == (100, 104) and found.differences[1].first_ms == 102
    assert found.only_first == ("vit B=1 2 parts, means L=10, testbed:100Mbps",)
    assert found.only_second == ("vit B=1 2 parts, full, testbed:200Mbps",)
    assert found.machines == ()
    same = compare_maps(map_of(first), map_of(first))
    assert same.share == 1 and all(row.relative == 0 for row in same.differences)


def test_how_many_cells_agree_by_chance():
    """Against a count of orders: five visits each of two runs that are alike."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 40_000, 5))
    inside = [(np.median(x, 1) >= y.min(1)) & (np.median(x, 1) <= y.max(1)) for x, y in ((a, b), (b, a))]
    assert chance_of_agreement(5, 5) == pytest.approx(np.mean(inside[0] | inside[1]), abs=0.004)
    assert chance_of_agreement(1, 1) == 0.0, "two single visits have no spread"


def test_runs_that_differ_everywhere_are_not_the_same(tmp_path):
    batches = range(1, 31)
    for name, factor in (("1", 1.0), ("2", 1.0), ("3", 1.2)):
        (tmp_path / name).mkdir()
        for size in batches:
            visits = [[100 * factor + (k + size) % 5] for k in range(5)]
            visit(tmp_path / name, LOCAL, "loopback", visits, batch=size)
    maps = [map_of(tmp_path / name) for name in "123"]
    assert compare_maps(maps[0], maps[1]).same is True
    assert compare_maps(maps[0], maps[2]).same is False


def test_compare_names_machines_that_differ(tmp_path):
    for name, cores in (("1", 2), ("2", 4)):
        (tmp_path / name).mkdir()
        visit(tmp_path / name, LOCAL, "loopback", [[10]], host={"cores": cores})
    assert compare_maps(map_of(tmp_path / "1"), map_of(tmp_path / "2")).machines == ("cores: 2 and 4",)


@given(data=st.data())
def test_the_order_of_files_does_not_matter(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("order")
    plans = [(LOCAL, None), (FULL, 100), (MEANS, 100)]
    grid(folder, {key: data.draw(st.lists(st.integers(1, 99), min_size=1, max_size=3)) for key in plans})
    files = read_traces([folder]).files
    mixed = TraceSet(files=tuple(data.draw(st.permutations(files))))
    assert build_map(mixed, created="now") == build_map(TraceSet(files=files), created="now")
    paths = data.draw(st.permutations(sorted(folder.glob("*.jsonl"))))
    assert read_traces(paths) == read_traces([folder])


@given(rates=st.lists(st.floats(1, 1e4), min_size=2, max_size=2, unique=True), data=st.data())
def test_a_crossing_lies_between_its_neighbours(rates, data):
    low, high = sorted(rates)
    excess = (data.draw(st.floats(1e-6, 10)), -data.draw(st.floats(1e-6, 0.99)))
    kind, at, _ = crossing((low, high), excess)
    assert kind == "at" and at is not None and low * (1 - 1e-9) <= at <= high * (1 + 1e-9)


def test_plan_labels_name_what_is_not_default():
    plan = ExecutionPlan(
        mode=Mode.FULL, devices=3, wire="int8", weights=(2, 1, 1), collective="ring", embed="each", overlap=False
    )
    assert plan_label(plan) == "3 parts, full int8 weights 2:1:1 ring embed each no overlap"
    assert plan_label(LOCAL) == "local" and plan_label(MEANS) == "2 parts, means L=10"


def test_provenance(tmp_path):
    paths = visit(tmp_path, FULL, "testbed:100Mbps", [[10], [10]])
    (cell,) = map_of(tmp_path).cells
    assert [name for name, _ in cell.provenance.files] == [path.name for path in paths]
    assert len({digest for _, digest in cell.provenance.files}) == 2
    assert cell.provenance.created == ("2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z")
    assert cell.provenance.host["version of torch"] == HOST["versions"]["torch"]
    assert cell.provenance.configs == ("c0ffee",)
    assert ratio(cell, cell) == 1
