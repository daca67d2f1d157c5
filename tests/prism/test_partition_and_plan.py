import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prism.codecs import payload_bytes
from prism.errors import PlanError
from prism.partition import Partition, compression_rate, segments_for_rate, split_sizes
from prism.plan import ExecutionPlan, Mode
from prism.spec import ModelSpec


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
        (dict(mode=Mode.LOCAL, devices=2, replicas=0), "0 replicas"),
        (dict(mode=Mode.LOCAL, devices=3, replicas=2), "--devices 2"),
        (dict(mode=Mode.LOCAL, devices=4, replicas=2), "leave 2 parts"),
        (dict(mode=Mode.FULL, devices=4, replicas=2, stages=2), "leave 1 part; use --mode local"),
        (dict(mode=Mode.LOCAL, devices=2, replicas=2, wire="int8"), "leave --wire out"),
        (dict(mode=Mode.FULL, devices=4, replicas=2, collective="ring"), "no single group"),
        (dict(mode=Mode.LOCAL, devices=2, replicas=2, boundaries=(3,)), "--stages 2"),
        (dict(mode=Mode.FULL, devices=2, microbatch=1), "--stages 2"),
        (dict(mode=Mode.LOCAL, devices=2, stages=2, embed="each"), "--embed terminal"),
        (dict(mode=Mode.LOCAL, devices=3, stages=3, boundaries=(4,)), "1 boundaries for 3 stages"),
        (dict(mode=Mode.LOCAL, devices=3, stages=3, boundaries=(4, 4)), "don't ascend"),
        (dict(mode=Mode.FULL, devices=2, weights=(0.0, 1.0)), "above 0"),
        (dict(mode=Mode.LOCAL, devices=2, replicas=2, weights=(0.0, 0.0)), "at least one"),
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


# -- replicas and stages ------------------------------------------------------------------------------

VIT = ModelSpec(
    name="vit",
    family="vit",
    blocks=12,
    width=768,
    heads=12,
    mlp_width=3072,
    tokens=197,
    prefix_tokens=1,
    patch_values=768,
)


def composite(**fields) -> ExecutionPlan:
    return ExecutionPlan(**{"mode": Mode.LOCAL, **fields})


@given(replicas=st.integers(1, 4), stages=st.integers(1, 4), parts=st.integers(2, 4))
def test_every_rank_has_a_place_of_its_own(replicas, stages, parts):
    plan = composite(mode=Mode.FULL, devices=replicas * stages * parts, replicas=replicas, stages=stages)
    places = [plan.place(rank) for rank in range(plan.ranks)]
    assert places == sorted(set(places)) and len(places) == plan.ranks
    assert [plan.rank_of(place) for place in places] == list(range(plan.ranks))
    assert {group.ranks for group in plan.groups()} == {parts}
    assert len(list(plan.groups())) == replicas * stages


def test_a_replica_and_a_stage_are_plans_of_their_own_devices():
    plan = composite(mode=Mode.FULL, devices=8, replicas=2, stages=2, weights=tuple(float(w) for w in range(1, 9)))
    second = plan.replica(1)
    assert (second.replicas, second.stages, second.devices, second.weights) == (1, 2, 4, (5, 6, 7, 8))
    last = second.stage(1)
    assert (last.stages, last.devices, last.parts, last.weights) == (1, 2, 2, (7, 8))
    assert composite(devices=2, replicas=2).replica(1).ranks == 1
    assert composite(mode=Mode.FULL, devices=2).stage(0) == composite(mode=Mode.FULL, devices=2).replica(0)


@given(batch=st.integers(0, 50), weights=st.lists(st.floats(0.1, 10), min_size=1, max_size=6))
def test_samples_are_shared_in_proportion(batch, weights):
    shares = composite(devices=len(weights), replicas=len(weights), weights=tuple(weights)).shares(batch)
    assert sum(shares) == batch
    for share, weight in zip(shares, weights, strict=True):
        assert abs(share - batch * weight / sum(weights)) < 1


def test_the_leader_may_hand_everything_over():
    plan = composite(devices=2, replicas=2, weights=(0.0, 1.0))
    assert plan.shares(5) == (0, 5)
    plan.check(VIT, batch=1)
    assert composite(devices=2, stages=2, weights=(0.0, 1.0)).stage_blocks(12) == ((0, 0), (0, 12))
    assert composite(devices=2, stages=2, boundaries=(0,)).stage_blocks(12) == ((0, 0), (0, 12))


def test_blocks_are_shared_among_stages():
    assert composite(devices=3, stages=3).stage_blocks(12) == ((0, 4), (4, 8), (8, 12))
    assert composite(devices=2, stages=2, weights=(2.0, 1.0)).stage_blocks(12) == ((0, 8), (8, 12))
    assert composite(devices=2, stages=2, boundaries=(5,)).stage_blocks(12) == ((0, 5), (5, 12))


def test_microbatches():
    assert composite(devices=2, stages=2).microbatches(3) == (1, 1, 1)
    assert composite(devices=2, stages=2, microbatch=2).microbatches(5) == (2, 2, 1)
    assert composite(devices=2, replicas=2).microbatches(5) == (5,)
    assert composite(devices=2, replicas=2, microbatch=2).microbatches(5) == (2, 2, 1)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(devices=3, replicas=3), "3 replicas for a batch of 2: use at most 2"),
        (dict(devices=13, stages=13), "at most 12 stages"),
        (dict(devices=2, stages=2, boundaries=(12,)), "the last of 12 blocks is 11"),
        (dict(mode=Mode.FULL, devices=400, replicas=2), "use at most 197 devices"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(fields, words):
    with pytest.raises(PlanError, match=words):
        composite(**fields).check(VIT, batch=2)
