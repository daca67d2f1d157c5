"""One accuracy table, measured here, in front of real members and in the simulator: the floor is kept in both."""

import msgspec
import pytest
from support.profiles import profile
from support.serving import MEANS, MODEL, Member, cell, images, serving
from support.waiting import until

from hw.evaluate.config import EvalConfig
from hw.evaluate.run import evaluate
from prism.decide.policy import PrismPolicy
from prism.decide.table import Objective, table_of
from prism.link import LinkSpec
from prism.nn.zoo import describe
from prism.perfmap import PerformanceMap, load_map
from prism.plan import LOCAL, ExecutionPlan, Mode
from sim.engine.backend import identical
from sim.serving.requests import Arrivals
from sim.serving.scenario import Scenario, simulate_serving

INT4 = ExecutionPlan(mode=Mode.FULL, devices=2, wire="int4")
FLOOR = Objective(least_agreement=0.98)


@pytest.fixture(scope="module")
def accuracy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("accuracy")
    config = EvalConfig(model=MODEL, limit=100, segments=(5,), wires=("fp32", "int4"), batch=50, threads=1)
    found = evaluate(config, folder, "a test", lambda _: None)
    found.table.save(folder / "accuracy.json")
    return found.table, folder / "accuracy.json"


def map_of(folder, *plans: tuple[ExecutionPlan, float]):
    """LOCAL in 100 ms, the others in so many each, at any rate."""
    cells = [cell(LOCAL, 1, None, 100.0), *(cell(p, 1, mbps, ms, 1.0) for p, ms in plans for mbps in (1, 10_000))]
    path = folder / "cells.json"
    path.write_bytes(msgspec.json.encode(PerformanceMap(created="", command="", cells=tuple(cells))))
    return path


def test_the_table_says_what_the_cases_need(accuracy):
    known = {row.plan: row.agreement for row in accuracy[0].rows}
    assert known[LOCAL] == 1 and known[INT4] >= 0.98 > known[MEANS]


CASES = [
    pytest.param([(MEANS, 20.0), (INT4, 40.0)], INT4, "", id="another keeps it"),
    pytest.param([(MEANS, 20.0)], LOCAL, "no other plan keeps the constraints", id="none keeps it"),
]


@pytest.mark.parametrize(("plans", "chosen", "why"), CASES)
def test_the_floor_is_kept_before_real_members(tmp_path, accuracy, plans, chosen, why):
    fields = {
        "map": str(map_of(tmp_path, *plans)),
        "accuracy": str(accuracy[1]),
        "policy": PrismPolicy(),
        "learn": False,
    }
    with serving(tmp_path, objective=FLOOR, **fields) as service, Member(service.leader.port, tmp_path):
        assert service.leader.wait(60) and until(lambda: service.runtime.estimate is not None)
        served = service.runtime.run({"x": images(1)})
    assert served.ran == chosen and not served.failed
    assert why in served.decision.why and served.decision.expected.agreement >= 0.98


@pytest.mark.parametrize(("plans", "chosen", "why"), CASES)
def test_the_floor_is_kept_in_the_simulator(tmp_path, accuracy, plans, chosen, why):
    table = table_of([load_map(map_of(tmp_path, *plans))], MODEL, [accuracy[0]])
    machines = identical(profile(), profile().model(), 2, LinkSpec(kind="testbed", rate_bps=1e9))
    arrivals = Arrivals(pattern="poisson", requests=20, rate_per_s=5)
    scenario = Scenario(model=describe(MODEL), arrivals=arrivals)
    decisions = []

    class Watched(PrismPolicy):
        def decide(self, *args):
            decisions.append(super().decide(*args))
            return decisions[-1]

    free = simulate_serving(machines, scenario, Watched(), table)
    assert free.modes == {"segment_means": 20}, "without the floor the fastest is chosen"
    decisions.clear()
    kept = simulate_serving(machines, scenario, Watched(), table, FLOOR)
    assert kept.modes == {chosen.mode.value: 20}
    assert {each.plan for each in decisions} == {chosen} and all(why in each.why for each in decisions)
