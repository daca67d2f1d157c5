"""The hardware behind the seam: a plan and a workload in, a trace out."""

import pytest

from hw.run.backend import GlooBackend
from hw.run.config import RunConfig
from prism.backend import Backend, Workload
from prism.errors import PlanError
from prism.nn.zoo import describe
from prism.plan import LOCAL, ExecutionPlan, Mode
from prism.trace.metrics import summarise


@pytest.fixture(scope="module")
def backend() -> Backend:
    return GlooBackend(RunConfig(link="shaper:100Mbps"))


def test_a_plan_runs_as_asked(backend):
    work = Workload(model=describe("fashion-vit"), batch=4, batches=3, warmups=1)
    trace = backend.run(ExecutionPlan(mode=Mode.SEGMENT_MEANS, devices=2, segments=5), work)
    assert [batch.warmup for batch in trace.batches] == [True, False, False, False]
    summary = summarise(trace)
    assert summary.bytes_per_exchange == 4 * 5 * 64 * 4
    assert 0.98 < summary.coverage <= 1


def test_what_does_not_fit_is_refused(backend):
    with pytest.raises(PlanError, match="this backend runs"):
        backend.run(LOCAL, Workload(model=describe("vit_tiny_patch16_224"), batch=1))
    with pytest.raises(PlanError, match="at most 25"):
        backend.run(
            ExecutionPlan(mode=Mode.SEGMENT_MEANS, devices=2, segments=26),
            Workload(model=describe("fashion-vit"), batch=1),
        )
