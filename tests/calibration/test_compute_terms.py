"""Compute terms from traces: known ones are found again, also under noise; what can't be told is said."""

import math

import msgspec
import numpy as np
import pytest
from support.simulated import (
    FULL,
    KNOWN,
    LOCAL,
    MEANS,
    MODELS,
    PACE_MS,
    PLANS,
    PROFILE,
    other_clock,
    simulated,
    vit,
    without,
)

from calibration.compute_terms import (
    ROOFLINE,
    TERMS,
    ComputeStep,
    features,
    fit_compute_terms,
    ranks_apart,
    relative_covariance,
    steps_of,
    steps_of_probes,
    tied,
)
from calibration.fit import SPREAD
from hw.probe.cells import cells
from prism.cost import Term, load_profile, normal_scores
from prism.errors import ConfigError
from prism.trace import Probe, Span, Trace


def test_known_terms_are_found_again() -> None:
    found = fit_compute_terms(steps_of(simulated(), MODELS))
    assert found == pytest.approx({name: KNOWN[name] for name in (*TERMS, ROOFLINE)}, rel=0.01)


def test_the_bootstrap_says_how_far_a_term_may_be_off() -> None:
    steps = steps_of(simulated(noise=0.05, visits=7), MODELS)
    found, spread = fit_compute_terms(steps), np.sqrt(np.diag(relative_covariance(steps, draws=60)))
    assert 0.001 < spread[0] < 0.1
    assert abs(np.log(found["gemm.s_per_flop"] / KNOWN["gemm.s_per_flop"])) < 4 * spread[0]


def test_a_machine_that_changed_its_speed_does_not_bend_the_terms() -> None:
    """One model is measured while everything takes 1.3 times as long; the block beside each visit says so."""
    (small, large), expected = MODELS, {name: KNOWN[name] for name in (*TERMS, ROOFLINE)}
    quick = simulated(models={small: MODELS[small]}, slowness=1.0)
    slow = simulated(models={large: MODELS[large]}, slowness=1.3)
    assert fit_compute_terms(steps_of([*quick, *slow], MODELS, PACE_MS)) == pytest.approx(expected, rel=0.01)
    assert fit_compute_terms(steps_of([*quick, *slow], MODELS)) != pytest.approx(expected, rel=0.1)


def test_without_a_lone_rank_the_slowdown_is_not_invented() -> None:
    found = fit_compute_terms(steps_of(simulated(PLANS[1:]), MODELS))
    assert found["together.slowdown"] == 0.0
    assert found["memory.s_per_byte"] == pytest.approx(1.3 * KNOWN["memory.s_per_byte"], rel=0.01)


@pytest.mark.parametrize("devices", [2, 3])
def test_how_far_ranks_lie_apart_is_found_again(devices) -> None:
    plans = (FULL, msgspec.structs.replace(MEANS, devices=devices))
    term = Term(name=SPREAD, value=0.12, origin="prior", source="a test")
    known = msgspec.structs.replace(PROFILE, terms=(*PROFILE.terms, term))
    uneven, even = simulated(plans, profile=known), simulated(plans)
    found, variance = ranks_apart(uneven, MODELS, KNOWN)
    assert found == pytest.approx(0.12, rel=1e-3) and variance < 1e-6
    assert ranks_apart(even, MODELS, KNOWN)[0] == pytest.approx(0.0, abs=1e-3)
    assert ranks_apart(simulated((LOCAL,), profile=known), MODELS, KNOWN) == (0.0, 0.0), "nobody to lie apart from"


def test_how_far_ranks_lie_apart_is_as_well_known_as_stated() -> None:
    """Over 200 seeds of blocks with normal logs: the slowest of two lies 1 / sqrt(pi) deviations from the mean."""
    known, inside = simulated((FULL, MEANS), visits=3), 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        found, variance = ranks_apart([jittered(trace, 0.1, rng) for trace in known], MODELS, KNOWN)
        off = math.log(found * normal_scores(2)[-1] / (0.1 / math.sqrt(math.pi)))
        inside += abs(off) <= 1.645 * math.sqrt(variance)
    assert inside >= 170, f"{inside} of 200 in an interval of 90 %"


def jittered(trace: Trace, deviation: float, rng: np.random.Generator) -> Trace:
    """Each rank's computing in each block takes its own time more or less."""
    factors: dict[tuple[int, int, int], float] = {}

    def of(span: Span) -> int:
        factor = factors.setdefault((span.batch, span.rank, span.block), math.exp(deviation * rng.standard_normal()))
        return span.start_ns + round(factor * (span.end_ns - span.start_ns))

    records = [
        msgspec.structs.replace(r, end_ns=of(r)) if isinstance(r, Span) and r.kind == "compute" else r
        for r in trace.records
    ]
    return Trace(header=trace.header, records=tuple(records))


def test_a_later_rank_of_a_causal_model_works_more_and_is_not_taken_for_slow() -> None:
    causal = {"vit192": msgspec.structs.replace(MODELS["vit192"], family="gpt2", causal=True, prefix_tokens=0)}
    assert ranks_apart(simulated((FULL,), models=causal), causal, KNOWN)[0] == pytest.approx(0.0, abs=1e-3)


def test_the_features_of_a_local_block_are_all_its_kernels() -> None:
    steps = steps_of(simulated(PLANS[:1])[:1], MODELS)
    block = next(step for step in steps if step.op == "block")
    gemm, attention, moved, kernels, fixed, exchanged, carried = features(block, {}).values()
    assert gemm == 2 * 197 * 12 * 192 * 192 and attention == 4 * 197 * 197 * 192
    assert moved > 0 and kernels == 10 and fixed == 1 and exchanged == 0 == carried


def test_too_few_steps_and_unknown_models_are_refused() -> None:
    traces = simulated(PLANS[:1])
    with pytest.raises(ConfigError, match="measure more"):
        fit_compute_terms(steps_of(traces[:1], MODELS))
    with pytest.raises(ConfigError, match="no specification"):
        steps_of(traces, {})


SEEDS, VISITS, LEVEL = 200, 7, 1.645  # 90 %


def noisy(steps: list[ComputeStep], rng: np.random.Generator, outliers: float) -> list[ComputeStep]:
    """Bursts that take a whole visit of a cell along, as WiFi and busy machines have; gross ones in some; and a
    little noise of each step's own."""
    bursts: dict[str, np.ndarray] = {}
    for cell in dict.fromkeys(step.cell for step in steps):
        gross = np.where(rng.random(VISITS) < outliers, rng.uniform(1.5, 5.0, VISITS), 1.0)
        bursts[cell] = np.exp(0.04 * rng.standard_normal(VISITS)) * gross
    return [
        step._replace(seconds=tuple(step.seconds[0] * bursts[step.cell] * np.exp(0.02 * rng.standard_normal(VISITS))))
        for step in steps
    ]


HARD = {
    "plain": lambda traces: traces,
    "gross outliers": lambda traces: traces,
    "kinds are missing": lambda traces: [
        without(trace, ("head",)) for trace in traces if trace.header.model != "vit448" or trace.header.plan != MEANS
    ],
    "two hosts with different clocks": lambda traces: [other_clock(trace) for trace in traces],
}


@pytest.mark.parametrize("case", HARD)
def test_every_parameter_lies_in_its_interval_as_often_as_stated(case):
    models = {model.name: model for model in (vit(192, 197), vit(448, 50), vit(768, 101))}
    clean = steps_of(HARD[case](simulated(batches=(1, 3, 8), models=models)), models)
    outliers = 0.1 if case == "gross outliers" else 0.0
    truth = np.array([KNOWN[name] for name in TERMS])
    hits = np.zeros(len(TERMS))
    for seed in range(SEEDS):
        steps = noisy(clean, np.random.default_rng(seed), outliers)
        values = fit_compute_terms(steps)
        error = np.sqrt(np.diag(relative_covariance(steps, draws=40, seed=seed)))
        hits += np.abs(np.array([values[name] for name in TERMS]) / truth - 1) < LEVEL * error
    # 0.9 less three standard deviations of 200 trials and the bootstrap's own smallness; too wide counts as well
    assert np.all(hits / SEEDS > 0.8), dict(zip(TERMS, hits / SEEDS, strict=True))
    assert np.mean(hits / SEEDS) > 0.87


def test_terms_that_only_their_sum_is_known_of_are_named():
    """Blocks alone have their fixed costs in the same proportions; steps with kernels and no block separate them."""
    traces = simulated(batches=(1, 3, 8))
    assert tied(steps_of(traces, MODELS)) == []
    blocks = [without(trace, ("embed", "head")) for trace in traces]
    assert ("kernel.fixed_s", "block.fixed_s") in tied(steps_of(blocks, MODELS))


def test_probed_blocks_are_local_steps() -> None:
    shape = (3, 40, 192, 3, 768)
    probe = Probe(rank=0, op="block", shape=shape, flops=1, bytes=1, start_ns=0, end_ns=2_000_000, calls=2)
    other = Probe(rank=0, op="gemm", shape=(1, 2, 3), flops=1, bytes=1, start_ns=0, end_ns=1)
    (step,) = steps_of_probes([probe, other])
    cell = next(cell for cell in cells(cuda=False) if cell.op == "block" and cell.shape == shape)
    assert step.seconds == (0.001,) and sum(kernel.flops for kernel in step.kernels) == cell.flops
    assert not step.together and step.moved == 0


def test_the_measured_profile_is_built_in() -> None:
    profile = load_profile("x86-core")
    assert profile.values()["together.slowdown"] > 0 and not profile.staged
    assert profile.outside({"batch": 8, "width": 768}) == [] and profile.outside({"batch": 16}) != []
    assert profile.taken.wires == ("fp32", "int4")
