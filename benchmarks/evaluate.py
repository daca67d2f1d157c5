"""What `prism-hw evaluate` costs over the plain model, and what its parts cost in memory.

Time: the local mode (reading, passes, scoring, writing, figures) against a loop that reads the same images and runs the
same batches, in one process, one after the other in turn; the figure is the median of the paired ratios. Loading the
weights and their hash, once a run, is left out on both sides. Memory: peaks of two processes, one that evaluates the
model alone and one that evaluates a plan of four parts as well: were weights copied, the second would have three times
the weights on top.

    python benchmarks/evaluate.py --model vit_base_patch16_224 --pairs 9
"""

import argparse
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path

import msgspec
import torch
import torch.multiprocessing as mp

from hw.evaluate import run as evaluation
from hw.evaluate.config import EvalConfig
from hw.evaluate.run import evaluate
from hw.inputs.samples import SAMPLE_IMAGES, ImageReader, Sample, image_paths
from prism.nn.zoo import Loaded, load_model
from prism.plan import Mode

PARTS = 4


def local(args: argparse.Namespace) -> EvalConfig:
    return EvalConfig(
        model=args.model, weights="random", modes=(Mode.LOCAL,), limit=args.images, batch=args.batch, threads=1
    )


@torch.no_grad()
def plain(loaded: Loaded, args: argparse.Namespace) -> None:
    reader, paths = ImageReader(loaded), image_paths(SAMPLE_IMAGES)[: args.images]
    for start in range(0, len(paths), args.batch):
        chosen = paths[start : start + args.batch]
        loaded.model(**reader.collate([Sample(name="", label=None, content=reader.open(path)) for path in chosen]))


def ratios(args: argparse.Namespace) -> list[float]:
    torch.set_num_threads(1)
    loaded = load_model(args.model, "random")
    hashed = evaluation.fingerprint(loaded.model)
    evaluation.load_model = lambda *_: loaded
    evaluation.fingerprint = lambda _: hashed

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            evaluate(local(args), Path(folder), "benchmarks/evaluate.py", lambda _: None)

    def theirs() -> None:
        plain(loaded, args)

    found = []
    for pair in range(args.pairs + 1):
        taken = {}
        for step in (ours, theirs) if pair % 2 else (theirs, ours):
            began = time.perf_counter()
            step()
            taken[step] = time.perf_counter() - began
        found.append(taken[ours] / taken[theirs])
    return found[1:]  # the first warms up


def peak(args: argparse.Namespace, parts: int, results: mp.Queue) -> None:
    """Bytes of the whole process, with `parts` parts of one plan or the model alone."""
    config = local(args)
    if parts > 1:
        config = msgspec.structs.replace(config, modes=(Mode.SEGMENT_MEANS,), devices=(parts,), segments=(10,))
    with tempfile.TemporaryDirectory() as folder:
        table = evaluate(config, Path(folder), "benchmarks/evaluate.py", lambda _: None).table
    results.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, len(table.rows)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=9)
    args = parser.parse_args()
    context = mp.get_context("spawn")
    peaks = {}
    for parts in (1, PARTS):
        results: mp.Queue = context.Queue()
        process = context.Process(target=peak, args=(args, parts, results))
        process.start()
        peaks[parts], plans = results.get()
        process.join()
        assert plans == (1 if parts == 1 else 2), "the plan of four parts did not run"
    model = load_model(args.model, "random").model
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    found = ratios(args)
    quartiles = statistics.quantiles(found, n=4)
    print(
        json.dumps(
            {
                "model": args.model,
                "images": args.images,
                "batch": args.batch,
                "pairs": args.pairs,
                "ratio_median": round(statistics.median(found), 4),
                "ratio_quartiles": [round(quartiles[0], 4), round(quartiles[2], 4)],
                "peak_mib": {parts: round(value / 2**20) for parts, value in peaks.items()},
                "weights_mib": round(weights / 2**20),
                "extra_over_weights": round((peaks[PARTS] - peaks[1]) / weights, 3),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
