"""Active profiling on made-up cells whose latencies are known."""

import numpy as np
from support.simulated import FULL, LOCAL, MEANS, vit

from calibration.next_visit import Candidate, candidate, pick
from prism.link import LinkSpec
from prism.plan import Mode

MODEL = vit(192, 197)
RATES = (50, 100, 200, 400, 1000)


def cells() -> list[Candidate]:
    found = []
    for batch in (1, 4, 8):
        found.append(candidate(MODEL, LOCAL, batch, LinkSpec(), None))
        for plan in (FULL, MEANS):
            for rate in RATES:
                link = LinkSpec(kind="testbed", rate_bps=rate * 1e6)
                found.append(candidate(MODEL, plan, batch, link, None))
    return found


def truth(each: Candidate) -> float:
    work, air, _, exchanges, _ = each.work
    return 1e3 * (work * 1.2e-11 + 1.4 * air + 8e-4 * exchanges + 5e-3)


def run(target: float, noise: float = 0.03) -> tuple[list[list[float]], float]:
    rng, found = np.random.default_rng(0), cells()
    visits: list[list[float]] = [[] for _ in found]
    while True:
        chosen = pick(found, visits, 5)
        if chosen.place is None or chosen.regret_pct <= target:
            return visits, chosen.regret_pct
        visits[chosen.place].append(truth(found[chosen.place]) * float(np.exp(noise * rng.standard_normal())))


def test_it_begins_with_what_everything_else_is_compared_to():
    found = cells()
    first = pick(found, [[] for _ in found], 5)
    assert found[first.place].plan.mode is Mode.LOCAL and first.regret_pct == float("inf")


def test_few_visits_decide_as_well_as_all_of_them():
    visits, regret = run(target=0.3)
    found = cells()
    assert regret <= 0.3
    assert sum(map(len, visits)) < 0.5 * 5 * len(found), "the full grid has five visits of every cell"
    local = {each.batch: truth(each) for each in found if each.plan == LOCAL}
    seen = [k for k, each in enumerate(found) if each.plan != LOCAL and visits[k]]
    for k in seen:
        ratio = truth(found[k]) / local[found[k].batch]
        if abs(np.log(ratio)) > 0.1:
            mine = np.median(
                visits[next(j for j, e in enumerate(found) if e.plan == LOCAL and e.batch == found[k].batch)]
            )
            assert (np.median(visits[k]) < mine) == (ratio < 1)


def test_visits_go_where_the_two_are_close():
    visits, _ = run(target=0.05)
    found = cells()
    local = {each.batch: truth(each) for each in found if each.plan == LOCAL}
    gaps = [(abs(np.log(truth(e) / local[e.batch])), len(visits[k])) for k, e in enumerate(found) if e.plan != LOCAL]
    close = [count for gap, count in gaps if gap < 0.15]
    far = [count for gap, count in gaps if gap > 0.6]
    assert close and far and np.mean(close) > 2 * np.mean(far)


def test_it_ends_when_every_cell_has_its_visits():
    visits, _ = run(target=0.0)
    assert max(map(len, visits)) <= 5


def test_an_execution_plan_without_a_link_has_no_seconds_on_the_air():
    alone = candidate(MODEL, LOCAL, 1, LinkSpec(), None)
    assert alone.work[1:4] == (0.0, 0.0, 0.0) and alone.mbps == 0
