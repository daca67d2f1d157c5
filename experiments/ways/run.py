"""Measure the ways to run a batch beside each other: today's plans of parts, replicas and stages.

    python -m experiments.ways.run measure      # about half an hour, as root, on two idle cores; resumes
    python -m experiments.ways.run summarise    # from the traces, or from the committed maps

`measure` profiles ViT-Base and BERT-Base on the testbed, every cell of a repeat before any comes again, so that a ratio
is of visits that lie minutes apart. `summarise` writes `experiments/results/ways/summary.json` and prints it: the best
new way over the best that existed before, by batch and rate, as the median over the repeats of the ratio within one.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from experiments.lib.places import RESULTS
from experiments.lib.profiling import measure as profiled
from prism.cli.entry import run
from prism.files import write_json
from prism.perfmap import Cell, PerformanceMap, build_map, load_map
from prism.perfmap.pooling import read_traces

HERE = Path(__file__).parent
OUT = RESULTS / "ways"
NAMES = ("vit", "bert")
app = typer.Typer(add_completion=False)


class Ratio(msgspec.Struct, frozen=True):
    """A ratio of two cells' latencies, a value for each repeat."""

    batch: int
    mbps: float
    new: str
    old: str
    repeats: tuple[float, ...]

    @property
    def median(self) -> float:
        """Over the repeats."""
        return statistics.median(self.repeats)


def is_new(cell: Cell) -> bool:
    """Whether a plan splits the batch or the blocks."""
    return cell.plan.replicas > 1 or cell.plan.stages > 1


def best(cells: Iterable[Cell]) -> Cell:
    """The quickest of some cells."""
    return min(cells, key=lambda cell: cell.latency_ms.p50)


def over(new: Cell, old: Cell) -> tuple[float, ...]:
    """Divide two cells' latencies, visit by visit."""
    return tuple(a / b for a, b in zip(new.visit_p50_ms, old.visit_p50_ms, strict=False))


def ratios(map_: PerformanceMap, only_local: bool = False) -> list[Ratio]:
    """The best new way over the best that existed before, or over local, at each batch and rate."""
    local = {cell.batch: cell for cell in map_.cells if cell.plan.ranks == 1}
    places: dict[tuple[int, float], list[Cell]] = defaultdict(list)
    for cell in map_.cells:
        if cell.bandwidth_mbps is not None and cell.plan.ranks > 1:
            places[cell.batch, cell.bandwidth_mbps].append(cell)
    found = []
    for (batch, mbps), cells in sorted(places.items()):
        before = [local[batch], *([] if only_local else (cell for cell in cells if not is_new(cell)))]
        new, old = best(filter(is_new, cells)), best(before)
        found.append(Ratio(batch, mbps, new.label, old.label, over(new, old)))
    return found


def of_maps(vit: Sequence[Ratio], bert: Sequence[Ratio]) -> dict[str, Any]:
    """The figures of the summary."""
    medians = [ratio.median for ratio in vit]
    slow = [ratio.median for ratio in vit if ratio.mbps <= 100]
    return {
        "new_over_old_median": statistics.median(medians),
        "new_over_old_median_50_and_100mbps": statistics.median(slow),
        "new_over_old_worst": max(medians),
        "bert_over_local_50mbps": statistics.median(ratio.median for ratio in bert),
    }


@app.command()
def measure(folder: Annotated[Path, typer.Option(help="Where traces go.")] = Path("out/ways")) -> None:
    """Profile both models; what is there already is kept."""
    for name in NAMES:
        traces = profiled(HERE / f"{name}.toml", folder)
        build_map(read_traces([traces])).save(folder / f"{name}.json")


@app.command()
def summarise(folder: Annotated[Path, typer.Option(help="Folder of the maps vit.json and bert.json.")] = OUT) -> None:
    """Print and write the summary."""
    vit, bert = (load_map(folder / f"{name}.json") for name in NAMES)
    rows = ratios(vit)
    summary = of_maps(rows, ratios(bert, only_local=True))
    for ratio in rows:
        print(f"B={ratio.batch} {ratio.mbps:g} Mbps: {ratio.median:.2f}  {ratio.new}  over  {ratio.old}")
    for name, value in summary.items():
        print(f"{name} {value:.3f}")
    OUT.mkdir(exist_ok=True)
    write_json(OUT / "summary.json", summary)


if __name__ == "__main__":
    run(app, "ways")
