"""Measure accuracy over compression, on real weights and labels.

    python -m experiments.accuracy.run

Needs the cache that `python -m experiments.assets.run --train` fills. Each model runs through the code of `prism-hw
evaluate`, for 2, 3 and 4 devices: plain means from the largest L to 1, every codec with full exchange, delta codecs
with fewer rows, and both with the first token alone. A run that was killed continues. The results are
experiments/results/accuracy/summary.json, one accuracy table per model beside it, and accuracy.png."""

import argparse
import json
from pathlib import Path
from typing import Any

import msgspec
from rich.progress import Progress

from experiments.lib.cache import cache_folder
from experiments.lib.places import RESULTS as ALL_RESULTS
from hw.evaluate.datasets import Columns
from hw.evaluate.page import accuracy_page as page
from hw.evaluate.run import EvalConfig, evaluate
from prism.codecs import Wire
from prism.decide.accuracy import AccuracyTable, PlanAccuracy
from prism.partition import split_sizes
from prism.plan import Mode

RESULTS = ALL_RESULTS / "accuracy"
CACHE = cache_folder()
DEVICES = (2, 3, 4)
CODECS: tuple[Wire, ...] = ("fp32", "int8", "int4", "int2", "delta3", "delta2", "delta1")
FEWER: tuple[Wire, ...] = ("delta3", "delta1")  # with half and a quarter of the rows
PUBLISHED = (9.9, 4.95, 3.3)
RATES = (40.0, 20.0, *PUBLISHED, 2.0)  # compression rates N / (L P) of plain means


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """Pair a model with the data that judge it. tokens: of a text, or of an image."""

    model: str
    data: str
    tokens: int
    limit: int
    batch: int = 16
    columns: Columns = Columns()
    text: bool = True


SUBJECTS = (
    Subject(model="dinov2-fashion", data="fashion-mnist/test", tokens=65, limit=200, batch=50, text=False),
    Subject(model="minilm-bbc", data="bbc/test.jsonl", tokens=256, limit=48),
    Subject(model="minilm", data="lee/pairs.jsonl", tokens=128, limit=1225, columns=Columns(text="a", pair="b")),
    Subject(model="smollm2-135m", data="bbc/test.jsonl", tokens=256, limit=4, batch=4),
    Subject(model="gpt2-brown", data="brown/test.jsonl", tokens=256, limit=24),
)


def config(
    subject: Subject, devices: int, wires: tuple[Wire, ...], modes: tuple[Mode, ...], segments: tuple[int, ...]
) -> EvalConfig:
    """Make the configuration of one evaluation of a subject."""
    return EvalConfig(
        model=str(CACHE / "models" / subject.model),
        data=str(CACHE / "data" / subject.data),
        columns=subject.columns,
        tokens=subject.tokens if subject.text else None,
        limit=subject.limit,
        batch=subject.batch,
        devices=(devices,),
        wires=wires,
        modes=modes,
        segments=segments,
    )


def configs(subject: Subject) -> list[EvalConfig]:
    """List a subject's configurations.

    Codecs run with all rows, means at every rate, and codecs with half and a quarter of the rows. Means at the
    published rates and codecs with fewer rows run again with the first token alone."""
    found, alone = [], []
    for devices in DEVICES:
        least = split_sizes(subject.tokens, devices)[-1]
        rows = {rate: max(1, min(round(subject.tokens / rate / devices), least)) for rate in RATES}
        fewer = tuple(sorted({max(1, least // 2), max(1, least // 4)}))
        published = tuple(sorted({max(2, rows[rate]) for rate in PUBLISHED}))
        found += [
            config(subject, devices, CODECS, (Mode.FULL,), ()),
            config(subject, devices, ("fp32",), (Mode.SEGMENT_MEANS,), tuple(sorted({1, *rows.values()}))),
            config(subject, devices, FEWER, (Mode.SEGMENT_MEANS,), fewer),
        ]
        alone += [
            config(subject, devices, ("fp32",), (Mode.FIRST_AND_MEANS,), published),
            config(subject, devices, FEWER, (Mode.FIRST_AND_MEANS,), fewer),
        ]
    return found + alone


def run(subject: Subject, folder: Path) -> AccuracyTable:
    """Evaluate all of a subject's plans; return one table, in which local stands once."""
    todo = configs(subject)
    tables = []
    with Progress() as bar:
        task = bar.add_task(subject.model, total=len(todo))
        for number, each in enumerate(todo):
            found = evaluate(each, folder / subject.model / str(number), command(), lambda event: None)
            tables.append(found.table)
            bar.advance(task)
    rows = [tables[0].rows[0], *(row for table in tables for row in table.rows if row.plan.ranks > 1)]
    return msgspec.structs.replace(
        tables[0],
        model=subject.model,
        rows=tuple(rows),
        data=subject.data,
        config={"columns": msgspec.to_builtins(subject.columns), "limit": subject.limit, "batch": subject.batch},
    )


def command() -> str:
    """Return the command that tables record."""
    return "python -m experiments.accuracy.run"


def entry(table: AccuracyTable, row: PlanAccuracy) -> dict[str, Any]:
    """Make a line of summary.json."""
    return {
        "model": table.model,
        "data": table.data,
        "n": table.n,
        "devices": row.plan.ranks,
        "segments": row.plan.segments,
        "cr": round(row.cr, 3),
        "variant": row.plan.mode.value,
        "wire": row.plan.wire,
        "metric": table.metric,
        "value": row.value,
        "loss": row.loss,
        "ci90": row.ci90,
        "agreement": row.agreement,
        "kl_mean": row.kl_mean,
        "cosine": row.logit_cosine,
    }


def lost(row: PlanAccuracy) -> float:
    """Return the loss that the goals are about: KL to the uncompressed model, or 1 - cosine for embeddings.

    KL resolves what a metric on few samples cannot."""
    return row.kl_mean if row.kl_mean is not None else 1 - row.agreement


def goals(table: AccuracyTable) -> list[dict[str, Any]]:
    """Find, for each number of devices, the best plan at CR 9.9 or more and at CR 40 or more, against plain means at
    9.9."""
    found = []
    for devices in DEVICES:
        rows = [row for row in table.rows if row.plan.ranks == devices]
        plain = [row for row in rows if row.plan.mode is Mode.SEGMENT_MEANS and row.plan.wire == "fp32"]
        means = min(plain, key=lambda row: abs(row.cr - 9.9))
        line: dict[str, Any] = {
            "model": table.model,
            "devices": devices,
            "plain_cr": round(means.cr, 2),
            "plain_loss": lost(means),
        }
        for name, least in (("cr9.9", 9.85), ("cr40", 40.0)):
            able = [row for row in rows if row.cr >= least and row is not means]
            best = min(able, key=lost) if able else None
            line[name] = (
                None
                if best is None
                else {
                    "mode": best.plan.mode.value,
                    "segments": best.plan.segments,
                    "wire": best.plan.wire,
                    "cr": round(best.cr, 2),
                    "loss": lost(best),
                    "share_of_plain": lost(best) / lost(means),
                    "metric_loss": best.loss,
                    "agreement": best.agreement,
                }
            )
        found.append(line)
    return found


KINDS: tuple[tuple[Mode, tuple[Wire, ...], str, str, str], ...] = (
    (Mode.SEGMENT_MEANS, ("fp32",), "plain means", "tab:orange", "o"),
    (Mode.FULL, ("fp32", "int8", "int4", "int2"), "everything, fp32 to int2", "tab:blue", "s"),
    (Mode.FULL, ("delta3", "delta2", "delta1"), "everything, delta codecs", "tab:green", "^"),
    (Mode.SEGMENT_MEANS, FEWER, "half, quarter of the rows, delta", "tab:red", "v"),
    (Mode.FIRST_AND_MEANS, FEWER, "the same, first token alone", "tab:purple", "D"),
)


def plot(tables: list[AccuracyTable], path: Path) -> None:
    """Plot the loss above and the agreement with its interval below, a column per model, for two devices."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, grid = plt.subplots(
        2, len(tables), figsize=(3.2 * len(tables), 6.4), layout="constrained", sharex=True, squeeze=False
    )
    for table, (above, below) in zip(tables, grid.T, strict=True):
        for mode, wires, name, colour, marker in KINDS:
            rows = sorted(
                (r for r in table.rows if (r.plan.ranks, r.plan.mode) == (2, mode) and r.plan.wire in wires),
                key=lambda r: r.cr,
            )
            x, style = [r.cr for r in rows], {"label": name, "color": colour, "marker": marker, "ms": 4, "lw": 1}
            above.plot(x, [lost(r) for r in rows], **style)
            bars = [
                [r.agreement - r.agreement_ci90[0] for r in rows],
                [r.agreement_ci90[1] - r.agreement for r in rows],
            ]
            below.errorbar(x, [r.agreement for r in rows], yerr=bars, capsize=2, **style)
        above.set(
            title=f"{table.model}, n = {table.n}",
            xscale="log",
            yscale="log",
            ylabel="1 - cosine" if table.metric == "pearson" else "KL",
        )
        below.set(xlabel="CR (bytes)", ylabel="cosine" if table.metric == "pearson" else "agreement")
        for axes in (above, below):
            axes.spines[["top", "right"]].set_visible(False)
    grid[0, 0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", default=",".join(each.model for each in SUBJECTS), help="some of the models, separated by commas"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("out/accuracy"), help="raw results, from which a killed run continues"
    )
    options = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for subject in SUBJECTS:
        if subject.model in options.models.split(","):
            table = run(subject, options.output)
            table.save(RESULTS / f"{subject.model}.json")
            (options.output / f"{subject.model}.html").write_text(page(table, ()), encoding="utf-8")
    tables = [
        msgspec.json.decode((RESULTS / f"{each.model}.json").read_bytes(), type=AccuracyTable)
        for each in SUBJECTS
        if (RESULTS / f"{each.model}.json").exists()
    ]
    lines = [entry(table, row) for table in tables for row in table.rows]
    (RESULTS / "summary.json").write_text("[\n" + ",\n".join(json.dumps(line) for line in lines) + "\n]\n")
    met = [line for table in tables for line in goals(table)]
    (RESULTS / "goals.json").write_text(json.dumps(met, indent=1) + "\n")
    plot(tables, RESULTS / "accuracy.png")
    for line in met:
        print(json.dumps(line))


if __name__ == "__main__":
    main()
