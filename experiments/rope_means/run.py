"""Compare what a part of a Llama may send: means of its rows, or means of its keys and values.

    python -m experiments.rope_means.run [--cache DIR] [--texts 20]

The model is SmolLM2-135M, the data are the first test texts of BBC News that have 256 tokens, both from
experiments.assets.run. All parts run in one process. A row has D = 576 values. Its keys and values have 2 * 3 * 64 =
384 together, as three key heads serve nine query heads. So at equal bytes they may have 1.5 times the segments, rounded
down. Three schemes are compared:

    rows        means of rows; the receiver projects them and rotates keys to the segment's centre, as Prism does
    keys_turned means of rotated keys, and of values
    keys_centre means of keys before their rotation, then rotated to the centre of the segment, and of values

A mean of c tokens counts c times in each. KL is from the uncompressed model's next-token distribution to the compressed
one's, averaged over all positions. Perplexity is given as a ratio to the uncompressed model's. Part 0 of a causal model
is exact: its positions count with a loss of zero, and no logits are computed for them. Intervals are 90 %, from a
bootstrap over texts, paired where two schemes are compared. experiments/results/rope_means/summary.json is rewritten
after each number of parts and rate."""

import argparse
import itertools
import json
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import rotate_half

from experiments.lib.cache import cache_folder
from experiments.lib.places import RESULTS
from prism.nn.distribute import _with_stack
from prism.nn.families import adapter_for
from prism.nn.families.base import Block, split_heads
from prism.nn.segment_means import attention_bias, segment_counts, segment_means, segment_positions
from prism.nn.zoo import load_model
from prism.partition import Partition, segments_for_rate
from prism.trace.quantiles import quantiles

OUT = RESULTS / "rope_means"
TOKENS, BATCH, SEED = 256, 4, 0
RATES, PARTS = (9.9, 40.0, 4.0), (2, 4)


def logits(model: Any, ids: Tensor, scheme: str, parts: int, segments: int) -> Tensor:
    """Compute the logits at the positions after part 0, where each part sees `segments` means of every earlier part."""
    adapter = adapter_for(model)
    partition = Partition.even(ids.shape[1], parts)
    bounds = [partition.bounds(p) for p in range(parts)]
    turn: Any = adapter.rotation
    own_at = turn(torch.arange(ids.shape[1])[None].float())
    no_turn = turn(torch.zeros(1, ids.shape[1]))
    centres = [turn(segment_positions(None, *each, segments)) for each in bounds]
    counts = [segment_counts(None, *each, segments) for each in bounds]

    def sent(block: Block, x_BND: Tensor, keys_values: tuple[Tensor, Tensor], p: int) -> tuple[Tensor, Tensor]:
        part = slice(*bounds[p])
        if scheme == "rows":
            return block.project_kv(segment_means(x_BND[:, part], segments), centres[p])
        if scheme == "keys_turned":
            key, value = (_means(each[:, :, part], segments) for each in keys_values)
            return key, value
        key, value = (_means(each, segments) for each in block.project_kv(x_BND[:, part], no_turn[:, :, :, part]))
        cos, sin = centres[p]
        return key * cos + rotate_half(key) * sin, value

    def stack(x_BND: Tensor, *_: Any, **__: Any) -> Tensor:
        for block in adapter.blocks():
            query, key, value = block.project(x_BND, own_at)
            received = [sent(block, x_BND, (key, value), p) for p in range(parts - 1)]
            out = []
            for p, (start, stop) in enumerate(bounds):
                own = slice(start, stop)
                bias = attention_bias(counts[:p], stop - start, None, causal=True, dtype=x_BND.dtype)
                keys = torch.cat([key[:, :, own], *(k for k, _ in received[:p])], 2)
                values = torch.cat([value[:, :, own], *(v for _, v in received[:p])], 2)
                mixed = F.scaled_dot_product_attention(
                    query[:, :, own], keys, values, attn_mask=bias, scale=block.scale
                )
                out.append(block.finish(x_BND[:, own], mixed.transpose(1, 2).flatten(2)))
            x_BND = torch.cat(out, 1)
        return x_BND

    keep = ids.shape[1] - partition.sizes[0]
    return _with_stack(model, adapter.stack_path, stack)(input_ids=ids, use_cache=False, logits_to_keep=keep).logits


def _means(x_BHnC: Tensor, segments: int) -> Tensor:
    return split_heads(segment_means(x_BHnC.transpose(1, 2).flatten(2), segments), x_BHnC.shape[1])


def losses(model: Any, batches: list[Tensor], reference: list[Tensor], **how: Any) -> tuple[np.ndarray, np.ndarray]:
    """Compute, per text, the KL divergence and how much longer a token's code gets, in nats."""
    divergence, excess = [], []
    for ids, whole in zip(batches, reference, strict=True):
        ours = logits(model, ids, **how).log_softmax(-1)
        theirs = whole[:, -ours.shape[1] :].float()
        divergence.append((theirs.exp() * (theirs - ours)).sum((1, 2)) / TOKENS)
        excess.append((_code(ours, ids) - _code(theirs, ids)).sum(1) / (TOKENS - 1))
    return torch.cat(divergence).double().numpy(), torch.cat(excess).double().numpy()


def _code(log_p: Tensor, ids: Tensor) -> Tensor:
    """Compute the nats of each next token, at the last positions."""
    return -log_p[:, :-1].gather(2, ids[:, 1 - log_p.shape[1] :, None])[..., 0]


def interval(values: np.ndarray) -> list[float]:
    """Compute the 90 % interval of a mean by bootstrap."""
    rng = np.random.default_rng(SEED)
    means = values[rng.integers(0, len(values), (2000, len(values)))].mean(1)
    return list(quantiles(means, 5, 95))


def read_texts(cache: Path, folder: Path, wanted: int) -> list[Tensor]:
    """Tokenise the first texts that have TOKENS tokens, in batches."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    lines = (cache / "data" / "bbc" / "test.jsonl").read_text().splitlines()
    ids = [tokenizer(json.loads(line)["text"]).input_ids[:TOKENS] for line in lines[: 4 * wanted]]
    whole = torch.tensor([each for each in ids if len(each) == TOKENS][:wanted])
    return list(whole.split(BATCH))


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=cache_folder(), help="folder of models and data")
    parser.add_argument("--texts", type=int, default=20, help="number of texts")
    options = parser.parse_args()
    folder = options.cache / "models" / "smollm2-135m"
    model = load_model(str(folder)).model
    spec = adapter_for(model).spec
    batches = read_texts(options.cache, folder, options.texts)
    reference = [model(input_ids=ids, use_cache=False).logits.log_softmax(-1).half() for ids in batches]
    code = torch.cat([_code(each.float(), ids).mean(1) for each, ids in zip(reference, batches, strict=True)])
    cells: list[dict[str, Any]] = []
    summary = {
        "command": f"python -m experiments.rope_means.run --texts {options.texts}",
        "model": "smollm2-135m",
        "data": "bbc test",
        "texts": sum(map(len, batches)),
        "tokens": TOKENS,
        "perplexity": math.exp(code.mean()),
        "cells": cells,
        "versions": {"torch": str(torch.__version__), "transformers": transformers.__version__},
    }
    OUT.mkdir(parents=True, exist_ok=True)
    for rate, parts in itertools.product(RATES, PARTS):
        cells += compare(model, spec, batches, reference, parts, rate)
        (OUT / "summary.json").write_bytes(msgspec.json.format(msgspec.json.encode(summary), indent=1) + b"\n")


def compare(
    model: Any, spec: Any, batches: list[Tensor], reference: list[Tensor], parts: int, rate: float
) -> list[dict[str, Any]]:
    """Evaluate rows at the segments of `rate`, and keys and values at as many segments and at as many bytes."""
    segments = segments_for_rate(TOKENS, parts, rate)
    values = {"rows": spec.width, "keys_turned": 2 * spec.kv_width, "keys_centre": 2 * spec.kv_width}
    more = segments * spec.width // (2 * spec.kv_width)
    runs = [("rows", segments, ""), ("keys_turned", segments, "segments")]
    runs += [(name, more, "bytes") for name in ("keys_turned", "keys_centre")]
    cells, rows_kl = [], np.zeros(0)
    for name, count, equal in runs:
        kl, excess = losses(model, batches, reference, scheme=name, parts=parts, segments=count)
        rows_kl = kl if name == "rows" else rows_kl
        cells.append(
            {
                "devices": parts,
                "rate": rate,
                "scheme": name,
                "equal": equal,
                "segments": count,
                "bytes_per_part": 4 * count * values[name],
                "cr_bytes": TOKENS * spec.width / (parts * count * values[name]),
                "kl_mean": float(kl.mean()),
                "kl_ci90": interval(kl),
                "perplexity_ratio": math.exp(excess.mean()),
                "perplexity_ratio_ci90": [math.exp(each) for each in interval(excess)],
                "kl_over_rows": float(kl.mean() / rows_kl.mean()),
                "kl_minus_rows_ci90": interval(kl - rows_kl),
            }
        )
        print(json.dumps(cells[-1]), flush=True)
    return cells


if __name__ == "__main__":
    main()
