"""What the framework costs over a bare hand-written loop with the same exchanges, in two real processes.

Both forward passes run in the same two processes over the same gloo group, one after the other in
turn, so that whatever else the machine does hits both alike; the figure is the median of the paired
ratios. Also: tensors copied per block (counted by the profiler), and a rank's peak memory against a
process that runs the model alone.

With --against unrecorded the other side is the framework itself with its spans off: what profiling costs.

    python benchmarks/overhead.py --model vit_base_patch16_224 --pairs 30
    python benchmarks/overhead.py --against unrecorded --pairs 30
"""

import argparse
import json
import os
import resource
import statistics
import time
from collections import Counter

import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from hw.comm.group import process_group
from hw.comm.interfaces import free_port
from hw.comm.recorder import SpanRecorder
from hw.comm.rendezvous import open_store
from hw.comm.staging import HostStager
from prism.nn.distribute import distribute
from prism.plan import ExecutionPlan, Mode

BARE = 2  # tag of the bare loop's messages: the framework's next receives are posted already
COPIES = ("aten::copy_", "aten::cat", "aten::clone", "aten::contiguous", "aten::_to_copy")


def bare_pass(model: torch.nn.Module, x: Tensor | None, segments: int | None, batch: int, tokens: int) -> Tensor | None:
    """A two-rank pass with nothing around it: rank 0 has the first half of the tokens."""
    rank, width = dist.get_rank(), model.embed_dim
    sizes = (tokens - tokens // 2, tokens // 2)
    if rank == 0:
        x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x))))
        rest = x[:, sizes[0] :].contiguous()
        scatter = dist.isend(rest, 1, tag=BARE)
        x = x[:, : sizes[0]]
    else:
        x = torch.empty(batch, sizes[1], width)
        dist.recv(x, 0, tag=BARE)
    rows = segments or sizes[1 - rank]
    z = torch.empty(batch, rows, width)
    counts = torch.tensor([float(c) for c in _sizes(sizes[1 - rank], rows)])
    bias = None
    if segments:
        bias = torch.cat([torch.zeros(sizes[rank]), counts.log()])[None, None, None]
    for block in model.blocks:
        attn = block.attn
        mine = means(x, segments).contiguous() if segments else x.contiguous()
        send, receive = dist.isend(mine, 1 - rank, tag=BARE), dist.irecv(z, 1 - rank, tag=BARE)
        q, k, v = attn.qkv(block.norm1(x)).view(batch, -1, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)
        receive.wait()
        send.wait()
        both = F.linear(block.norm1(z), attn.qkv.weight[width:], attn.qkv.bias[width:])
        kz, vz = both.view(batch, rows, 2, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, torch.cat([k, kz], 2), torch.cat([v, vz], 2), attn_mask=bias)
        x = x + attn.proj(y.transpose(1, 2).reshape(batch, -1, width))
        x = x + block.mlp(block.norm2(x))
    if rank == 0:
        scatter.wait()
        return model.forward_head(model.norm(x))
    return None


def _sizes(length: int, parts: int) -> list[int]:
    return [length // parts + (1 if i < length % parts else 0) for i in range(parts)]


def means(x: Tensor, segments: int) -> Tensor:
    size, extra = divmod(x.shape[1], segments)
    cut = extra * (size + 1)
    tail = x[:, cut:].unflatten(1, (segments - extra, size)).mean(2)
    return torch.cat([x[:, :cut].unflatten(1, (extra, size + 1)).mean(2), tail], 1) if extra else tail


def rank_main(rank: int, args: argparse.Namespace, port: int, results: mp.Queue) -> None:
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank % os.cpu_count()]})
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    store = open_store("127.0.0.1", port, rank == 0, 60)
    with process_group(store, rank, 2, interface="lo", timeout_s=60) as control:
        torch.manual_seed(0)
        model = timm.create_model(args.model, pretrained=False).eval()
        x = torch.randn(args.batch, *model.pretrained_cfg["input_size"])
        tokens = model.patch_embed.num_patches + model.num_prefix_tokens
        mode = Mode.SEGMENT_MEANS if args.segments else Mode.FULL
        plan = ExecutionPlan(mode=mode, devices=2, segments=args.segments)
        recorder = SpanRecorder(rank)
        exchange = control.exchange(HostStager(), recorder)
        framework = distribute(model, plan, exchange, recorder)
        unrecorded = distribute(model, plan, exchange)

        def prism() -> Tensor | None:
            return framework(x) if rank == 0 else framework.follow()

        def bare() -> Tensor | None:
            if args.against == "unrecorded":
                return unrecorded(x) if rank == 0 else unrecorded.follow()
            return bare_pass(model, x if rank == 0 else None, args.segments, args.batch, tokens)

        difference = None
        if rank == 0:
            ours, theirs = prism(), bare()
            difference = float((ours - theirs).abs().max() / theirs.abs().max())
        else:
            prism()
            bare()
        ratios = []
        for pair in range(args.pairs):
            taken = {}
            for step in (prism, bare) if pair % 2 else (bare, prism):
                dist.barrier()
                began = time.perf_counter()
                step()
                taken[step] = time.perf_counter() - began
            ratios.append(taken[prism] / taken[bare])
        counts = {}
        for name, step in (("prism", prism), (args.against, bare)):
            with profile(activities=[ProfilerActivity.CPU]) as profiler:
                step()
            found = Counter(event.name for event in profiler.events() if event.name in COPIES)
            counts[name] = dict(found)
        results.put((rank, ratios, difference, counts, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))


def local_main(args: argparse.Namespace, results: mp.Queue) -> None:
    """The model alone, for its peak memory: the same imports, the same input."""
    torch.set_num_threads(1)
    with torch.no_grad():
        model = timm.create_model(args.model, pretrained=False).eval()
        for _ in range(3):
            model(torch.randn(args.batch, *model.pretrained_cfg["input_size"]))
    results.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--segments", type=int, default=None, help="segment means; without it full exchange")
    parser.add_argument("--against", choices=("bare", "unrecorded"), default="bare")
    parser.add_argument("--pairs", type=int, default=30)
    args = parser.parse_args()
    context = mp.get_context("spawn")
    results: mp.Queue = context.Queue()
    port = free_port("127.0.0.1")
    ranks = [context.Process(target=rank_main, args=(rank, args, port, results)) for rank in range(2)]
    for process in ranks:
        process.start()
    found = sorted((results.get() for _ in ranks), key=lambda row: row[0])
    for process in ranks:
        process.join()
    alone = context.Process(target=local_main, args=(args, results))
    alone.start()
    local_peak = results.get()
    alone.join()
    ratios = found[0][1]
    quartiles = statistics.quantiles(ratios, n=4)
    blocks = len(timm.create_model(args.model, pretrained=False).blocks)
    print(
        json.dumps(
            {
                "model": args.model,
                "against": args.against,
                "batch": args.batch,
                "segments": args.segments,
                "pairs": args.pairs,
                "ratio_median": round(statistics.median(ratios), 4),
                "ratio_quartiles": [round(quartiles[0], 4), round(quartiles[2], 4)],
                "relative_difference": found[0][2],
                "copies_per_pass": {row[0]: row[3] for row in found},
                "blocks": blocks,
                "peak_memory_over_local": [round(row[4] / local_peak, 3) for row in found],
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
