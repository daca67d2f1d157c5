import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prism.codecs import payload_bytes
from prism.errors import PlanError
from prism.partition import Partition, compression_rate, segments_for_rate, split_sizes
from prism.plan import ExecutionPlan, Mode


@given(length=st.integers(1, 500), parts=st.integers(1, 40))
def test_sizes_are_numpys_array_split(length, parts):
    assert list(split_sizes(length, parts)) == [len(part) for part in np.array_split(range(length), parts)]


@given(tokens=st.integers(8, 500), weights=st.lists(st.floats(0.1, 10), min_size=1, max_size=8))
def test_weighted_parts_cover_all_tokens_in_proportion(tokens, weights):
    sizes = Partition.weighted(tokens, tuple(weights)).sizes
    assert sum(sizes) == tokens
    spare = tokens - len(weights)
    for size, weight in zip(sizes, weights, strict=True):
        assert abs(size - 1 - spare * weight / sum(weights)) <= 1


def test_bounds_follow_each_other():
    partition = Partition.weighted(23, (1.0, 3.0, 2.0))
    assert [partition.bounds(p) for p in range(3)] == [(0, 4), (4, 15), (15, 23)]


def test_compression_rates_are_the_published_ones():
    assert [round(compression_rate(197, 2, segments), 2) for segments in (10, 20, 30)] == [9.85, 4.92, 3.28]
    assert segments_for_rate(197, 2, 9.9) == 10
    assert compression_rate(256, 2, 1) == 128


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(mode=Mode.SEGMENT_MEANS, devices=2), "--segments"),
        (dict(mode=Mode.FIRST_AND_MEANS, devices=2, segments=1), "at least 2"),
        (dict(mode=Mode.FULL, devices=2, segments=3), "segment_means"),
        (dict(mode=Mode.FULL, devices=2, weights=(1.0,)), "one for each"),
        (dict(mode=Mode.FULL, devices=0), "at least 1"),
    ],
)
def test_contradictory_plans_are_refused_with_the_remedy(fields, words):
    with pytest.raises(PlanError, match=words):
        ExecutionPlan(**fields)


def test_more_segments_than_tokens_and_more_devices_than_tokens():
    with pytest.raises(PlanError, match="segments 99 exceed the 98 tokens"):
        ExecutionPlan(mode=Mode.SEGMENT_MEANS, devices=2, segments=99).partition(197)
    with pytest.raises(PlanError, match="at most 3 devices"):
        ExecutionPlan(mode=Mode.FULL, devices=4).partition(3)
    with pytest.raises(PlanError, match="above 0"):
        Partition.weighted(9, (1.0, 0.0))


def test_the_ring_is_chosen_by_size_and_never_for_causal_models():
    plan = ExecutionPlan(mode=Mode.FULL, devices=3)
    assert [plan.uses_ring(size, causal=False) for size in (1_000, 1_000_000)] == [False, True]
    assert not plan.uses_ring(1_000_000, causal=True)
    with pytest.raises(PlanError, match="causal"):
        ExecutionPlan(mode=Mode.FULL, devices=3, collective="ring").uses_ring(1, causal=True)


def test_payload_bytes():
    assert payload_bytes("fp32", 99 * 768) == 304_128
    assert payload_bytes("fp32", 10 * 768) == 30_720
    assert payload_bytes("int4", 32) == 16 + 4
    assert payload_bytes("int2", 33) == 2 * (8 + 4)
