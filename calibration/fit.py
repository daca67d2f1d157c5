"""Calibrate: traces of devices to a CalibratedProfile, with what the fit can and can't tell.

Compute terms come from spans and probes (compute_terms), staging from the spans of copies (staging_terms), the link's
two terms from whole latencies through the simulator (link_terms). The simulator is handed in, as this package imports
none. How far a prediction of another model may be off comes from leaving each model out in turn.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from calibration.compute_terms import (
    ROOFLINE,
    TERMS,
    ComputeStep,
    fit_compute_terms,
    ranks_apart,
    relative_covariance,
    steps_of,
    steps_of_probes,
    tied,
)
from calibration.link_terms import LINK, START, LinkFit, fit_link_terms, undisturbed_ms
from calibration.parameters import Parameter, Parameters
from calibration.staging_terms import fit_staging_terms
from calibration.trace_checks import unpaced, unsteady, usable_traces, usual_pace_ms
from prism.cost import CalibratedProfile, Taken, columns
from prism.errors import ConfigError
from prism.perfmap import Cell, build_map
from prism.perfmap.pooling import TraceSet
from prism.plan import ExecutionPlan, Route
from prism.spec import ModelSpec
from prism.trace import Probe

Array = NDArray[np.float64]
Simulate = Callable[[CalibratedProfile, Sequence[Cell]], Array]  # milliseconds of each cell, at its own pace
Determination = Literal["fitted", "weak", "not determined", "prior"]
SIZES_BYTES = (100_000, 1_000_000)  # bounds between regimes of message sizes
SPREAD = "together.spread"
WEAK = 0.5  # standard error of a logarithm above which the data hardly bear on a term
UNTOLD = "the traces don't tell it from the other terms; 0"


class TermEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """A term's value. log_se: standard error of its logarithm, None where the data don't tell it from others."""

    name: str
    value: float
    log_se: float | None
    state: Determination


class Residual(msgspec.Struct, frozen=True, kw_only=True):
    """A cell that the fit saw, measured and fitted."""

    cell: str
    model: str
    mode: str
    measured_ms: float
    spread_ms: tuple[float, float]
    fitted_ms: float

    @property
    def error(self) -> float:
        """Relative error of the fit."""
        return self.fitted_ms / self.measured_ms - 1


class Regime(msgspec.Struct, frozen=True, kw_only=True):
    """Cells of one collective, number of devices and range of message sizes, with the mean error of the fit.

    bytes: smallest and largest message. The link's terms are the same for all regimes; these errors say whether they
    may be.
    """

    collective: Route
    devices: int
    bytes: tuple[int, int]
    cells: int
    error_pct: float


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """A profile and the quality of its fit.

    left_out_mape_pct: of each model, predicted from the others alone. converged: whether the fit of the link's terms
    ended at a minimum; where it didn't, messages say so too.
    """

    profile: CalibratedProfile
    estimates: tuple[TermEstimate, ...]
    residuals: tuple[Residual, ...]
    regimes: tuple[Regime, ...]
    visits: int
    probes: int
    mape_pct: float
    left_out_mape_pct: dict[str, float]
    messages: tuple[str, ...]
    converged: bool = True


class FitData(NamedTuple):
    """What a profile is fitted to. usual_ms: the pace that steps are scaled to, None where it isn't known."""

    traces: TraceSet
    cells: tuple[Cell, ...]
    models: Mapping[str, ModelSpec]
    steps: list[ComputeStep]
    usual_ms: float | None

    def without(self, model: str) -> "FitData":
        """Leave out what was measured of a model; probes stay."""
        return self._replace(
            traces=TraceSet(files=tuple(file for file in self.traces.files if file.trace.header.model != model)),
            cells=tuple(cell for cell in self.cells if cell.model != model),
            steps=[step for step in self.steps if step.model != model],
        )

    @property
    def distributed(self) -> list[Cell]:
        """Cells of several devices."""
        return [cell for cell in self.cells if cell.plan.ranks > 1]


class FittedProfile(NamedTuple):
    """A profile, its parameters, and the end of the search for the link's terms."""

    profile: CalibratedProfile
    parameters: Parameters
    link: LinkFit


def calibrate(
    traces: TraceSet,
    models: Mapping[str, ModelSpec],
    simulate: Simulate,
    name: str,
    probes: Sequence[Probe] = (),
    note: str = "",
) -> Calibration:
    """Fit everything, then once more without each model. Raises ConfigError, TraceError: see trace_checks."""
    data, messages = _data(traces, models, probes)
    fitted = _fitted_profile(data, simulate, name, note)
    fitted_ms = simulate(fitted.profile, data.cells)
    errors_by_model, unconverged = _left_out(data, simulate)
    alike = tied(data.steps)
    return Calibration(
        profile=msgspec.structs.replace(
            fitted.profile, residual_log_sd=_prediction_log_sd(fitted_ms, data.cells, errors_by_model)
        ),
        estimates=tuple(_estimates(fitted, {term for pair in alike for term in pair})),
        visits=len(data.traces.files),
        probes=sum(bool(step.shape) for step in data.steps),
        residuals=_residuals(data.cells, fitted_ms),
        regimes=tuple(_regimes(data.cells, fitted_ms, models)),
        mape_pct=_mape_pct(fitted_ms, data.cells),
        messages=(
            *messages,
            *unpaced(data.cells),
            *unsteady(data.cells),
            *map(_unclear, alike),
            *_unconverged(fitted.link, unconverged),
        ),
        left_out_mape_pct={
            model: float(100 * np.mean(np.abs(np.expm1(errors)))) for model, errors in errors_by_model.items()
        },
        converged=fitted.link.converged,
    )


def _data(
    traces: TraceSet, models: Mapping[str, ModelSpec], probes: Sequence[Probe]
) -> tuple[FitData, tuple[str, ...]]:
    """Collect what is fitted to, and what a user should know of it. Raises ConfigError, TraceError."""
    usable, messages = usable_traces(traces)
    cells = build_map(usable).cells
    missing = sorted({cell.model for cell in cells} - set(models))
    if missing:
        raise ConfigError(f"traces of {', '.join(missing)}: no specification was given; add it with --model")
    usual_ms = usual_pace_ms(cells)
    steps = steps_of([file.trace for file in usable.files], models, usual_ms) + steps_of_probes(probes)
    return FitData(usable, cells, models, steps, usual_ms), messages


def _left_out(data: FitData, simulate: Simulate) -> tuple[dict[str, list[float]], list[str]]:
    """Predict each model from a fit to the others.

    Returns logarithms of predicted over measured by model, and the models for which the fit to the others didn't
    converge. A model is skipped where the others hold no exchange, or are too few.
    """
    names = sorted({cell.model for cell in data.cells})
    errors: dict[str, list[float]] = {}
    unconverged: list[str] = []
    for name in names if len(names) > 1 else []:
        others = data.without(name)
        if not others.distributed:
            continue
        try:
            fitted = _fitted_profile(others, simulate, "left out", "")
        except ConfigError:
            continue
        if not fitted.link.converged:
            unconverged.append(name)
        held_out = [cell for cell in data.cells if cell.model == name]
        errors[name] = [float(log) for log in _log_errors(simulate(fitted.profile, held_out), held_out)]
    return errors, unconverged


def _fitted_profile(data: FitData, simulate: Simulate, name: str, note: str) -> FittedProfile:
    """Fit a profile to the data, and to nothing else; at their usual pace, where it is known."""
    parameters, staged = _parameters(data)
    header = data.traces.files[0].trace.header
    profile = CalibratedProfile(
        name=name,
        device=str(header.host.get("processor", header.host.get("device", "unknown"))),
        power_mode=str(header.host.get("power_mode", "not reported")),
        note=note,
        staged=staged,
        terms=parameters.terms(),
        power=header.power,
        traces=tuple(sorted(file.digest for file in data.traces.files)),
        ranges=_ranges(data),
        taken=_taken({cell.plan for cell in data.distributed}),
        pace_ms=data.usual_ms,
    )
    link = _fitted_link(data, profile, parameters, simulate)
    parameters.set_values(link.values)
    parameters.correlate(LINK, link.covariance)
    profile = msgspec.structs.replace(profile, terms=parameters.terms(), covariance=parameters.covariance())
    log_sd = _log_sd(simulate(profile, data.cells), data.cells)
    return FittedProfile(msgspec.structs.replace(profile, residual_log_sd=log_sd), parameters, link)


def _parameters(data: FitData) -> tuple[Parameters, bool]:
    """Fit all parameters but the link's, which stand at their start; and say whether tensors are copied."""
    values = fit_compute_terms(data.steps)
    staging = fit_staging_terms(data.traces, data.models)
    apart, apart_variance = ranks_apart([file.trace for file in data.traces.files], data.models, values)
    parameters = Parameters(
        [
            *(_parameter(term, values[term], "spans and probes") for term in TERMS),
            _parameter(SPREAD, apart, "spans of ranks beside each other"),
            Parameter(name=ROOFLINE, value=values[ROOFLINE], source="the better of two forms", bounds=(0.0, 1.0)),
            *(_parameter(term, value, "spans of the copies") for term, value in staging.items()),
            Parameter(name="overlap.power", value=1.0, source="a CPU launches and works by turns", fitted=False),
            *(Parameter(name=term, value=start, source="latencies, simulated") for term, start in START.items()),
        ]
    )
    parameters.correlate(TERMS, relative_covariance(data.steps))
    parameters.correlate((SPREAD,), np.array([[apart_variance]]))
    return parameters, bool(staging)


def _parameter(name: str, value: float, source: str) -> Parameter:
    return Parameter(name=name, value=value, source=source if value else UNTOLD)


def _fitted_link(data: FitData, profile: CalibratedProfile, parameters: Parameters, simulate: Simulate) -> LinkFit:
    """Search for the link's terms with which simulated latencies of distributed cells are the measured ones."""

    def whole_ms(logs: Array) -> Array:
        parameters.set_values({name: float(value) for name, value in zip(LINK, np.exp(logs), strict=True)})
        return simulate(msgspec.structs.replace(profile, terms=parameters.terms()), data.distributed)

    return fit_link_terms(whole_ms, undisturbed_ms([cell.visit_p50_ms for cell in data.distributed]))


def _residuals(cells: Sequence[Cell], fitted_ms: Array) -> tuple[Residual, ...]:
    return tuple(
        Residual(
            cell=cell.label,
            model=cell.model,
            mode=cell.plan.mode.value,
            measured_ms=cell.latency_ms.p50,
            spread_ms=cell.spread_ms,
            fitted_ms=float(ms),
        )
        for cell, ms in zip(cells, fitted_ms, strict=True)
    )


def _regimes(cells: Sequence[Cell], fitted_ms: Array, models: Mapping[str, ModelSpec]) -> Iterable[Regime]:
    seen: dict[tuple[Route, int, int], list[tuple[int, float]]] = defaultdict(list)
    for cell, ms in zip(cells, fitted_ms, strict=True):
        if cell.plan.ranks > 1:
            model = models[cell.model]
            size = cell.plan.message_bytes(cell.batch, cell.tokens, model.width)
            collective: Route = "ring" if cell.plan.uses_ring(size, model.causal) else "mesh"
            regime = sum(size > edge for edge in SIZES_BYTES)
            seen[collective, cell.plan.ranks, regime].append((size, 100 * (ms / cell.latency_ms.p50 - 1)))
    for (collective, devices, _), messages in sorted(seen.items()):
        sizes, errors_pct = zip(*messages, strict=True)
        yield Regime(
            collective=collective,
            devices=devices,
            bytes=(min(sizes), max(sizes)),
            cells=len(messages),
            error_pct=float(np.mean(errors_pct)),
        )


def _log_errors(fitted_ms: Array, cells: Sequence[Cell]) -> Array:
    """Logarithms of fitted over measured, [cells]."""
    return np.asarray(np.log(fitted_ms / [cell.latency_ms.p50 for cell in cells]))


def _log_sd(fitted_ms: Array, cells: Sequence[Cell]) -> float:
    """Robust standard deviation of the logarithm of fitted over measured."""
    return 1.4826 * float(np.median(np.abs(_log_errors(fitted_ms, cells))))


def _prediction_log_sd(
    fitted_ms: Array, cells: Sequence[Cell], errors_by_model: Mapping[str, Sequence[float]]
) -> float:
    """Scatter that predictions carry: that of models left out, but at least that of the fit."""
    own = _log_sd(fitted_ms, cells)
    errors = [error for errors in errors_by_model.values() for error in errors]
    return max(1.4826 * float(np.median(np.abs(errors))), own) if errors else own


def _mape_pct(fitted_ms: Array, cells: Sequence[Cell]) -> float:
    return float(100 * np.mean([abs(ms / cell.latency_ms.p50 - 1) for ms, cell in zip(fitted_ms, cells, strict=True)]))


def _taken(plans: Iterable[ExecutionPlan]) -> Taken:
    """Say how the plans were executed; they differ in little but the wire and the collective."""
    ordered = sorted(plans, key=str)
    exchanging = [plan for plan in ordered if plan.parts > 1] or ordered
    collectives = {plan.collective for plan in exchanging}
    return Taken(
        overlap=exchanging[0].overlap,
        embed=exchanging[0].embed,
        collective=collectives.pop() if len(collectives) == 1 else "auto",
        wires=tuple(sorted({plan.wire for plan in ordered})),
        replicas=any(plan.replicas > 1 for plan in ordered),
        stages=any(plan.stages > 1 for plan in ordered),
    )


def _ranges(data: FitData) -> dict[str, tuple[float, float]]:
    """Find the ranges of the data, by quantity."""
    seen: dict[str, list[float]] = defaultdict(list)
    for cell in data.cells:
        model = data.models[cell.model]
        seen["batch"].append(cell.batch)
        seen["tokens"].append(cell.tokens)
        seen["width"].append(model.width)
        seen["columns"].append(columns(model))
        seen["devices"].append(cell.plan.ranks)
        if cell.plan.parts > 1:
            seen["message_bytes"].append(cell.bytes_per_exchange)
        if cell.bandwidth_mbps is not None:
            seen["link_mbps"].append(cell.bandwidth_mbps)
    for _, tokens, width, _, mlp_width in (step.shape for step in data.steps if step.shape):
        seen["tokens"].append(tokens)
        seen["width"].append(width)
        seen["columns"].append(max(3 * width, mlp_width))
    return {name: (min(values), max(values)) for name, values in seen.items()}


def _unclear(pair: tuple[str, str]) -> str:
    return (
        f"{' and '.join(pair)} can't be told apart: only what they come to together is known; measure models of other "
        f"widths in all modes with prism-hw profile"
    )


def _unconverged(link: LinkFit, left_out: Sequence[str]) -> Iterable[str]:
    """Say which fits of the link's terms didn't converge, and the remedy."""
    remedy = "measure more cells at two rates of the link with prism-hw profile"
    if not link.converged:
        values = ", ".join(f"{name} {value:.3g}" for name, value in link.values.items())
        yield f"the fit of the link's terms did not converge ({link.message}): {values} may be far off; {remedy}"
    if left_out:
        names = ", ".join(left_out)
        yield f"without {names} the fit of the link's terms did not converge: its error is overstated; {remedy}"


def _estimates(fitted: FittedProfile, unclear: set[str]) -> Iterable[TermEstimate]:
    for term in fitted.profile.terms:
        error = fitted.parameters.standard_error(term.name)
        state: Determination = "prior"
        if term.name in (*TERMS, SPREAD, *LINK):
            weak = error > WEAK or term.name in unclear
            state = "not determined" if term.value == 0 else "weak" if weak else "fitted"
        log_se = error if state in ("fitted", "weak") else None
        yield TermEstimate(name=term.name, value=term.value, log_se=log_se, state=state)
