"""Traces of devices to a CalibratedProfile, and what the fit can and can't say.

Compute terms come from spans and probes (compute.py), staging from the copies' spans (alphabeta.py), the link's two
terms from whole latencies through the simulator, which is handed in: this package knows none. How far a prediction
of another model may be off comes from leaving each model out in turn.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from calibration.alpha_beta import fit_alpha_beta
from calibration.compute_terms import (
    ROOFLINE,
    TERMS,
    Step,
    covariance,
    fit,
    ranks_apart,
    steps_of,
    steps_of_probes,
    tied,
)
from calibration.trace_checks import checked, unpaced, unsteady, usual_pace_ms
from prism.codecs import payload_bytes
from prism.cost import CalibratedProfile, Taken, Term, columns
from prism.errors import ConfigError
from prism.perfmap import Cell, build_map
from prism.perfmap.pooling import TraceSet
from prism.spec import ModelSpec
from prism.trace import Probe

Array = NDArray[np.float64]
Simulate = Callable[[CalibratedProfile, Sequence[Cell]], Array]  # milliseconds of each cell, at its own pace
LINK = ("link.gain", "link.message_s")
LINK_START = (0.97, 5e-4)  # of the configured rate; seconds a message
SIZES_BYTES = (100_000, 1_000_000)  # between which regimes of a message's size end
SPREAD = "together.spread"
WEAK = 0.5  # a standard error of the logarithm above this says that the data hardly bear on a term
GROSS = 5.0  # robust deviations above its cell's median from which on a visit was disturbed
STAGES: dict[Literal["stage_d2h", "stage_h2d"], str] = {"stage_d2h": "d2h", "stage_h2d": "h2d"}


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A term's value; log_se: standard error of its logarithm, null where the data don't tell it from others."""

    name: str
    value: float
    log_se: float | None
    state: Literal["fitted", "weak", "not determined", "prior"]


class Residual(msgspec.Struct, frozen=True, kw_only=True):
    """A cell that the fit saw."""

    cell: str
    model: str
    mode: str
    measured_ms: float
    spread_ms: tuple[float, float]
    fitted_ms: float

    @property
    def error(self) -> float:
        return self.fitted_ms / self.measured_ms - 1


class Regime(msgspec.Struct, frozen=True, kw_only=True):
    """Cells of one collective, number of devices and regime of message sizes (the smallest and largest seen), and the
    mean of their errors: the link's terms are the same for all, so here is seen whether they may be."""

    collective: Literal["mesh", "ring"]
    devices: int
    bytes: tuple[int, int]
    cells: int
    error_pct: float


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """A profile and how it came to be. left_out_mape_pct: of each model, predicted from the others alone."""

    profile: CalibratedProfile
    estimates: tuple[Estimate, ...]
    residuals: tuple[Residual, ...]
    regimes: tuple[Regime, ...]
    visits: int
    probes: int
    mape_pct: float
    left_out_mape_pct: dict[str, float]
    messages: tuple[str, ...]


def calibrate(
    traces: TraceSet,
    models: Mapping[str, ModelSpec],
    simulate: Simulate,
    name: str,
    probes: Sequence[Probe] = (),
    note: str = "",
) -> Calibration:
    """Fit everything, then once more without each model. Raises ConfigError, TraceError: see checks.py."""
    traces, messages = checked(traces)
    cells = build_map(traces).cells
    missing = sorted({cell.model for cell in cells} - set(models))
    if missing:
        raise ConfigError(f"traces of {', '.join(missing)}: no specification was given; add it with --model")
    probed = steps_of_probes(probes)
    usual_ms = usual_pace_ms(cells)
    steps = steps_of([file.trace for file in traces.files], models, usual_ms) + probed
    profile = _profile(traces, cells, models, simulate, steps, usual_ms, name, note)
    alike = tied(steps)
    fitted = simulate(profile, cells)
    own_sd = _log_sd(fitted, cells)
    others = _left_out(traces, cells, models, simulate, steps, usual_ms)
    errors = [error for each in others.values() for error in each]
    sd = 1.4826 * float(np.median(np.abs(errors))) if errors else own_sd
    profile = msgspec.structs.replace(profile, residual_log_sd=max(sd, own_sd))
    mape = float(100 * np.mean([abs(ms / cell.latency_ms.p50 - 1) for ms, cell in zip(fitted, cells, strict=True)]))
    return Calibration(
        profile=profile,
        estimates=tuple(_estimates(profile, {term for pair in alike for term in pair})),
        visits=len(traces.files),
        probes=len(probed),
        residuals=tuple(
            Residual(
                cell=cell.label,
                model=cell.model,
                mode=cell.plan.mode.value,
                measured_ms=cell.latency_ms.p50,
                spread_ms=cell.spread_ms,
                fitted_ms=float(ms),
            )
            for cell, ms in zip(cells, fitted, strict=True)
        ),
        regimes=tuple(_regimes(cells, fitted, models)),
        mape_pct=mape,
        messages=(*messages, *unpaced(cells), *unsteady(cells), *map(_unclear, alike)),
        left_out_mape_pct={model: float(100 * np.mean(np.abs(np.expm1(each)))) for model, each in others.items()},
    )


def _left_out(
    traces: TraceSet,
    cells: Sequence[Cell],
    models: Mapping[str, ModelSpec],
    simulate: Simulate,
    steps: Sequence[Step],
    usual_ms: float | None,
) -> dict[str, list[float]]:
    """Logarithms of predicted over measured, of each model from a fit to the others."""
    names = sorted({cell.model for cell in cells})
    found: dict[str, list[float]] = {}
    for name in names if len(names) > 1 else []:
        part = TraceSet(files=tuple(file for file in traces.files if file.trace.header.model != name))
        of_others = [step for step in steps if step.model != name]
        known = [cell for cell in cells if cell.model != name]
        held = [cell for cell in cells if cell.model == name]
        if all(cell.plan.ranks == 1 for cell in known):
            continue  # nothing is left of exchanges
        try:
            other = _profile(part, known, models, simulate, of_others, usual_ms, "left out", "")
        except ConfigError:
            continue  # the others are too few
        ratio = np.log(simulate(other, held) / [cell.latency_ms.p50 for cell in held])
        found[name] = [float(value) for value in ratio]
    return found


def _profile(
    traces: TraceSet,
    cells: Sequence[Cell],
    models: Mapping[str, ModelSpec],
    simulate: Simulate,
    steps: Sequence[Step],
    usual_ms: float | None,
    name: str,
    note: str,
) -> CalibratedProfile:
    """Terms from the traces, cells and steps given, and from no others; at the pace `usual_ms`, where it is known."""
    values = fit(steps)
    header = traces.files[0].trace.header
    staging = _staging(traces, models)
    apart, apart_variance = ranks_apart([file.trace for file in traces.files], models, values)
    known = {
        **{term: (values[term], "spans and probes") for term in TERMS},
        SPREAD: (apart, "spans of ranks beside each other"),
        ROOFLINE: (values[ROOFLINE], "the better of two forms"),
        **{term: (value, "spans of the copies") for term, value in staging.items()},
        "overlap.power": (1.0, "a CPU launches and works by turns"),
    }
    plans = {cell.plan for cell in cells if cell.plan.ranks > 1}
    spread = covariance(steps)

    def made(link: Array, link_covariance: Array) -> CalibratedProfile:
        terms = [_term(each, value, source) for each, (value, source) in known.items()]
        terms += [_term(each, float(v), "latencies, simulated") for each, v in zip(LINK, link, strict=True)]
        whole = np.zeros((len(terms), len(terms)))
        whole[: len(TERMS), : len(TERMS)] = spread
        whole[len(TERMS), len(TERMS)] = apart_variance
        whole[-2:, -2:] = link_covariance
        return CalibratedProfile(
            name=name,
            device=str(header.host.get("processor", header.host.get("device", "unknown"))),
            power_mode=str(header.host.get("power_mode", "not reported")),
            note=note,
            staged=bool(staging),
            terms=tuple(terms),
            covariance=tuple(tuple(map(float, row)) for row in whole),
            power=header.power,
            traces=tuple(sorted(file.digest for file in traces.files)),
            ranges=_ranges(cells, models, steps),
            taken=_taken(plans),
            pace_ms=usual_ms,
        )

    shared = [cell for cell in cells if cell.plan.ranks > 1]

    def whole_ms(logs: Array) -> Array:
        return simulate(made(np.exp(logs), np.zeros((2, 2))), shared)

    profile = made(*link_terms(whole_ms, undisturbed_ms([cell.visit_p50_ms for cell in shared])))
    return msgspec.structs.replace(profile, residual_log_sd=_log_sd(simulate(profile, cells), cells))


def undisturbed_ms(visits_ms: Sequence[Sequence[float]]) -> Array:
    """Each cell's median over the visits that nothing disturbed grossly. What disturbs only ever lengthens: a median over all
    visits lies too high by a part of its error, and in every cell alike, which no number of cells averages out."""
    logs = [np.log(each) - np.log(np.median(each)) for each in visits_ms]
    gross = GROSS * 1.4826 * float(np.median(np.abs(np.concatenate(logs))))
    return np.array([np.median(np.asarray(ms)[log <= gross]) for ms, log in zip(visits_ms, logs, strict=True)])


def link_terms(whole_ms: Callable[[Array], Array], measured_ms: Array) -> tuple[Array, Array]:
    """Values of LINK and the covariance of their logarithms, from whole latencies. whole_ms: what the cells take by the
    logarithms of the terms."""

    def misfit(logs: Array) -> Array:
        return np.log(whole_ms(logs) / measured_ms)

    found = least_squares(misfit, np.log(LINK_START), loss="soft_l1", f_scale=0.05, diff_step=1e-2)
    noise = float(np.var(misfit(found.x)))
    return np.exp(found.x), noise * np.linalg.pinv(found.jac.T @ found.jac)


def _regimes(cells: Sequence[Cell], fitted: Array, models: Mapping[str, ModelSpec]) -> Iterable[Regime]:
    found: dict[tuple[Any, ...], list[tuple[int, float]]] = defaultdict(list)
    for cell, ms in zip(cells, fitted, strict=True):
        if cell.plan.ranks > 1:
            size = payload_bytes(
                cell.plan.wire, cell.batch * cell.plan.sent_rows(cell.tokens)[0] * models[cell.model].width
            )
            ring = cell.plan.uses_ring(size, models[cell.model].causal)
            regime = sum(size > edge for edge in SIZES_BYTES)
            key = ("ring" if ring else "mesh", cell.plan.ranks, regime)
            found[key].append((size, 100 * (ms / cell.latency_ms.p50 - 1)))
    for (collective, devices, _), seen in sorted(found.items()):
        sizes, errors = zip(*seen, strict=True)
        yield Regime(
            collective=collective,
            devices=devices,
            bytes=(min(sizes), max(sizes)),
            cells=len(seen),
            error_pct=float(np.mean(errors)),
        )


def _term(name: str, value: float, source: str) -> Term:
    fitted = value > 0 and name != "overlap.power"
    told = source if value or name == ROOFLINE else "the traces don't tell it from the other terms; 0"
    return Term(name=name, value=value, origin="fitted" if fitted else "prior", source=told)


def _log_sd(fitted: Array, cells: Sequence[Cell]) -> float:
    errors = np.log(fitted / [cell.latency_ms.p50 for cell in cells])
    return 1.4826 * float(np.median(np.abs(errors)))


def _staging(traces: TraceSet, models: Mapping[str, ModelSpec]) -> dict[str, float]:
    """Terms of the copies between a device and its host, from the exchanges' spans; none where nothing is copied."""
    found: dict[str, float] = {}
    for kind, curve in STAGES.items():
        sizes, seconds = _copies(traces, models, kind)
        if sizes:
            line = fit_alpha_beta(sizes, seconds)
            found[f"{curve}.fixed_s"], found[f"{curve}.s_per_byte"] = line.alpha_s, 8 / line.lines[0].beta_bps
            if line.break_bytes is not None:
                found[f"{curve}.break_bytes"] = float(line.break_bytes)
                found[f"{curve}.large_s_per_byte"] = 8 / line.beta_bps
    return found


def _copies(
    traces: TraceSet, models: Mapping[str, ModelSpec], kind: Literal["stage_d2h", "stage_h2d"]
) -> tuple[list[float], list[float]]:
    """Bytes and seconds of every copy of an exchange."""
    sizes: list[float] = []
    seconds: list[float] = []
    for file in traces.files:
        header, measured = file.trace.header, {batch.batch for batch in file.trace.measured}
        width = models[header.model].width
        rows = header.plan.sent_rows(header.tokens)
        whole = [payload_bytes(header.plan.wire, header.batch * each * width) for each in rows]
        for span in file.trace.spans:
            if span.kind == kind and span.op == "exchange" and span.batch in measured:
                others = sum(size for rank, size in enumerate(whole) if rank != span.rank)
                sizes.append(float(whole[span.rank] if kind == "stage_d2h" else others))
                seconds.append((span.end_ns - span.start_ns) / 1e9)
    return sizes, seconds


def _taken(plans: Iterable[Any]) -> Taken:
    first = next(iter(sorted(plans, key=str)))
    kinds = {plan.collective for plan in plans}
    return Taken(
        overlap=first.overlap,
        embed=first.embed,
        collective=kinds.pop() if len(kinds) == 1 else "auto",
        wires=tuple(sorted({plan.wire for plan in plans})),
    )


def _ranges(
    cells: Sequence[Cell], models: Mapping[str, ModelSpec], steps: Sequence[Step]
) -> dict[str, tuple[float, float]]:
    found: dict[str, list[float]] = defaultdict(list)
    for cell in cells:
        model = models[cell.model]
        found["batch"].append(cell.batch)
        found["tokens"].append(cell.tokens)
        found["width"].append(model.width)
        found["columns"].append(columns(model))
        found["devices"].append(cell.plan.ranks)
        if cell.plan.ranks > 1:
            found["message_bytes"].append(cell.bytes_per_exchange)
        if cell.bandwidth_mbps is not None:
            found["link_mbps"].append(cell.bandwidth_mbps)
    for _, tokens, width, _, mlp_width in (step.shape for step in steps if step.shape):
        found["tokens"].append(tokens)
        found["width"].append(width)
        found["columns"].append(max(3 * width, mlp_width))
    return {name: (min(values), max(values)) for name, values in found.items()}


def _unclear(pair: tuple[str, str]) -> str:
    return (
        f"{' and '.join(pair)} can't be told apart: only what they come to together is known; measure models of other "
        f"widths in all modes with prism-hw profile"
    )


def _estimates(profile: CalibratedProfile, unclear: set[str]) -> Iterable[Estimate]:
    spread = np.sqrt(np.diag(np.array(profile.covariance)))
    for term, se in zip(profile.terms, spread, strict=True):
        state: Literal["fitted", "weak", "not determined", "prior"] = "prior"
        if term.name in (*TERMS, SPREAD, *LINK):
            state = "not determined" if term.value == 0 else "weak" if se > WEAK or term.name in unclear else "fitted"
        known = float(se) if state in ("fitted", "weak") else None
        yield Estimate(name=term.name, value=term.value, log_se=known, state=state)
