"""Fit the terms of copies between a device and its host, from the spans of exchanges."""

from collections.abc import Mapping
from typing import Literal

from calibration.alpha_beta import fit_alpha_beta
from prism.codecs import payload_bytes
from prism.perfmap.pooling import TraceSet
from prism.spec import ModelSpec
from prism.trace import Trace

Copy = Literal["stage_d2h", "stage_h2d"]
CURVES: dict[Copy, str] = {"stage_d2h": "d2h", "stage_h2d": "h2d"}


def fit_staging_terms(traces: TraceSet, models: Mapping[str, ModelSpec]) -> dict[str, float]:
    """Fit a curve over the bytes for each direction; no terms where nothing is copied."""
    values: dict[str, float] = {}
    for kind, curve in CURVES.items():
        copies = [copy for file in traces.files for copy in _copies(file.trace, models[file.trace.header.model], kind)]
        if copies:
            sizes, seconds = zip(*copies, strict=True)
            fitted = fit_alpha_beta(sizes, seconds)
            values[f"{curve}.fixed_s"] = fitted.alpha_s
            values[f"{curve}.s_per_byte"] = 8 / fitted.lines[0].beta_bps
            if fitted.break_bytes is not None:
                values[f"{curve}.break_bytes"] = float(fitted.break_bytes)
                values[f"{curve}.large_s_per_byte"] = 8 / fitted.beta_bps
    return values


def _copies(trace: Trace, model: ModelSpec, kind: Copy) -> list[tuple[float, float]]:
    """List bytes and seconds of every measured copy of an exchange: a rank's own rows down, those of all others up."""
    header, measured = trace.header, {batch.batch for batch in trace.measured}
    plan = header.plan
    sent = [payload_bytes(plan.wire, header.batch * rows * model.width) for rows in plan.sent_rows(header.tokens)]
    copies = []
    for span in trace.spans:
        if span.kind == kind and span.op == "exchange" and span.batch in measured:
            others = sum(size for rank, size in enumerate(sent) if rank != span.rank)
            size = sent[span.rank] if kind == "stage_d2h" else others
            copies.append((float(size), (span.end_ns - span.start_ns) / 1e9))
    return copies
