"""Measure what compressing the exchange costs in accuracy, by variant, at equal bytes.

    python -m experiments.variants.run [--cache DIR] [--models minilm,...] [--only NAME,...]

All parts of a batch run one after another in one thread, through the adapters' blocks, with one copy of the weights.
schemes.py encodes and decodes what crosses the link. Weights and data come from experiments.assets.run. Each cell
becomes a line of experiments/results/variants/cells.jsonl as soon as it is measured, and a second run measures only the
missing ones. summary.json, table.md and pareto.png are made from all lines.

The loss of an item is the KL divergence from the uncompressed model for classes and next tokens, and 1 - cosine for
embeddings. CR divides the bytes of the rows in fp32 by the bytes that cross. Intervals are 90 %, from a bootstrap over
items."""

import argparse
import platform
import time
from pathlib import Path

import msgspec
import torch
import transformers

from experiments.lib.cache import cache_folder
from experiments.lib.places import RESULTS
from experiments.variants.candidates import CORE, EVERYTHING_ON, candidates
from experiments.variants.forward import Subject, output_of
from experiments.variants.measure import measure, sensitivity, spread_budget
from experiments.variants.report import plot, table
from experiments.variants.schemes import Scheme
from experiments.variants.subjects import SEED, subjects
from prism.nn.families import adapter_for
from prism.partition import segments_for_rate

OUT = RESULTS / "variants"


def main() -> None:
    args = parsed()
    torch.manual_seed(SEED)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "cells.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    done = {(r["model"], r["devices"], r["variant"]) for r in map(msgspec.json.decode, lines)}
    for subject in subjects(args.cache, [m for m in args.models.split(",") if m]):
        with torch.inference_mode():
            reference = [output_of(subject, subject.model(**kwargs)) for kwargs in subject.batches]
        for parts in map(int, args.devices.split(",")):
            for name, scheme in chosen(subject, parts, args.only, args.core).items():
                if (subject.name, parts, name) in done:
                    continue
                if name.endswith("L per block"):
                    scheme = per_block(subject, parts, scheme)
                began = time.monotonic()
                row = measure(subject, reference, scheme, parts)
                row = {"model": subject.name, "devices": parts, "variant": name, **row}
                with path.open("ab") as file:
                    file.write(msgspec.json.encode(row) + b"\n")
                print(
                    f"{subject.name:14s} P={parts} {name:44s} CR {row['cr'] or 0:7.2f} loss {row['loss']:.5f} "
                    f"[{row['ci90'][0]:.5f} {row['ci90'][1]:.5f}] {time.monotonic() - began:.1f} s",
                    flush=True,
                )
    summarise(path, args.out)


def parsed() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=cache_folder(), help="folder of models and data")
    parser.add_argument("--models", default="", help="some of the models, separated by commas")
    parser.add_argument("--only", default="", help="variants whose names contain one of these")
    parser.add_argument("--core", action="store_true", help="the variants of candidates.CORE alone")
    parser.add_argument("--devices", default="2,3,4", help="numbers of devices")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of results")
    return parser.parse_args()


def chosen(subject: Subject, parts: int, only: str, core: bool) -> dict[str, Scheme]:
    """Select the variants of a subject and a number of devices."""
    spec = adapter_for(subject.model).spec
    schemes = candidates(plain_segments(subject, parts), spec.family)
    everything = parts == 2 and subject.name in EVERYTHING_ON and not core
    return {
        name: scheme
        for name, scheme in schemes.items()
        if (everything or name in CORE) and (not only or any(part in name for part in only.split(",")))
    }


def plain_segments(subject: Subject, parts: int) -> int:
    """L of plain means at CR 9.9."""
    return segments_for_rate(tokens_of(subject), parts, 9.9)


def tokens_of(subject: Subject) -> int:
    """Count the tokens of a subject's items."""
    spec = adapter_for(subject.model).spec
    return spec.tokens if spec.family == "vit" else 256


def per_block(subject: Subject, parts: int, scheme: Scheme) -> Scheme:
    """Spread the segments of plain means over the blocks by what each block loses on calibration items."""
    plain = plain_segments(subject, parts)
    budget = spread_budget(sensitivity(subject, parts, plain), plain, tokens_of(subject) // parts)
    return Scheme(quantiser=scheme.quantiser, segments=budget)


def summarise(path: Path, out: Path) -> None:
    """Write summary.json, table.md and pareto.png from all lines; of a cell measured twice, the last line counts."""
    lines = map(msgspec.json.decode, path.read_text().splitlines())
    rows = list({(r["model"], r["devices"], r["variant"]): r for r in lines}.values())
    versions = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }
    summary = {"command": "python -m experiments.variants.run", "seed": SEED, "versions": versions, "cells": rows}
    (out / "summary.json").write_bytes(msgspec.json.format(msgspec.json.encode(summary), indent=1) + b"\n")
    (out / "table.md").write_text(table(rows))
    plot(rows, out / "pareto.png")


if __name__ == "__main__":
    main()
