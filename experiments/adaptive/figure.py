"""Draw the slots of a run."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.adaptive.plans import SLOT_S


def plot(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """Draw the rate, true and believed, above the latencies."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (above, below) = plt.subplots(2, 1, figsize=(9, 5.5), sharex=True)
    minutes = [SLOT_S * row["slot"] / 60 for row in rows]
    above.plot(minutes, [row["rate_bps"] / 1e6 for row in rows], color="0.3", label="the medium")
    above.plot(
        minutes, [(row["believed_bps"] or np.nan) / 1e6 for row in rows], color="tab:orange", lw=1, label="believed"
    )
    above.set(yscale="log", ylabel="Mbps", title=title)
    for name, colour, label in (
        ("local", "tab:blue", "local"),
        ("means", "tab:green", "means"),
        ("prism", "tab:red", "adaptive"),
    ):
        below.plot(minutes, [row[name] for row in rows], color=colour, lw=1, label=label)
    below.set(xlabel="minutes of the trace", ylabel="ms a batch", ylim=(0, None))
    for axis in (above, below):
        axis.legend(fontsize=8, ncols=3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
