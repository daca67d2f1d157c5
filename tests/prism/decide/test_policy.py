"""The policy: what it chooses, when it stays, and that it is pure."""

import itertools
import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.answers import accuracy_table
from support.simulated import MODELS, simulated, trace_set

from prism.decide.interpolation import SURE, quadrature
from prism.decide.policy import Decision, FixedPolicy, LookupPolicy, PrismPolicy, State
from prism.decide.table import Expectation, Objective, Observation, Table, TableRow, table_of
from prism.errors import ConfigError
from prism.perfmap import PerformanceMap, build_map
from prism.plan import LOCAL, ExecutionPlan, Mode
from prism.trace.energy import Energy

RATES = (20, 60, 200, 1000)
FULL = ExecutionPlan(mode=Mode.FULL, devices=2)
MEANS = ExecutionPlan(mode=Mode.SEGMENT_MEANS, devices=2, segments=10)
LATENCY = Objective()


@pytest.fixture(scope="module")
def map_() -> PerformanceMap:
    models = {"vit768": MODELS["vit768"]}
    return build_map(trace_set(simulated(rates_mbps=RATES, batches=(1, 4, 8), models=models)))


@pytest.fixture(scope="module")
def table(map_: PerformanceMap) -> Table:
    return table_of([map_], "vit768")


def seen(mbps: float | None, batch: int = 4, devices: int = 2, at_s: float = 100.0, **fields) -> Observation:
    rate = None if mbps is None else mbps * 1e6
    return Observation(batch=batch, devices=devices, bandwidth_bps=rate, at_s=at_s, **fields)


def expected(table: Table, observation: Observation, objective: Objective) -> list[Expectation]:
    return list(table.at(observation, objective).ranked())


def test_between_cells_it_is_as_the_physics_has_it(map_, table):
    """Latency is linear in 1 / rate: at the mean of two cells' seconds per bit it is the mean of their milliseconds."""
    cells = {c.bandwidth_mbps: c.latency_ms.p50 for c in map_.cells if c.plan == FULL and c.batch == 4}
    middle = 2 / (1 / 20 + 1 / 60)
    found = next(e for e in expected(table, seen(middle), LATENCY) if e.plan == FULL)
    assert found.ms == pytest.approx((cells[20] + cells[60]) / 2)
    batches = {c.batch: c.latency_ms.p50 for c in map_.cells if c.plan == LOCAL}
    local = next(e for e in expected(table, seen(60, batch=6), LATENCY) if e.plan == LOCAL)
    assert local.ms == pytest.approx((batches[4] + batches[8]) / 2)
    assert next(e for e in expected(table, seen(5), LATENCY) if e.plan == FULL).deviation > found.deviation


@settings(deadline=None)
@given(
    st.floats(5, 4000),
    st.integers(1, 20),
    st.floats(0, 2),
    st.sampled_from(["p50", "p95", "energy", "weighted"]),
    st.sets(st.integers(0, 23)),
)
def test_plans_ranked_together_cost_what_each_costs_alone(mbps, batch, deviation, minimise, unmeasured):
    """To the bit, so that a decision and its replay agree; also where joules of some cells were not measured."""
    means = [msgspec.structs.replace(MEANS, segments=k) for k in (5, 10)]
    cells = [(plan, b, rate) for plan in (FULL, *means) for b in (1, 8) for rate in (25e6, 100e6, 400e6, 1600e6)]
    rows = [TableRow(plan=LOCAL, batch=1, rate_bps=None, ms=90, p95_ms=99, wire_ms=0, deviation=0.02, joules=1.0)] + [
        TableRow(
            plan=plan,
            batch=b,
            rate_bps=rate,
            ms=31.7 * b + (k + 1) * 2e9 / rate,
            p95_ms=37.1 * b + (k + 1) * 3e9 / rate,
            wire_ms=1.0,
            deviation=0.05,
            joules=None if k in unmeasured else 0.3 * b + k,
        )
        for k, (plan, b, rate) in enumerate(cells)
    ]
    table, observed = Table(rows), seen(mbps, batch, bandwidth_deviation=deviation)
    objective = Objective(minimise=minimise, joule_ms=3.0)
    ranked = list(table.at(observed, objective).ranked())
    assert [each.plan for each in ranked] == [each.plan for each in sorted(ranked, key=lambda each: each.cost)]
    alone = table.at(observed, objective)
    assert {each.plan: each for each in ranked} == {each.plan: alone.of(each.plan) for each in ranked}


@given(st.floats(5, 4000), st.integers(1, 20), st.floats(0, 2))
def test_batches_of_unlike_rates_are_mixed_as_each_alone_goes_on(mbps, batch, deviation):
    """Latency that is linear in the batch and in 1 / rate is met between cells, and beyond the last of them."""
    linear = {1: (25e6, 100e6, 1600e6), 8: (40e6, 800e6)}
    rows = [TableRow(plan=LOCAL, batch=1, rate_bps=None, ms=90, p95_ms=99, wire_ms=0, deviation=0.02)] + [
        TableRow(plan=FULL, batch=b, rate_bps=rate, ms=30 * b + b * 2e9 / rate, p95_ms=99, wire_ms=0, deviation=0.05)
        for b, rates in linear.items()
        for rate in rates
    ]
    observed = seen(mbps, batch, bandwidth_deviation=deviation)
    found = Table(rows).at(observed, LATENCY).of(FULL)

    def line(b, per_bit):
        return 30 * b + b * 2e9 * max(per_bit, 1 / linear[b][-1])

    def both(per_bit):
        return line(1, per_bit) + (batch - 1) / 7 * (line(8, per_bit) - line(1, per_bit))

    assert found.ms == pytest.approx(sum(share * both(x) for share, x in quadrature(1e-6 / mbps, deviation)))
    slow, fast = (25, 1600) if batch == 1 else (40, 800)
    at_an_end = fast < mbps < 1.05 * fast or 0.95 * slow < mbps < slow  # the doubt beyond a cell begins with nothing
    if deviation < SURE and not at_an_end:
        assert (found.deviation > 0.0501) == (batch > 8 or not slow <= mbps <= fast)


def test_it_distributes_where_the_link_is_fast_and_not_where_it_is_slow(table):
    policy = PrismPolicy()
    slow = policy.decide(seen(20), table, LATENCY, State())
    fast = policy.decide(seen(1000), table, LATENCY, State())
    assert slow.plan == LOCAL and fast.plan in (FULL, MEANS)
    assert slow.expected.ms <= slow.runner_up.ms
    assert policy.decide(seen(None), table, LATENCY, State()).plan == LOCAL, "an unknown link carries nothing"
    assert policy.decide(seen(1000, devices=1), table, LATENCY, State()).plan == LOCAL


def test_it_leaves_at_once_a_plan_that_cannot_run(table):
    state = State(plan=MEANS, since_s=99.99)
    found = PrismPolicy().decide(seen(1000, devices=1), table, LATENCY, state)
    assert found.plan == LOCAL and "can't be kept" in found.why and found.state.since_s == 100.0


def test_a_small_gain_changes_nothing(table):
    every = expected(table, seen(1000), LATENCY)
    near = PrismPolicy(hysteresis=10.0).decide(seen(1000), table, LATENCY, State(plan=LOCAL))
    assert near.plan == LOCAL and "doubt" in near.why and near.runner_up.plan == every[0].plan
    assert PrismPolicy().decide(seen(1000), table, LATENCY, State(plan=LOCAL)).plan == every[0].plan


@pytest.mark.parametrize("joule_ms", [0.0, -1.0, float("inf"), float("nan")])
def test_a_weighted_sum_needs_what_a_joule_is_worth(joule_ms):
    with pytest.raises(ValueError, match="joule_ms"):
        Objective(minimise="weighted", joule_ms=joule_ms)


def test_the_runner_up_is_another_plan(table):
    first = PrismPolicy().decide(seen(1000), table, LATENCY, State())
    still = PrismPolicy().decide(seen(1000), table, LATENCY, first.state)
    assert still.why == "still the best" and still.plan == first.plan
    assert still.runner_up == first.runner_up and still.runner_up.plan != still.plan


def test_a_young_change_waits_unless_it_is_urgent(table):
    young = State(plan=LOCAL, since_s=99.5)
    assert "too young" in PrismPolicy(urgent=1e9).decide(seen(1000), table, LATENCY, young).why
    assert PrismPolicy(urgent=1.0).decide(seen(1000), table, LATENCY, young).plan != LOCAL


def test_doubt_about_the_bandwidth_keeps_the_plan(table):
    policy, state = PrismPolicy(hysteresis=0.0, doubt=1.0), State(plan=LOCAL)
    sure = policy.decide(seen(300, bandwidth_deviation=0.0), table, LATENCY, state)
    unsure = policy.decide(seen(300, bandwidth_deviation=5.0), table, LATENCY, state)
    assert sure.plan != LOCAL and unsure.plan == LOCAL and "doubt" in unsure.why


def test_a_link_that_may_be_slow_costs_more_than_it_is_believed_to(table):
    def ms(mbps, plan=FULL, deviation=0.0):
        return table.at(seen(mbps, bandwidth_deviation=deviation), LATENCY).of(plan).ms

    before = ms(100)
    for deviation in (0.2, 0.5, 0.9):
        step = math.exp(math.sqrt(3) * deviation)
        mean = 2 / 3 * ms(100) + (ms(100 * step) + ms(100 / step)) / 6
        assert ms(100, deviation=deviation) == pytest.approx(mean)
        assert mean > before
        before = mean
    assert ms(100, LOCAL, 0.9) == ms(100, LOCAL), "local uses no link"


@pytest.mark.parametrize("minimise", ["p50", "p95", "weighted", "energy"])
def test_the_quick_cost_is_the_cost(map_, minimise):
    """Plans are sorted by a short cut, which must say what the whole figures say."""
    cells = tuple(msgspec.structs.replace(c, energy_j=c.latency_ms.p50 * c.plan.ranks) for c in map_.cells)
    table = table_of([msgspec.structs.replace(map_, cells=cells)], "vit768")
    for mbps in (5, 33, 400, 5000):
        for batch in (1, 3, 8, 20):
            costs = [
                e.cost for e in expected(table, seen(mbps, batch=batch), Objective(minimise=minimise, joule_ms=0.5))
            ]
            assert costs == sorted(costs) and len(costs) == 3


def test_constraints_come_before_the_objective(map_):
    table = table_of([map_], "vit768", [accuracy_table("vit768", {LOCAL: (0.95, 1.0), MEANS: (0.90, 0.93)})])
    strict = Objective(least_accuracy=0.94)
    assert PrismPolicy().decide(seen(300), table, LATENCY, State()).plan == MEANS
    assert PrismPolicy().decide(seen(300), table, strict, State()).plan == LOCAL
    full = next(e for e in expected(table, seen(300), LATENCY) if e.plan == FULL)
    assert full.accuracy == 0.95, "an exact exchange answers as local does"
    none = PrismPolicy().decide(seen(300), table, Objective(least_accuracy=0.99), State())
    assert "no plan keeps the constraints" in none.why and none.plan in (LOCAL, FULL)
    blind = PrismPolicy().decide(seen(300), table_of([map_], "vit768"), strict, State(plan=MEANS))
    assert blind.plan in (LOCAL, FULL), "of unknown answers only the model's own will do, whatever ran before"
    late = PrismPolicy().decide(seen(300, left_ms=1.0), table, LATENCY, State())
    assert late.plan == MEANS and "no plan keeps" in late.why


def test_a_map_of_two_numbers_of_tokens_is_refused(map_):
    longer = tuple(msgspec.structs.replace(cell, tokens=2 * cell.tokens) for cell in map_.cells)
    with pytest.raises(ConfigError, match="101 and 202 tokens"):
        table_of([map_, msgspec.structs.replace(map_, cells=longer)], "vit768")


def test_a_missing_joule_never_counts_as_none():
    """Where a line goes on beyond the cells, one of them counts negatively."""
    rows = [
        TableRow(
            plan=LOCAL,
            batch=batch,
            rate_bps=None,
            ms=50.0 * batch,
            p95_ms=50.0 * batch,
            wire_ms=0,
            deviation=0.01,
            joules=joules,
        )
        for batch, joules in ((1, None), (2, 3.0))
    ]
    known = Table(rows).at(seen(100, batch=8), Objective(minimise="energy")).of(LOCAL)
    assert known.joules is None and known.cost == math.inf


def test_a_floor_on_agreement_leaves_what_is_exact(map_):
    """With a table or without: what rounds and averages nothing agrees, what was not measured doesn't."""
    floor, fast = Objective(least_agreement=0.98), seen(300)
    assert PrismPolicy().decide(fast, table_of([map_], "vit768"), LATENCY, State()).plan == MEANS
    for known in ([], [accuracy_table("vit768", {LOCAL: (0.95, 1.0), MEANS: (0.90, 0.93)})]):
        table = table_of([map_], "vit768", known)
        assert PrismPolicy().decide(seen(1e5), table, floor, State()).plan == FULL
        assert "no other" not in PrismPolicy().decide(seen(1e5), table, floor, State()).why
    cells = tuple(c for c in map_.cells if c.plan != FULL)
    found = PrismPolicy().decide(
        fast, table_of([msgspec.structs.replace(map_, cells=cells)], "vit768", known), floor, State(plan=MEANS)
    )
    assert found.plan == LOCAL and found.why == "the plan before can't be kept; no other plan keeps the constraints"
    good = table_of([map_], "vit768", [accuracy_table("vit768", {MEANS: (0.94, 0.99)})])
    assert PrismPolicy().decide(fast, good, floor, State()).plan == MEANS
    with pytest.raises(ConfigError, match="prism-hw evaluate vit768"):
        table_of([map_], "vit768", [accuracy_table("other", {})])


def test_a_deadline_that_nobody_keeps_does_not_buy_a_wrong_answer(map_):
    """Late is better than wrong: means would be quicker, and stay forbidden, also where they ran before."""
    table = table_of([map_], "vit768", [accuracy_table("vit768", {MEANS: (0.90, 0.93)})])
    floor, hurry = Objective(least_agreement=0.98), seen(300, left_ms=1.0)
    for state in (State(), State(plan=MEANS)):
        found = PrismPolicy().decide(hurry, table, floor, state)
        assert found.plan == LOCAL and "no plan keeps the constraints" in found.why
    assert PrismPolicy().decide(hurry, table, LATENCY, State()).plan == MEANS


def test_modelled_joules_count_where_nothing_is_measured(map_):
    """A simulated cell's are modelled like the rest of it; beside a measured latency they say too little."""
    energy = Energy(
        joules=2.0,
        per_device_j={},
        per_rail_j={},
        idle_w={},
        above_idle_j=None,
        samples=0,
        source="a test",
        modelled=True,
    )
    for source, joules in (("simulated", 2.0), ("measured", None)):
        cells = tuple(msgspec.structs.replace(c, source=source, energy=energy, energy_j=None) for c in map_.cells)
        table = table_of([msgspec.structs.replace(map_, cells=cells)], "vit768")
        assert {each.joules for each in expected(table, seen(300), LATENCY)} == {joules}


def test_energy_that_was_not_measured_chooses_nothing_over_what_was(map_):
    cells = tuple(msgspec.structs.replace(c, energy_j=1.0 if c.plan == LOCAL else None) for c in map_.cells)
    table = table_of([msgspec.structs.replace(map_, cells=cells)], "vit768")
    assert PrismPolicy().decide(seen(1000), table, Objective(minimise="energy"), State()).plan == LOCAL


def test_measured_cells_stand_before_simulated_ones(map_):
    replace = msgspec.structs.replace
    cells = tuple(
        replace(c, source="measured", latency_ms=replace(c.latency_ms, p50=1.0)) for c in map_.cells if c.plan == LOCAL
    )
    measured = replace(map_, cells=cells)
    for maps in ([measured, map_], [map_, measured]):
        found = next(e for e in expected(table_of(maps, "vit768"), seen(60), LATENCY) if e.plan == LOCAL)
        assert found.ms == 1.0 and found.source == "measured"


def test_a_map_without_local_is_refused(map_):
    cells = tuple(cell for cell in map_.cells if cell.plan != LOCAL)
    with pytest.raises(ConfigError, match="no local cell"):
        table_of([msgspec.structs.replace(map_, cells=cells)], "vit768")
    with pytest.raises(ConfigError, match="another"):
        table_of([map_], "another")


def test_the_other_policies(table):
    assert FixedPolicy(FULL).decide(seen(60), None, LATENCY, State()).plan == FULL
    assert FixedPolicy(FULL).decide(seen(60, devices=1), None, LATENCY, State()).plan == LOCAL
    assert LookupPolicy().decide(seen(19), table, LATENCY, State()).plan == LOCAL
    assert LookupPolicy().decide(seen(990), table, LATENCY, State()).plan != LOCAL


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.floats(5, 2000), st.integers(1, 8), st.integers(1, 2)), min_size=1, max_size=30),
    st.floats(0.0, 0.3),
)
def test_the_same_observations_give_the_same_decisions(table, walk, doubt):
    def log() -> list[Decision]:
        state, found = State(), []
        for k, (mbps, batch, devices) in enumerate(walk):
            one = seen(mbps, batch, devices, at_s=0.2 * k, bandwidth_deviation=doubt)
            found.append(PrismPolicy().decide(one, table, LATENCY, state))
            state = found[-1].state
        return found

    first = log()
    assert first == log()
    for (_, _, devices), each in zip(walk, first, strict=True):
        assert each.plan.ranks <= devices, "a plan never asks for devices that are not there"


def test_noise_about_a_break_even_does_not_make_it_flap(table):
    at = next(mbps for mbps in range(20, 1000) if expected(table, seen(mbps), LATENCY)[0].plan != LOCAL)
    state, plans = State(), []
    for k in range(200):
        one = seen(at * (1.04 if k % 2 else 0.96), at_s=0.1 * k, bandwidth_deviation=0.05)
        found = PrismPolicy().decide(one, table, LATENCY, state)
        plans.append(found.plan)
        state = found.state
    assert sum(a != b for a, b in itertools.pairwise(plans)) <= 1
