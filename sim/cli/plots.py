"""Plots of results as SVG text, for pages that need no other file."""

import io
from collections.abc import Sequence
from typing import Any

from sim.ask.break_even import PlanBreakEven
from sim.ask.point import PointPrediction
from sim.ask.study import Result

SHOWN = 40  # rows of a table or a plot; files have all
STAGES = {"compute": "#3b6ea5", "staging": "#9a6fb0", "wait": "#c9ced6", "wire": "#d9822b"}


def row(cell: PointPrediction) -> dict[str, Any]:
    """A prediction as one flat row."""
    split = cell.split_ms
    low, high = cell.interval_ms or (None, None)
    return {
        "model": cell.model,
        "tokens": cell.tokens,
        "mode": cell.mode,
        "segments": cell.segments,
        "wire": cell.wire,
        "devices": cell.devices,
        "batch": cell.batch,
        "bandwidth_mbps": cell.bandwidth_mbps,
        "latency_ms": cell.latency_ms,
        "low_ms": low,
        "high_ms": high,
        "per_sample_ms": cell.per_sample_ms,
        "energy_j": cell.energy_j,
        "compute_ms": split["compute"],
        "staging_ms": split["stage_d2h"] + split["stage_h2d"],
        "wait_ms": split["wait"],
        "wire_ms": split["wire"],
        "weights": ":".join(f"{weight:g}" for weight in cell.weights or ()),
        "tag": cell.tag,
    }


def name_of(cell: PointPrediction, parts: Sequence[str] = ("wire", "devices", "bandwidth_mbps", "batch")) -> str:
    """What distinguishes a cell of one model; of the parts, those that are named."""
    words = {
        "wire": cell.wire,
        "devices": f"P={cell.devices}",
        "bandwidth_mbps": f"{cell.bandwidth_mbps or 0:g} Mbps",
        "batch": f"B={cell.batch}",
    }
    mode = f"{cell.mode.replace('segment_means', 'means')} L={cell.segments}" if cell.segments else cell.mode
    mode += f" {':'.join(f'{weight:g}' for weight in cell.weights)}" if cell.weights else ""
    chosen = [words[part] for part in parts if cell.devices > 1 or part == "batch"]
    return " ".join([mode, *chosen])


def names_of(cells: Sequence[PointPrediction]) -> list[str]:
    """Names that leave out what all distributed cells share."""
    parts = []
    for part in ("wire", "devices", "bandwidth_mbps", "batch"):
        if len({getattr(cell, part) for cell in cells if cell.devices > 1 or part == "batch"}) > 1:
            parts.append(part)
    return [name_of(cell, parts) for cell in cells]


def split_plot(cells: Sequence[PointPrediction]) -> str:
    """Stacked bars, one a cell: where the time goes. SVG text."""
    chosen = list(cells[:SHOWN])
    figure, axes = _figure(0.4 * len(chosen) + 1.2)
    left = [0.0] * len(chosen)
    names = [f"{index + 1}. {name}" for index, name in enumerate(names_of(chosen))]
    for stage, colour in STAGES.items():
        values = [row(cell)[f"{stage}_ms"] for cell in chosen]
        axes.barh(names, values, left=left, color=colour, label=stage)
        left = [a + b for a, b in zip(left, values, strict=True)]
    for index, cell in enumerate(chosen):
        if cell.interval_ms:
            axes.plot(cell.interval_ms, [index, index], color="#1d2430", linewidth=1)
    axes.invert_yaxis()
    axes.set_xlabel("ms per batch, simulated")
    axes.legend(frameon=False, ncols=4, loc="lower right", bbox_to_anchor=(1, 1))
    return _svg(figure)


def flip_plot(flip: PlanBreakEven) -> str:
    figure, axes = _figure(4.0)
    axes.plot(flip.values, flip.local_ms, color=STAGES["wait"], linewidth=3, label="local")
    axes.plot(flip.values, flip.distributed_ms, color=STAGES["wire"], label="distributed")
    if flip.value is not None and flip.interval is not None:
        axes.axvspan(*flip.interval, color="#e3e6ea", zorder=0)
        axes.axvline(flip.value, color="#1d2430", linestyle=":")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(f"{flip.over}{' (Mbps)' if flip.over == 'bandwidth' else ''}")
    axes.set_ylabel("ms per batch, simulated")
    axes.legend(frameon=False)
    return _svg(figure)


def front_plot(result: Result) -> str:
    """Latency against energy per sample of every cell that keeps the constraints; the front as a line."""
    figure, axes = _figure(4.5)
    dots = [result.cells[k] for k in result.feasible if result.cells[k].energy_j is not None]
    axes.scatter(
        [c.per_sample_ms for c in dots], [(c.energy_j or 0) / c.batch for c in dots], s=8, color=STAGES["compute"]
    )
    front = [result.cells[k] for k in result.front if result.cells[k].energy_j is not None]
    axes.plot(
        [c.per_sample_ms for c in front], [(c.energy_j or 0) / c.batch for c in front], color=STAGES["wire"], marker="o"
    )
    axes.set_xlabel("ms per sample, simulated")
    axes.set_ylabel("J per sample, modelled")
    return _svg(figure)


def _figure(height: float) -> Any:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, height), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Any) -> str:
    from matplotlib import pyplot as plt

    out = io.StringIO()
    figure.savefig(out, format="svg")
    plt.close(figure)
    text = out.getvalue()
    return text[text.index("<svg") :]
