"""One body over every Backend: what a plan leaves in a trace, whoever executed it.

A backend joins by an entry in BACKENDS: a name, and what makes it for the bundled model over a link.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable

import pytest
from support.profiles import profile

from hw.run.backend import GlooBackend
from hw.run.config import RunConfig
from prism.backend import Backend, Workload
from prism.codecs import payload_bytes
from prism.errors import PlanError
from prism.link import LinkSpec
from prism.nn.zoo import BUNDLED, describe
from prism.plan import LOCAL, ExecutionPlan, Mode
from prism.trace import KINDS, Span, Trace, read_trace, write_trace
from prism.trace.metrics import summarise
from prism.workload import build
from sim.engine.backend import SimBackend, identical

LINK = LinkSpec.parse("shaper:200Mbps,0.5ms")
MODEL = describe(BUNDLED)


def simulated() -> Backend:
    known = profile(staged=False)  # as on a CPU
    return SimBackend(identical(known, known.model(), 4, LINK))


def gloo() -> Backend:
    return GlooBackend(RunConfig(model=BUNDLED, link=str(LINK), meter="none"))


BACKENDS: dict[str, Callable[[], Backend]] = {"simulated": simulated, "gloo": gloo}
PLANS = {
    "local": LOCAL,
    "full": ExecutionPlan(mode=Mode.FULL, devices=2),
    "means": ExecutionPlan(mode=Mode.SEGMENT_MEANS, devices=3, segments=4, wire="int4"),
    "ring": ExecutionPlan(mode=Mode.FULL, devices=2, collective="ring"),
    "waits_first": ExecutionPlan(mode=Mode.FULL, devices=2, overlap=False, embed="each"),
    "uneven": ExecutionPlan(mode=Mode.FIRST_AND_MEANS, devices=2, segments=3, weights=(2.0, 1.0)),
}
OPS = {
    "embed",
    "prepare",
    "compress",
    "project",
    "attend",
    "head",
    "block",
    "header",
    "scatter",
    "exchange",
    "collect",
    "flush",
    "queued",
}


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request) -> Backend:
    return BACKENDS[request.param]()


@pytest.fixture(scope="module", params=PLANS)
def plan(request) -> ExecutionPlan:
    return PLANS[request.param]


@pytest.fixture(scope="module")
def trace(backend, plan) -> Trace:
    return backend.run(plan, Workload(model=MODEL, batch=2, batches=2, warmups=1))


def by_rank(trace: Trace, batch: int) -> dict[int, list[Span]]:
    found: dict[int, list[Span]] = defaultdict(list)
    for span in trace.spans:
        if span.batch == batch:
            found[span.rank].append(span)
    return found


def test_the_header_says_what_ran(trace, plan):
    header = trace.header
    assert (header.plan, header.batch, header.tokens) == (plan, 2, MODEL.tokens)
    assert header.model


def test_every_batch_is_there_once_after_its_spans(trace, plan):
    assert [(b.batch, b.warmup, b.failed) for b in trace.batches] == [(0, True, ""), (1, False, ""), (2, False, "")]
    seen: set[int] = set()
    for record in trace.records:
        if isinstance(record, Span):
            assert record.batch not in seen
        elif record in trace.batches:
            seen.add(record.batch)


def test_spans_of_a_rank_never_overlap_and_the_terminals_fill_the_batch(trace, plan):
    assert summarise(trace).coverage == pytest.approx(1.0, abs=0.02)
    for batch in trace.batches:
        ranks = by_rank(trace, batch.batch)
        assert sorted(ranks) == list(range(plan.ranks))
        for spans in ranks.values():
            assert {span.kind for span in spans} <= set(KINDS)
            assert {span.op for span in spans} <= OPS
            assert all(span.end_ns >= span.start_ns for span in spans)
            # of no length: a message that its sender did not wait behind
            long = sorted((s for s in spans if s.end_ns > s.start_ns), key=lambda span: span.start_ns)
            assert all(a.end_ns <= b.start_ns for a, b in itertools.pairwise(long))


def test_every_rank_goes_through_every_block_in_order(trace, plan):
    last = "block" if plan.ranks == 1 else "attend"
    for spans in by_rank(trace, 1).values():
        blocks = [span.block for span in spans if span.op == last]
        assert blocks == list(range(MODEL.blocks))


def test_bytes_are_those_of_the_workload_graph(trace, plan):
    spans = [span for span in trace.spans if span.batch == 1 and span.kind == "wire"]
    graph = build(MODEL, plan, 2)
    for op in ("exchange", "scatter"):
        sent = sum(span.sent_bytes for span in spans if span.op == op)
        expected = sum(o.wire_bytes * len(o.peers) for o in graph.operations() if o.kind == "send" and o.name == op)
        assert sent == expected
        assert sum(span.received_bytes for span in spans if span.op == op) == expected
    if plan.ranks > 1:
        rows = plan.sent_rows(MODEL.tokens)[0]
        one = payload_bytes(plan.wire, 2 * rows * MODEL.width)
        assert summarise(trace).bytes_per_exchange == one


def test_a_trace_survives_its_file(trace, tmp_path):
    write_trace(tmp_path / "t.jsonl", trace.header, trace.records)
    assert read_trace(tmp_path / "t.jsonl") == trace


def test_a_plan_that_does_not_fit_is_refused(backend):
    with pytest.raises(PlanError, match="segments 40 exceed"):
        backend.run(ExecutionPlan(mode=Mode.SEGMENT_MEANS, devices=2, segments=40), Workload(model=MODEL, batch=1))
