"""Measure the ways to run a batch beside each other: today's plans of parts, replicas and stages.

    python -m experiments.ways.run measure      # about 40 minutes, as root, on two idle cores; resumes
    python -m experiments.ways.run summarise    # of experiments/results/ways, or of --folder

`measure` profiles ViT-Base and BERT-Base on the testbed, every cell of a repeat before any comes again, so that a ratio
is of visits that lie minutes apart. Then it runs `benchmarks/peers` for hand-written loops, PyTorch's own pipeline and
a stream. `summarise` prints the summary and writes `experiments/results/ways/summary.json`: the best new way over the
best that existed before, by batch and rate, as the median over the repeats of the ratio within one; and the ratios to
the peers, as medians over rounds.
"""

import json
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from experiments.lib.places import RESULTS
from experiments.lib.profiling import measure as profiled
from prism.cli.entry import run
from prism.decide.accuracy import is_exact
from prism.files import write_json
from prism.perfmap import Cell, PerformanceMap, build_map, load_map
from prism.perfmap.pooling import read_traces

HERE = Path(__file__).parent
OUT = RESULTS / "ways"
NAMES = ("vit", "bert")
COMPARED = "local;2 replicas;replicas by hand;2 stages;pipeline by hand;torch pipelining;2 parts, means L=10"
STREAM = "--rates 400Mbps --batches 1 --stream 16 --rounds 5 --memory"
BATCHES = "--rates 50Mbps,100Mbps,400Mbps,1Gbps --batches 2,4,8 --rounds 3"
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


def of_peers(batches: Path, stream: Path) -> dict[str, Any]:
    """The figures of benchmarks/peers: of single batches, and of a stream."""
    rows, streamed = (json.loads(path.read_bytes()) for path in (batches, stream))
    pairs = (("2 replicas", "replicas by hand"), ("2 stages", "pipeline by hand"))
    by_hand = [value for pair in pairs for value in _rounds(rows["rows"], *pair)]
    peaks = streamed["peak_mib"]
    return {
        "framework_over_bare": statistics.median(by_hand),
        "pipeline_stream_over_local": 1 / statistics.median(_rounds(streamed["rows"], "2 stages", "local")),
        "replicas_stream_over_local": 1 / statistics.median(_rounds(streamed["rows"], "2 replicas", "local")),
        "pipeline_over_torch_pipelining": statistics.median(_rounds(rows["rows"], "2 stages", "torch pipelining")),
        "stage_memory_over_local": max(peaks["2 stages"]) / peaks["local"][0],
    }


def _rounds(rows: Sequence[dict[str, Any]], ours: str, theirs: str) -> list[float]:
    """Ratios of two ways' times within a round, of all batches and rates."""
    times = {(row["rate"], row["batch"], row["way"]): row["ms_rounds"] for row in rows if "cannot" not in row}
    places = {(rate, batch) for rate, batch, _ in times}
    return [
        a / b
        for place in sorted(places)
        for a, b in zip(times.get((*place, ours), ()), times.get((*place, theirs), ()), strict=True)
    ]


def ratios(map_: PerformanceMap, rivals: Callable[[Cell], bool] = lambda cell: True) -> list[Ratio]:
    """The best new way over the best that existed before at each batch and rate: local, and the rivals among parts."""
    local = {cell.batch: cell for cell in map_.cells if cell.plan.ranks == 1}
    places: dict[tuple[int, float], list[Cell]] = defaultdict(list)
    for cell in map_.cells:
        if cell.bandwidth_mbps is not None and cell.plan.ranks > 1:
            places[cell.batch, cell.bandwidth_mbps].append(cell)
    found = []
    for (batch, mbps), cells in sorted(places.items()):
        before = [local[batch], *(cell for cell in cells if not is_new(cell) and rivals(cell))]
        new, old = best(filter(is_new, cells)), best(before)
        found.append(Ratio(batch, mbps, new.label, old.label, over(new, old)))
    return found


def of_maps(vit: Sequence[Ratio], exact: Sequence[Ratio], bert: Sequence[Ratio]) -> dict[str, Any]:
    """The figures of the maps. exact: against what existed before and gives the model's own answers."""
    medians = [ratio.median for ratio in vit]
    slow = [ratio.median for ratio in vit if ratio.mbps <= 100]
    return {
        "new_over_old_median": statistics.median(medians),
        "new_over_old_median_50_and_100mbps": statistics.median(slow),
        "new_over_old_worst": max(medians),
        "new_over_old_exact_median": statistics.median(ratio.median for ratio in exact),
        "bert_over_local_50mbps": statistics.median(ratio.median for ratio in bert),
    }


@app.command()
def measure(folder: Annotated[Path, typer.Option(help="Where traces go.")] = Path("out/ways")) -> None:
    """Profile both models; what is there already is kept."""
    for name in NAMES:
        traces = profiled(HERE / f"{name}.toml", folder)
        build_map(read_traces([traces])).save(folder / f"{name}.json")
    for name, arguments in (("stream", STREAM), ("peers", BATCHES)):
        output = ["--ways", COMPARED, "--output", str((folder / f"{name}.json").absolute())]
        command = [sys.executable, "-m", "benchmarks.peers", *arguments.split(), *output]
        subprocess.run(command, check=True, cwd=HERE.parents[1])


@app.command()
def summarise(folder: Annotated[Path, typer.Option(help="Folder of the maps vit.json and bert.json.")] = OUT) -> None:
    """Print and write the summary."""
    vit, bert = (load_map(folder / f"{name}.json") for name in NAMES)
    rows = ratios(vit)
    exact = ratios(vit, lambda cell: is_exact(cell.plan))
    summary = of_maps(rows, exact, ratios(bert, lambda cell: False))
    summary |= of_peers(folder / "peers.json", folder / "stream.json")
    for ratio in rows:
        print(f"B={ratio.batch} {ratio.mbps:g} Mbps: {ratio.median:.2f}  {ratio.new}  over  {ratio.old}")
    for name, value in summary.items():
        print(f"{name} {value:.3f}")
    OUT.mkdir(exist_ok=True)
    write_json(OUT / "summary.json", summary)


if __name__ == "__main__":
    run(app, "ways")
