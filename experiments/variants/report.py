"""Make the table and the plot of the variants."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

BASE = "means fp32"
FAMILIES = (
    ("full delta", "C3", "o"),
    ("means 1/", "C0", "s"),
    ("full int", "C2", "^"),
    ("half", "C4", "v"),
    ("a quarter", "C4", "v"),
    (BASE, "k", "*"),
)
Rows = Sequence[dict[str, Any]]


def table(rows: Rows) -> str:
    """Tabulate each variant's loss in per cent of what plain means lose on the same model and devices, with its own
    CR."""
    by = {(r["model"], r["devices"], r["variant"]): r for r in rows}
    columns = sorted({(r["model"], r["devices"]) for r in rows if (r["model"], r["devices"], BASE) in by})
    names = list(dict.fromkeys(r["variant"] for r in rows))
    head = ["variant", *(f"{model} P={devices}" for model, devices in columns)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    base = [by[(*column, BASE)] for column in columns]
    lines.append("| loss of means fp32 (CR) | " + " | ".join(f"{b['loss']:.4g} ({b['cr']:.1f})" for b in base) + " |")
    for name in names:
        cells = [by.get((*column, name)) for column in columns]
        shown = [
            "" if c is None else f"{100 * c['loss'] / b['loss']:.3g} % ({c['cr']:.1f})"
            for c, b in zip(cells, base, strict=True)
        ]
        if name != BASE:
            lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def plot(rows: Rows, path: Path) -> None:
    """Plot loss against CR, one panel per model and number of devices."""
    panels = sorted({(r["model"], r["devices"]) for r in rows if r["variant"] == BASE})
    if not panels:
        return
    columns = 3
    figure, axes = plt.subplots(
        -(-len(panels) // columns), columns, figsize=(11, 2.6 * -(-len(panels) // columns)), squeeze=False
    )
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis, panel in zip(axes.flat, panels, strict=False):
        for row in (r for r in rows if (r["model"], r["devices"]) == panel and r["cr"] > 1):
            style = next((f for f in FAMILIES if row["variant"].startswith(f[0])), ("", "0.75", "."))
            axis.plot(row["cr"], max(row["loss"], 1e-6), style[2], color=style[1], markersize=5)
        axis.set(xscale="log", yscale="log", title=f"{panel[0]}, P = {panel[1]}")
        axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("CR in bytes")
    for label, colour, mark in (
        ("full, delta", "C3", "o"),
        ("means", "C0", "s"),
        ("full, int", "C2", "^"),
        ("rows in turn", "C4", "v"),
        ("means fp32 at 9.9", "k", "*"),
        ("other", "0.75", "."),
    ):
        axes[0, 0].plot([], [], mark, color=colour, label=label)
    axes[0, 0].legend(fontsize=6)
    axes[0, 0].set_ylabel("loss")
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)
