"""Compute terms from traces: known ones are found again, also under noise; what can't be told is said."""

import msgspec
import numpy as np
import pytest

from calibration.compute import TERMS, covariance, features, fit, steps_of
from prism.backend import Workload
from prism.cost import CalibratedProfile, Term, load_profile
from prism.errors import ConfigError
from prism.plan import ExecutionPlan, Mode
from prism.spec import LinkSpec, ModelSpec
from prism.trace import Span, Trace
from sim.backend import SimBackend, identical

KNOWN = {
    "gemm.s_per_flop": 1e-11, "attention.s_per_flop": 3e-11, "memory.s_per_byte": 1e-10, "kernel.fixed_s": 5e-5,
    "block.fixed_s": 2e-4, "exchange.fixed_s": 1e-3, "together.slowdown": 0.3, "overlap.power": 1.0, "link.gain": 1.0,
    "link.message_s": 1e-4,
}  # fmt: skip
PROFILE = CalibratedProfile(
    name="known", device="none", power_mode="none", note="", staged=False, ranges={}, traces=(),
    terms=tuple(Term(name=name, value=value, origin="prior", source="a test") for name, value in KNOWN.items()),
)  # fmt: skip
MODELS = {
    f"vit{width}": ModelSpec(
        name=f"vit{width}", family="vit", blocks=4, width=width, heads=width // 64, mlp_width=4 * width,
        tokens=tokens, prefix_tokens=1, patch_values=768, output_width=10,
    )
    for width, tokens in ((192, 197), (768, 101))
}  # fmt: skip
PLANS = (
    ExecutionPlan(mode=Mode.LOCAL), ExecutionPlan(mode=Mode.FULL, devices=2),
    ExecutionPlan(mode=Mode.SEGMENT_MEANS, devices=2, segments=10),
)  # fmt: skip
LINK = LinkSpec(kind="testbed", rate_bps=400e6)


def simulated(plans: tuple[ExecutionPlan, ...] = PLANS, noise: float = 0.0, visits: int = 1) -> list[Trace]:
    rng = np.random.default_rng(1)
    found = []
    for model in MODELS.values():
        for plan in plans:
            for batch in (1, 4):
                backend = SimBackend(identical(PROFILE, PROFILE.model(), plan.ranks, LINK))
                trace = backend.run(plan, Workload(model=model, batch=batch))
                found += [_disturbed(trace, rng, noise) for _ in range(visits)]
    return found


def _disturbed(trace: Trace, rng: np.random.Generator, noise: float) -> Trace:
    """A visit that was slower or faster as a whole."""
    factor = float(np.exp(noise * rng.standard_normal()))
    records = tuple(
        msgspec.structs.replace(r, end_ns=r.start_ns + round(factor * (r.end_ns - r.start_ns)))
        if isinstance(r, Span)
        else r
        for r in trace.records
    )
    return msgspec.structs.replace(trace, records=records)


def test_known_terms_are_found_again() -> None:
    found = fit(steps_of(simulated(), MODELS))
    assert found == pytest.approx({name: KNOWN[name] for name in TERMS}, rel=0.01)


def test_the_bootstrap_says_how_far_a_term_may_be_off() -> None:
    steps = steps_of(simulated(noise=0.05, visits=7), MODELS)
    found, spread = fit(steps), np.sqrt(np.diag(covariance(steps, draws=60)))
    assert 0.001 < spread[0] < 0.1
    assert abs(np.log(found["gemm.s_per_flop"] / KNOWN["gemm.s_per_flop"])) < 4 * spread[0]


def test_without_a_lone_rank_the_slowdown_is_not_invented() -> None:
    found = fit(steps_of(simulated(PLANS[1:]), MODELS))
    assert found["together.slowdown"] == 0.0
    assert found["gemm.s_per_flop"] == pytest.approx(1.3 * KNOWN["gemm.s_per_flop"], rel=0.01)


def test_the_features_of_a_local_block_are_all_its_kernels() -> None:
    steps = steps_of(simulated(PLANS[:1])[:1], MODELS)
    block = next(step for step in steps if step.op == "block")
    gemm, attention, moved, kernels, fixed, exchanged = features(block, {})
    assert gemm == 2 * 197 * 12 * 192 * 192 and attention == 4 * 197 * 197 * 192
    assert moved > 0 and kernels == 10 and fixed == 1 and exchanged == 0


def test_too_few_steps_and_unknown_models_are_refused() -> None:
    traces = simulated(PLANS[:1])
    with pytest.raises(ConfigError, match="measure more"):
        fit(steps_of(traces[:1], MODELS))
    with pytest.raises(ConfigError, match="no specification"):
        steps_of(traces, {})


def test_the_measured_profile_is_built_in() -> None:
    profile = load_profile("x86-core")
    assert profile.values()["together.slowdown"] > 0 and not profile.staged
    assert profile.outside({"batch": 8, "width": 768}) == [] and profile.outside({"batch": 16}) != []
