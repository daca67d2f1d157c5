"""Stages take one microbatch after another, and streams keep replicas and stages busy with several batches."""

import itertools

import msgspec
import pytest
from support.profiles import SMALL, profile, terms

from prism.backend import Workload
from prism.link import LinkSpec
from prism.plan import LOCAL, ExecutionPlan, Mode
from prism.workload import build
from sim.engine.backend import SimBackend, identical

DEEP = msgspec.structs.replace(SMALL, blocks=8)
PRODUCTS_ALONE = profile(
    staged=False, terms=terms(kernel__fixed_s=0.0, block__fixed_s=0.0, link__message_s=0.0, memory__s_per_byte=0.0)
)


def split(**fields) -> ExecutionPlan:
    return ExecutionPlan(mode=Mode.LOCAL, **fields)


def backend(plan: ExecutionPlan, mbps: float | None) -> SimBackend:
    link = LinkSpec(kind="shaper", rate_bps=None if mbps is None else mbps * 1e6)
    return SimBackend(identical(PRODUCTS_ALONE, PRODUCTS_ALONE.model(), plan.devices, link))


def in_turn_per_s(plan: ExecutionPlan, batch: int, mbps: float | None = None) -> float:
    (ms,) = backend(plan, mbps).times_ms(plan, Workload(model=DEEP, batch=batch))
    return 1e3 * batch / ms


def stream_per_s(plan: ExecutionPlan, batch: int, mbps: float | None = None) -> float:
    return backend(plan, mbps).stream_per_s(plan, Workload(model=DEEP, batch=batch, warmups=1, batches=6))


def test_rows_arrive_one_microbatch_after_another():
    plan, mbps = split(devices=2, stages=2), 1.0  # the link is the slowest by far
    trace = backend(plan, mbps).run(plan, Workload(model=DEEP, batch=4))
    arrived = sorted(span.end_ns for span in trace.spans if span.rank == 1 and span.op == "rows")
    crossing_s = build(DEEP, plan, 4).sent_bytes("rows") * 2 * 8 / 4 / (mbps * 1e6)  # the air carries each twice
    gaps_s = [(later - earlier) / 1e9 for earlier, later in itertools.pairwise(arrived)]
    assert len(gaps_s) == 3 and gaps_s == pytest.approx([crossing_s] * 3, rel=0.02)


@pytest.mark.parametrize("plan", [split(devices=2, replicas=2), split(devices=2, stages=2)], ids=str)
@pytest.mark.parametrize("batch", [2, 8])
def test_a_stream_over_a_free_link_is_twice_as_fast_as_one_device(plan, batch):
    assert stream_per_s(plan, batch) == pytest.approx(2 * in_turn_per_s(LOCAL, batch), rel=0.05)


def test_a_stream_of_single_samples_keeps_four_stages_busy():
    plan = split(devices=4, stages=4)
    assert in_turn_per_s(plan, 1) == pytest.approx(in_turn_per_s(LOCAL, 1), rel=0.01)
    assert stream_per_s(plan, 1) == pytest.approx(4 * in_turn_per_s(LOCAL, 1), rel=0.05)


@pytest.mark.parametrize("mbps", [5, 50, 500])
@pytest.mark.parametrize("plan", [split(devices=3, replicas=3), split(devices=3, stages=3)], ids=str)
def test_a_stream_is_no_slower_than_batches_in_turn(plan, mbps):
    assert stream_per_s(plan, 6, mbps) >= 0.99 * in_turn_per_s(plan, 6, mbps)


@pytest.mark.parametrize(("weights", "mbps"), [((0.0, 1.0), None), ((1.0, 0.0), None), ((1.0, 0.0), 1)])
def test_a_stream_to_one_device_alone_is_as_fast_as_that(weights, mbps):
    alone = split(devices=2, replicas=2, weights=weights)
    assert stream_per_s(alone, 4, mbps) == pytest.approx(in_turn_per_s(LOCAL, 4), rel=0.01)


def test_what_the_link_carries_bounds_a_stream():
    plan, mbps = split(devices=2, stages=2), 1.0
    sent = build(DEEP, plan, 4)
    bits = 8 * 2 * (sent.sent_bytes("rows") + sent.sent_bytes("answer"))
    assert stream_per_s(plan, 4, mbps) == pytest.approx(4 * mbps * 1e6 / bits, rel=0.03)


def test_ranks_without_samples_or_blocks_slow_nobody_down():
    slower = profile(staged=False, terms=terms(together__slowdown=1.5))
    idle = split(devices=2, replicas=2, weights=(1.0, 0.0))
    machines = identical(slower, slower.model(), 2, LinkSpec(kind="shaper", rate_bps=1e9))
    (ms,) = SimBackend(machines).times_ms(LOCAL, Workload(model=DEEP, batch=4))
    there = SimBackend(machines).stream_per_s(idle, Workload(model=DEEP, batch=4, warmups=1, batches=6))
    assert there == pytest.approx(4e3 / ms, rel=0.01)
