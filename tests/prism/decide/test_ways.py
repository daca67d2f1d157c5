"""The policy over all ways: replicas, stages and parts beside local."""

import msgspec
import pytest
from support.answers import accuracy_table
from support.serving import cell
from support.simulated import MODELS, simulated, trace_set

from prism.decide.accuracy import answers_alike, is_exact
from prism.decide.policy import FixedPolicy, LookupPolicy, PrismPolicy, State
from prism.decide.rate_gauge import RateGauge
from prism.decide.table import Objective, Observation, Table, TableRow, table_of
from prism.perfmap import PerformanceMap, build_map, load_map
from prism.plan import LOCAL, ExecutionPlan, Mode

FULL = ExecutionPlan(mode=Mode.FULL, devices=2)
MEANS = ExecutionPlan(mode=Mode.SEGMENT_MEANS, devices=2, segments=10)
REPLICAS = ExecutionPlan(mode=Mode.LOCAL, devices=2, replicas=2)
STAGES = ExecutionPlan(mode=Mode.LOCAL, devices=2, stages=2)
CODED = msgspec.structs.replace(STAGES, wire="int8")
BOTH = ExecutionPlan(mode=Mode.SEGMENT_MEANS, devices=4, segments=10, replicas=2)
EXACT = Objective(least_agreement=0.99)


@pytest.fixture(scope="module")
def map_() -> PerformanceMap:
    model = {"vit768": MODELS["vit768"]}
    traces = simulated((LOCAL, FULL, MEANS, STAGES), rates_mbps=(20, 200, 1000), batches=(1, 2, 4, 8), models=model)
    traces += simulated((REPLICAS, BOTH), rates_mbps=(20, 200, 1000), batches=(2, 4, 8), models=model)
    return build_map(trace_set(traces))


@pytest.fixture(scope="module")
def table(map_: PerformanceMap) -> Table:
    return table_of([map_], "vit768")


def seen(batch: int, mbps: float = 200, devices: int = 2) -> Observation:
    return Observation(batch=batch, devices=devices, bandwidth_bps=mbps * 1e6, at_s=100.0)


def chosen(table: Table, observation: Observation, objective: Objective = Objective()) -> ExecutionPlan:
    return PrismPolicy().decide(observation, table, objective, State()).plan


def test_a_batch_is_split_where_there_are_samples_and_its_tokens_where_there_is_one(table):
    assert chosen(table, seen(4), EXACT) == chosen(table, seen(8), EXACT) == REPLICAS
    assert chosen(table, seen(1, mbps=1000)) == MEANS
    assert chosen(table, seen(1, mbps=20), EXACT) == LOCAL


def test_a_plan_with_more_replicas_than_samples_is_no_candidate(table):
    one, two = table.at(seen(1), Objective()), table.at(seen(2), Objective())
    assert one.of(REPLICAS) is None and REPLICAS not in [each.plan for each in one.ranked()]
    assert two.of(REPLICAS) is not None and REPLICAS in [each.plan for each in two.ranked()]
    present = PrismPolicy().decide(seen(1), table, EXACT, State(plan=REPLICAS))
    assert present.plan != REPLICAS and present.why.startswith("the plan before can't be kept")
    assert LookupPolicy().decide(seen(1), table, Objective(), State()).plan != REPLICAS


def test_a_plan_that_needs_more_devices_than_there_are_is_no_candidate(table):
    assert BOTH in [each.plan for each in table.at(seen(4, devices=4), Objective()).ranked()]
    assert BOTH not in [each.plan for each in table.at(seen(4, devices=3), Objective()).ranked()]
    assert chosen(table, seen(8, devices=1)) == LOCAL


def test_a_fixed_plan_waits_for_samples_as_for_devices():
    def why(observation):
        decision = FixedPolicy(REPLICAS).decide(observation, None, Objective(), State())
        return decision.plan, decision.why

    assert why(seen(2)) == (REPLICAS, "fixed")
    assert why(seen(1)) == (LOCAL, "fewer samples than replicas")
    assert why(seen(2, devices=1)) == (LOCAL, "devices missing")


def rows(plan: ExecutionPlan, batches: tuple[int, ...], ms_each: float) -> list[TableRow]:
    return [
        TableRow(
            plan=plan,
            batch=batch,
            rate_bps=None if plan == LOCAL else 1e8,
            ms=ms_each * batch,
            p95_ms=ms_each * batch,
            wire_ms=0.0,
            deviation=0.01,
            joules=2.0 * batch,
        )
        for batch in batches
    ]


def test_a_batch_that_does_not_divide_takes_as_long_as_its_fullest_replica():
    table = Table([*rows(LOCAL, (1, 8), 100.0), *rows(REPLICAS, (2, 4, 8), 50.0)])
    for batch, ms in ((2, 100), (3, 200), (4, 200), (5, 300), (7, 400), (9, 500)):
        expected = table.at(seen(batch, mbps=100), Objective()).of(REPLICAS)
        assert expected.ms == pytest.approx(ms), batch
        assert expected.joules == pytest.approx(2.0 * batch), "each sample is computed once"
    measured = Table([*rows(LOCAL, (1, 8), 100.0), *rows(REPLICAS, (2, 3, 8), 50.0)])
    assert measured.at(seen(3, mbps=100), Objective()).of(REPLICAS).ms == pytest.approx(150), "that was measured"


def test_replicas_of_unlike_devices_take_as_long_as_the_one_that_ends_last():
    plan = msgspec.structs.replace(REPLICAS, weights=(2.0, 1.0))
    table = Table([*rows(LOCAL, (1, 12), 100.0), *rows(plan, (3, 12), 40.0)])
    assert table.at(seen(6, mbps=100), Objective()).of(plan).ms == pytest.approx(240), "4 and 2 samples"
    assert plan.shares(4) == (3, 1)  # the faster one takes three halves of what it would of 3
    assert table.at(seen(4, mbps=100), Objective()).of(plan).ms == pytest.approx(180)
    alone = msgspec.structs.replace(REPLICAS, weights=(0.0, 1.0))
    table = Table([*rows(LOCAL, (1, 8), 100.0), *rows(alone, (1, 8), 60.0)])
    assert chosen(table, seen(1, mbps=100)) == alone, "one sample is enough where one replica takes all"


def test_the_rate_is_read_off_replicas_of_equal_shares_alone():
    cells = [cell(LOCAL, b, None, 100.0 * b) for b in (1, 8)]
    cells += [cell(REPLICAS, b, m, 50.0 * b + 100 * b / m, 100 * b / m) for b in (2, 8) for m in (10, 100, 1000)]
    gauge = RateGauge(table_of([PerformanceMap(created="", command="", cells=tuple(cells))], "fashion-vit"))
    assert gauge.rate_of(REPLICAS, 4, 400 / 50).rate_bps == pytest.approx(50e6)
    assert gauge.rate_of(REPLICAS, 3, 300 / 50) is None, "one of them waits for the other's computing"


def test_what_rounds_and_averages_nothing_is_exact_however_it_is_split():
    assert all(is_exact(plan) for plan in (LOCAL, FULL, REPLICAS, STAGES))
    assert not any(is_exact(plan) for plan in (MEANS, BOTH, CODED))


def test_replicas_answer_as_their_parts_and_coded_stages_as_none_else(map_):
    known = accuracy_table("vit768", {LOCAL: (0.95, 1.0), MEANS: (0.90, 0.93)})
    table = table_of([map_], "vit768", [known])
    found = {each.plan: each.agreement for each in table.at(seen(4, devices=4), Objective()).ranked()}
    assert found == {LOCAL: 1.0, FULL: 1.0, REPLICAS: 1.0, STAGES: 1.0, MEANS: 0.93, BOTH: 0.93}
    assert answers_alike(CODED) == CODED and answers_alike(msgspec.structs.replace(CODED, microbatch=2)) == CODED


def test_replicas_of_unlike_parts_answer_as_none_else():
    unlike = msgspec.structs.replace(BOTH, weights=(2.0, 1.0, 1.0, 1.0))
    alike = msgspec.structs.replace(BOTH, weights=(2.0, 1.0, 2.0, 1.0))
    assert answers_alike(unlike) == unlike
    assert answers_alike(alike) == msgspec.structs.replace(MEANS, weights=(2.0, 1.0))


def test_a_map_with_all_ways_loads_as_it_was_saved(map_, tmp_path):
    map_.save(tmp_path / "map.json")
    assert load_map(tmp_path / "map.json") == map_
