"""Predictions, crossovers and studies: intervals, classes, bad studies, the same answer from any engine."""

import sys
import types

import msgspec
import numpy as np
import pytest
from support.profiles import SMALL, VIT, profile, terms

from prism.cost import load_profile
from prism.errors import ConfigError, PlanError
from prism.labels import plan_label, without_habits
from prism.link import LinkSpec
from prism.plan import LOCAL, ExecutionPlan, Mode
from prism.workload.memory import memory_bytes
from sim.ask.break_even import find_break_even, sensitivity
from sim.ask.point import Point, latency_ms, plan_of, predict, summary
from sim.ask.study import InverseAnswer, over_processes, over_ray, points, solve
from sim.ask.study_file import Constraints, Inverse, Study, StudyGrid, compression, load_study
from sim.engine.topology import Edge

ORIN = load_profile("orin-nano")
MEANS = ExecutionPlan(mode=Mode.SEGMENT_MEANS, devices=2, segments=10)


def link(mbps: float) -> LinkSpec:
    return LinkSpec(kind="testbed", rate_bps=mbps * 1e6)


def published(mode: Mode, batch: int, mbps: float = 400) -> Point:
    plan = plan_of(ORIN, mode, 2, segments=10)
    return Point(model=VIT, plan=plan, batch=batch, link=link(mbps))


def test_the_built_in_profile_says_what_was_published():
    found = {b: predict(ORIN, published(Mode.SEGMENT_MEANS, b)).latency_ms for b in (1, 4, 16)}
    assert found == {
        1: pytest.approx(168.1, rel=0.1),
        4: pytest.approx(252.9, rel=0.1),
        16: pytest.approx(704.7, rel=0.1),
    }
    cell = predict(ORIN, published(Mode.LOCAL, 8), ORIN.draws(32, 0))
    assert cell.tag == "calibrated" and cell.interval_ms[0] < 485.0 < cell.interval_ms[1]
    assert {term.origin for term in ORIN.terms} == {"fitted", "prior"}


@pytest.mark.parametrize("mode", [Mode.LOCAL, Mode.FULL, Mode.SEGMENT_MEANS])
def test_a_latency_without_its_trace_is_the_traces(mode):
    point = published(mode, 3)  # of a device whose clock moves: a batch goes before the one that counts
    assert latency_ms(ORIN, ORIN.model(), point) == summary(ORIN, ORIN.model(), point).latency_ms.p50


def test_a_vocabulary_wider_than_any_product_that_was_timed_is_extrapolated():
    known, local = load_profile("x86-core"), LOCAL
    tags = [
        predict(
            known, Point(model=msgspec.structs.replace(VIT, output_width=width), plan=local, batch=1, link=link(1))
        ).tag
        for width in (0, 1000, 50257)
    ]
    assert tags == ["calibrated", "calibrated", "extrapolated"]


def test_what_lies_outside_of_the_data_is_said():
    away = predict(ORIN, published(Mode.SEGMENT_MEANS, 64, 250))
    assert away.tag == "extrapolated"
    assert [line.split()[0] for line in away.outside] == ["batch", "link_mbps"]
    ours = msgspec.structs.replace(published(Mode.FULL, 8), plan=ExecutionPlan(mode=Mode.FULL, devices=2))
    assert any(line.startswith("overlap") for line in predict(ORIN, ours).outside)


def test_plans_of_replicas_and_stages_are_measured_by_what_a_device_computes_and_the_largest_message():
    replicas = ExecutionPlan(mode=Mode.LOCAL, devices=2, replicas=2)
    stages = ExecutionPlan(mode=Mode.LOCAL, devices=2, stages=2, microbatch=2, wire="fp16")
    point = Point(model=VIT, plan=replicas, batch=7, link=link(400))
    assert point.features() | {"batch": 4, "message_bytes": 3 * 3 * 224 * 224} == point.features()
    point = msgspec.structs.replace(point, plan=stages)
    assert point.features() | {"batch": 2, "message_bytes": 2 * 197 * 768 * 2} == point.features()


def test_replicas_and_stages_are_extrapolated_unless_the_data_have_them():
    known = load_profile("x86-core")
    plan = ExecutionPlan(mode=Mode.LOCAL, devices=2, replicas=2)
    point = Point(model=VIT, plan=plan, batch=2, link=link(400))
    assert "replicas 2 (never calibrated)" in predict(known, point).outside
    taken = msgspec.structs.replace(known.taken, replicas=True)
    assert not predict(msgspec.structs.replace(known, taken=taken), point).outside


def test_a_crossover_over_the_batch_lies_where_it_was_published():
    flip = find_break_even(ORIN, published(Mode.SEGMENT_MEANS, 8), "batch", draws=16)
    assert flip.kind == "at" and 4 < flip.value <= 8 and flip.wins == "above"
    assert flip.interval[0] <= flip.value <= flip.interval[1]
    assert flip.p_distributed_wins > 0.5
    assert find_break_even(ORIN, published(Mode.FULL, 8), "bandwidth", range(200, 901, 100), draws=4).kind == "never"


def test_a_break_even_in_bandwidth_is_one():
    known = profile()
    point = Point(model=VIT, plan=MEANS, batch=4, link=link(100))
    flip = find_break_even(known, point, "bandwidth", draws=2)
    assert flip.kind == "at"
    local = predict(known, msgspec.structs.replace(point, plan=LOCAL)).latency_ms
    there = predict(known, msgspec.structs.replace(point, link=link(flip.value))).latency_ms
    assert there == pytest.approx(local, rel=0.01)
    assert find_break_even(known, point, "bandwidth", (5000, 9000), draws=2).kind == "always"
    assert find_break_even(known, point, "bandwidth", (1, 2), draws=2).kind == "never"


def test_a_crossover_needs_two_devices():
    with pytest.raises(PlanError, match="--devices 2"):
        find_break_even(ORIN, published(Mode.LOCAL, 8), "batch")


def test_sensitivity_names_the_term_that_matters():
    names = [term.name for term in terms()]
    covariance = np.diag([0.01 if name != "gemm.s_per_flop" else 0.25 for name in names])
    known = profile(covariance=tuple(map(tuple, covariance.tolist())))
    found = sensitivity(known, Point(model=VIT, plan=MEANS, batch=8, link=link(900)))
    assert found[0].term == "gemm.s_per_flop" and found[0].step == pytest.approx(0.5)


STUDY = Study(
    model="small",
    profile="orin-nano",
    grid=StudyGrid(batch=(1, 4), bandwidth=("50Mbps", "400Mbps"), segments=(2, 10), devices=(2, 3)),
    constraints=Constraints(max_latency_ms=1e6),
    inverse=(
        Inverse(find="least_bandwidth", max_latency_ms=200, batch=1),
        Inverse(find="largest_segments", max_latency_ms=0.001),
    ),
)


def test_a_study_is_the_same_from_one_process_from_two_and_from_ray(monkeypatch):
    one = solve(STUDY, [SMALL], over_processes(1))
    assert len(one.cells) == 2 + 2 * 2 * 2 + 2 * 2 * 2 * 2  # local knows no link
    monkeypatch.setattr("sim.ask.study.CHUNK", 4)
    assert solve(STUDY, [SMALL], over_processes(2)) == one
    fake = types.ModuleType("ray")
    fake.init = lambda **_: None
    fake.put = lambda value: value
    fake.get = lambda values: values
    fake.remote = lambda function: types.SimpleNamespace(remote=function)
    monkeypatch.setitem(sys.modules, "ray", fake)
    assert solve(STUDY, [SMALL], over_ray()) == one


def test_ray_that_is_not_there_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="prism-edge\\[ray\\]"):
        over_ray()


def test_the_front_is_beaten_by_no_cell_and_the_best_is_on_it():
    result = solve(STUDY, [SMALL], over_processes(1))
    cells = [result.cells[k] for k in result.feasible]
    for k in result.front:
        own = result.cells[k]
        assert not any(
            c.per_sample_ms < own.per_sample_ms and c.energy_j / c.batch < own.energy_j / own.batch for c in cells
        )
    assert result.best in result.front


def test_questions_backwards():
    rate, none = solve(STUDY, [VIT], over_processes(1)).answers
    plan = plan_of(ORIN, Mode.SEGMENT_MEANS, 2, segments=10)

    def at(mbps: float) -> float:
        return predict(ORIN, Point(model=VIT, plan=plan, batch=1, link=link(mbps))).latency_ms

    assert at(rate.value) <= 200 < at(rate.value * 0.98)
    assert none == InverseAnswer(
        find="largest_segments", value=None, latency_ms=None, tag="", note="nothing keeps 0.001 ms"
    )


def test_what_can_not_be_is_left_out_and_named():
    study = msgspec.structs.replace(STUDY, grid=StudyGrid(segments=(2, 60)), inverse=())
    _, left_out = points(study, [SMALL], ORIN)
    assert len(left_out) == 1 and "segments 60 exceed" in left_out[0]
    with pytest.raises(ConfigError, match="no cell of the grid can be"):
        points(
            msgspec.structs.replace(study, grid=StudyGrid(mode=(Mode.SEGMENT_MEANS,), segments=(60,))), [SMALL], ORIN
        )
    with pytest.raises(ConfigError, match="1 prefix tokens"):
        points(msgspec.structs.replace(study, grid=StudyGrid(tokens=(1,))), [SMALL], ORIN)


WAYS = StudyGrid(batch=(1, 8), devices=(2, 4), replicas=(1, 2), stages=(1, 2), microbatch=(2,))


def test_a_grid_combines_replicas_stages_and_the_parts_that_they_leave():
    found, left_out = points(Study(model="vit", grid=WAYS), [VIT], ORIN)
    labels = {plan_label(without_habits(point.plan)) for point in found if point.batch == 8}
    assert labels == {
        "local",
        "2 parts, full",
        "4 parts, full",
        "2 parts, means L=10",
        "4 parts, means L=10",
        "2 replicas, microbatch 2",
        "2 stages, microbatch 2",
        "2 replicas x 2 stages, microbatch 2",
        *(
            f"2 {name} x 2 parts, {kind} microbatch 2"
            for name in ("replicas", "stages")
            for kind in ("full", "means L=10")
        ),
    }
    assert left_out == ["2 replicas for a batch of 1: use at most 1 replicas, or a larger batch"]
    assert not any(point.plan.replicas > 1 for point in found if point.batch == 1)
    alone = StudyGrid(mode=(Mode.FULL,), replicas=(2,), batch=(8,))
    with pytest.raises(ConfigError, match="2 replicas of 1 stages on 2 devices, mode full"):
        points(Study(model="vit", grid=alone), [VIT], ORIN)


def test_the_best_of_a_study_may_be_any_way():
    grid = StudyGrid(batch=(8,), replicas=(1, 2), stages=(1, 2))
    result = solve(Study(model="vit", grid=grid), [VIT], over_processes(1))
    assert plan_label(result.cells[result.best].plan) == "2 replicas"
    assert result.flat()["cells"][result.best]["replicas"] == 2


def test_questions_backwards_of_replicas():
    questions = (
        Inverse(find="fewest_devices", max_latency_ms=200, mode=Mode.LOCAL, replicas=2, batch=8),
        Inverse(find="least_bandwidth", max_latency_ms=300, mode=Mode.LOCAL, replicas=2, batch=8),
    )
    fewest, rate = solve(Study(model="vit", inverse=questions), [VIT], over_processes(1)).answers

    def at(replicas: int, mbps: float) -> float:
        plan = ExecutionPlan(mode=Mode.LOCAL, devices=replicas, replicas=replicas)
        return predict(ORIN, Point(model=VIT, plan=plan, batch=8, link=link(mbps))).latency_ms

    assert at(int(fewest.value), 400) <= 200 < at(int(fewest.value) - 1, 400)
    assert at(2, rate.value) <= 300 < at(2, rate.value * 0.98)


def test_a_plan_that_needs_more_memory_than_a_device_has_is_left_out():
    needed = memory_bytes(VIT, LOCAL, 1)[0]
    study = Study(model="vit", memory=f"{needed - 1}B", grid=StudyGrid(stages=(1, 2), mode=(Mode.LOCAL,)))
    found, left_out = points(study, [VIT], ORIN)
    assert [plan_label(point.plan) for point in found] == ["2 stages"]
    assert len(left_out) == 1 and left_out[0].startswith("local: rank 0 needs")
    with pytest.raises(
        ConfigError, match=r"no plan fits .*local: rank 0 needs [\d.]+ MB .*limit is 1 MB.*2 stages: rank 0 needs"
    ):
        points(msgspec.structs.replace(study, memory="1MB"), [VIT], ORIN)


def test_compression_is_of_the_parts():
    grid = StudyGrid(mode=(Mode.SEGMENT_MEANS,), devices=(4,), replicas=(1, 2), batch=(8,))
    parts, replicas = solve(Study(model="vit", grid=grid), [VIT], over_processes(1)).cells
    assert compression(parts) == VIT.tokens / 40 and compression(replicas) == VIT.tokens / 20


def test_devices_of_other_speeds_wait_for_the_slow_one_unless_it_has_less_to_do():
    study = Study(
        model="small",
        profile="x86-core",
        speeds=(1.0, 0.5),
        grid=StudyGrid(mode=(Mode.LOCAL, Mode.FULL), batch=(8,), bandwidth=("1Gbps",), split=("even", "speed")),
    )
    local, even, split = solve(study, [VIT], over_processes(1)).cells
    alike = solve(msgspec.structs.replace(study, speeds=(1.0, 1.0)), [VIT], over_processes(1)).cells
    assert local.latency_ms == alike[0].latency_ms and local.tag == "calibrated"
    assert even.latency_ms > split.latency_ms > alike[1].latency_ms
    assert even.split_ms["wait"] > split.split_ms["wait"] and split.plan.weights == (1.0, 0.5)
    assert any("other speeds" in line for line in split.outside)


def test_a_device_twice_as_fast_takes_half_the_time():
    study = Study(model="small", speeds=(2.0,), grid=StudyGrid(mode=(Mode.LOCAL,), devices=(1,)))
    fast, usual = (
        solve(msgspec.structs.replace(study, speeds=speeds), [VIT], over_processes(1)).cells[0].latency_ms
        for speeds in ((2.0,), ())
    )
    assert fast == pytest.approx(usual / 2, rel=1e-3)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Constraints(max_latency_ms=1, min_samples_per_s=1), "no cell keeps max_latency_ms 1:"),
        (Constraints(max_latency_ms=90, min_samples_per_s=18), "kept by some cell, all by none"),
        (Constraints(max_latency_ms=1e6), ""),
    ],
)
def test_constraints_that_nothing_keeps_are_named(limits, words):
    study = Study(model="vit", grid=StudyGrid(batch=(1, 32)), constraints=limits)
    note = solve(study, [VIT], over_processes(1)).note
    assert words in note and bool(note) == bool(words)


LINKED = 'model = "m"\ngrid = {devices = [3]}\n'


def test_links_of_ones_own_carry_what_they_should():
    wired = Study(
        model="small",
        grid=StudyGrid(mode=(Mode.FULL,), devices=(2,)),
        links=tuple(Edge(between=(rank, "switch"), rate="10Gbps", latency="10us") for rank in ("0", "1")),
    )
    cell = solve(wired, [VIT], over_processes(1)).cells[0]
    assert cell.split_ms["wire"] < 0.1 * predict(ORIN, published(Mode.FULL, 1)).split_ms["wire"] + 20
    assert "custom" in str(cell.outside)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('model = "m"\n[grid]\nbatches = [1]', "did you mean 'batch'"),
        ('model = "m"\n[grid]\nbatch = []', "grid.batch is empty"),
        ("model = []", "model is empty"),
        ('model = "m"\n[constraints]\nmax_compression = 0.5', "below 1"),
        ('model = "m"\n[constraints]\nmax_latency_ms = -1', "max_latency_ms"),
        ('model = "m"\n[grid]\nbatch = [0]', "grid.batch"),
        ('model = "m"\n[grid]\nmode = ["quick"]', "quick"),
        ('model = "m"\nobjective = "cost"', "cost"),
        ('model = "m"\nspeeds = [1]', "1 speeds for 2 devices"),
        ('model = "m"\nmemory = "8"', "write it like 8GB|has the unit"),
        ('model = "m"\n[grid]\nreplicas = []', "grid.replicas is empty"),
        ('model = "m"\nspeeds = [1, 0]', "speeds"),
        ('model = "m"\ngrid = {split = ["speed"]}', "0 speeds for 2 devices"),
        (LINKED + "[[links]]\nbetween = ['0', '7']\nrate = '1Gbps'\n", "device 7"),
        (LINKED + "[[links]]\nbetween = ['0', '1']\nrate = '1Gbps'\n", "device 2 is isolated"),
        (
            LINKED
            + "".join(
                f"[[links]]\nbetween = {pair}\nrate = '1Gbps'\n" for pair in (["0", "1"], ["1", "2"], ["2", "0"])
            ),
            "cycle",
        ),
    ],
)
def test_a_bad_study_is_one_line(tmp_path, text, part):
    path = tmp_path / "s.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=part) as error:
        load_study(path)
    assert "\n" not in str(error.value)
