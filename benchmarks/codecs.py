"""What a codec costs beside the block that it serves, and below which rate its bytes pay for that.

Two devices, full exchange: a rank encodes its half of the rows and decodes the other half, in each block. Codecs and
the block itself (projections of own and received rows, attention, MLP) run one after another in turn, so that
whatever else the machine does hits all alike; figures are medians over rounds.

    python benchmarks/codecs.py --model vit_small_patch16_224 --batch 1

Pays below: the rate at which the time that the codec takes is the time that it saves on the medium, against fp32 and
against int4; both ranks' rows cross a shared access point twice.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial

import timm
import torch
from torch import Tensor
from torch.nn import functional as F

from prism.codecs import WIRES, Wire, payload_bytes
from prism.nn.codecs import Stream, stream_of
from prism.nn.families import adapter_for
from prism.nn.families.base import Block

CROSSINGS = 2 * 2  # messages of a block, times stations' ways over the air


def block_pass(block: Block, own: Tensor, received: Tensor) -> Tensor:
    query, key, value = block.project(own)
    key_z, value_z = block.project_kv(received)
    keys, values = torch.cat([key, key_z], 2), torch.cat([value, value_z], 2)
    mixed = F.scaled_dot_product_attention(query, keys, values, scale=block.scale)
    return block.finish(own, mixed.transpose(1, 2).flatten(2))


def codec_pass(wire: Wire, own: Tensor, sender: Stream, receiver: Stream) -> Tensor:
    return receiver.decode(sender.encode(own), own.dtype)


def seconds(call: Callable[[], Tensor], calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - began) / calls


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    adapter = adapter_for(timm.create_model(args.model, pretrained=False).eval())
    block, spec = adapter.blocks()[0], adapter.spec
    shape = (args.batch, spec.tokens // 2, spec.width)
    own, received = torch.randn(shape), torch.randn(shape)
    calls: dict[str, Callable[[], Tensor]] = {"block": partial(block_pass, block, own, received)}
    for wire in WIRES:
        calls[wire] = partial(codec_pass, wire, own, stream_of(wire, shape), stream_of(wire, shape))
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(args.rounds + 2):
        for name, call in calls.items():
            found[name].append(seconds(call, 2 if name == "block" else 8))
    median = {name: statistics.median(each[2:]) for name, each in found.items()}
    share = {
        name: statistics.median(a / b for a, b in zip(found[name][2:], found["block"][2:], strict=True))
        for name in calls
    }
    values = own.numel()

    def pays(wire: Wire, against: Wire) -> float | None:
        longer = median[wire] - median[against]
        fewer = payload_bytes(against, values) - payload_bytes(wire, values)
        return 8 * CROSSINGS * fewer / longer / 1e6 if longer > 0 and fewer > 0 else None

    print(f"{args.model}, batch {args.batch}, {args.threads} thread(s): a block takes {1e3 * median['block']:.2f} ms")
    print(
        f"{'wire':8s} {'bytes':>9s} {'CR':>6s} {'ms':>7s} {'of a block':>10s} "
        f"{'pays below, Mbps: fp32':>23s} {'int4':>7s}"
    )
    rows = []
    for wire in WIRES:
        size = payload_bytes(wire, values)
        row = {
            "wire": wire,
            "bytes": size,
            "cr": 4 * values / size,
            "ms": 1e3 * median[wire],
            "of_a_block": share[wire],
            "pays_below_mbps": {"fp32": pays(wire, "fp32"), "int4": pays(wire, "int4")},
        }
        rows.append(row)
        limits = " ".join(
            f"{'-' if x is None else f'{x:.0f}':>{w}s}"
            for x, w in zip(row["pays_below_mbps"].values(), (23, 7), strict=True)
        )
        print(f"{wire:8s} {size:9d} {row['cr']:6.2f} {row['ms']:7.3f} {100 * row['of_a_block']:9.1f}% {limits}")
    print(json.dumps({"model": args.model, "batch": args.batch, "block_ms": 1e3 * median["block"], "codecs": rows}))


if __name__ == "__main__":
    main()
