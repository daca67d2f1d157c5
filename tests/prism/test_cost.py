"""The cost model's limits, and a profile as data that refuses what it can't be."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.profiles import profile, step_s, terms

from prism.config import convert
from prism.cost import CalibratedProfile, ClockGovernor, CostModel, Curve, load_profile
from prism.errors import ConfigError
from prism.workload import elementwise, gemm

VALUES = {term.name: term.value for term in terms()}


def model(**changes: float) -> CostModel:
    return CostModel({**VALUES, **{name.replace("__", "."): value for name, value in changes.items()}})


def test_a_large_gemm_costs_its_flops_and_an_elementwise_kernel_its_bytes():
    cost = model(kernel__fixed_s=0.0)
    big, thin = gemm(4096, 1024, 1024), elementwise(10_000)
    assert step_s(cost, [big]) == pytest.approx(big.flops * VALUES["gemm.s_per_flop"])
    assert step_s(cost, [thin]) == pytest.approx(thin.memory_bytes * VALUES["memory.s_per_byte"])
    narrow = gemm(1, 4096, 4096)  # one row: the weights have to be read
    assert step_s(cost, [narrow]) == pytest.approx(narrow.memory_bytes * VALUES["memory.s_per_byte"])


def test_launches_are_added_at_power_1_and_hidden_at_a_high_one():
    kernel = gemm(512, 512, 512)
    device = step_s(model(kernel__fixed_s=0.0), [kernel])
    launch = 10 * device
    assert step_s(model(kernel__fixed_s=launch, overlap__power=1.0), [kernel]) == pytest.approx(launch + device)
    assert step_s(model(kernel__fixed_s=launch, overlap__power=200.0), [kernel]) == pytest.approx(launch)


def test_going_on_from_an_exchange_costs_its_fixed_part():
    cost = model(exchange__fixed_s=0.5, overlap__power=1.0)
    kernels = [gemm(64, 64, 64)]
    assert step_s(cost, kernels, exchanged=True) - step_s(cost, kernels) == pytest.approx(0.5)


CLOCK = ClockGovernor(slowdown=1.5, rise_s=0.08, fall_s=0.06)


def test_a_low_clock_stretches_work_until_it_has_risen():
    assert CLOCK.stretched(1.0, 0.3) == pytest.approx(0.3)
    assert CLOCK.stretched(0.0, 1e-6) == pytest.approx(2.5e-6, rel=1e-3)
    # while it rises the mean speed is 0.7 of the full one
    assert CLOCK.stretched(0.0, 0.7 * 0.08 + 0.1) == pytest.approx(0.18)
    assert CLOCK.idle(1.0, 0.03) == pytest.approx(0.5)
    assert CLOCK.busy(CLOCK.idle(1.0, 9.0), 0.04) == pytest.approx(0.5)
    assert ClockGovernor(0.0, 0.0, 0.0).stretched(0.0, 0.3) == 0.3


@given(st.floats(0, 1), st.floats(0, 0.5), st.floats(0, 0.5))
def test_two_pieces_of_work_take_as_long_as_one(level, first, second):
    one = CLOCK.stretched(level, first)
    two = one + CLOCK.stretched(CLOCK.busy(level, one), second)
    assert two == pytest.approx(CLOCK.stretched(level, first + second), abs=1e-9)


def test_a_curve_breaks_where_it_says_and_nothing_costs_nothing():
    curve = Curve(1.0, 0.1, 100.0, 0.01)
    assert [curve.seconds(size) for size in (0, 100, 200)] == pytest.approx([0.0, 11.0, 12.0])


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 64), st.floats(1.0, 8.0))
def test_more_work_never_takes_less_time(rows, more, columns, power):
    cost = model(overlap__power=power)
    assert step_s(cost, [gemm(rows + more, 64, columns)]) >= step_s(cost, [gemm(rows, 64, columns)])


def test_draws_have_the_profiles_spread_and_keep_its_ties():
    names = [term.name for term in terms()]
    covariance = np.zeros((len(names), len(names)))
    tied = [names.index("d2h.fixed_s"), names.index("h2d.fixed_s")]
    covariance[np.ix_(tied, tied)] = 0.04
    drawn = profile(covariance=tuple(map(tuple, covariance))).draws(4000, seed=1)
    logs = np.log([cost.curves["d2h"].fixed_s for cost in drawn])
    assert logs.std() == pytest.approx(0.2, rel=0.05)
    assert all(c.curves["d2h"].fixed_s == pytest.approx(c.curves["h2d"].fixed_s) for c in drawn)
    assert len({cost.link_gain for cost in drawn}) == 1


def test_a_point_outside_of_the_data_is_named_with_the_range():
    known = profile(ranges={"batch": (1, 32)})
    assert known.outside({"batch": 8}) == []
    assert known.outside({"batch": 64, "width": 768}) == ["batch 64 (calibrated 1..32)", "width 768 (never calibrated)"]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"terms": []}, "missing"),
        ({"schema": 9}, "schema 9"),
        ({"covariance": [[1.0]]}, r"\(1, 1\)"),
        ({"stagged": True}, "did you mean 'staged'"),
    ],
)
def test_a_damaged_profile_gets_one_line(change, part):
    data = {**msgspec.to_builtins(profile()), **change}
    with pytest.raises(ConfigError, match=part):
        convert(data, CalibratedProfile, "profile.json")


def test_an_unknown_profile_and_an_unknown_term_are_named():
    with pytest.raises(ConfigError, match="orin-nanoo"):
        load_profile("orin-nanoo")
    data = msgspec.to_builtins(profile())
    data["terms"][0]["name"] = "gem.s_per_flop"
    with pytest.raises(ConfigError, match=r"did you mean 'gemm\.s_per_flop'"):
        convert(data, CalibratedProfile, "profile.json")
