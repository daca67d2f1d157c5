"""Train the last blocks of the DINOv2 ViT-S on Fashion-MNIST, under any plan, on features of the first ones.

The first eight blocks are frozen, so their output is computed once (`front`). Blocks 8 to 11, the norm and the head are
trained on it (`train_tail`). All parts of a plan run in this process. They run `prism.nn.forward.Pass`, as devices do,
with an exchange that passes tensors by reference, so that gradients flow through the means.

Shapes: B batch, N tokens, D width, C classes.
"""

import time
from pathlib import Path

import torch
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from hw.inputs.samples import Inputs, load_images
from prism.nn.exchange import Exchange, run_in_process
from prism.nn.families import adapter_for
from prism.nn.forward import Pass
from prism.nn.recorder import NullRecorder
from prism.nn.zoo import Loaded
from prism.partition import Rows
from prism.plan import ExecutionPlan, Mode

CUT = 8  # frozen blocks
BATCH = 32
LOCAL = ExecutionPlan(mode=Mode.LOCAL)


def blocks_under(model: nn.Module, plan: ExecutionPlan, first: int, last: int, rows: Rows, x_BND: Tensor) -> Tensor:
    """Run blocks [first, last) on x_BND under a plan, all ranks in this process; return `rows` of the output."""
    adapter = adapter_for(model)
    blocks = list(adapter.blocks())[first:last]

    def rank(exchange: Exchange) -> Tensor | None:
        share = Pass(adapter, blocks, plan, exchange, NullRecorder(), x_BND.device, *x_BND.shape[:2])
        if exchange.rank == 0:
            return share.run_leader(x_BND, None, rows, 0, 0, scatter=False)
        return share.run_embedded(x_BND, None, rows)

    read = run_in_process(plan.ranks, rank)[0]
    if read is None:
        raise RuntimeError("rank 0 of the parts gave no rows")
    return read


def images(folder: Path, loaded: Loaded) -> tuple[Inputs, Tensor]:
    """Load labelled images, and their classes [B] by the model's labels."""
    inputs = load_images(folder, loaded, resize=True)
    return inputs, torch.tensor([loaded.labels.index(sample.label or "") for sample in inputs.samples])


@torch.no_grad()
def front(model: nn.Module, plan: ExecutionPlan, inputs: Inputs, keep: Path) -> Tensor:
    """Compute the output of the first CUT blocks for all images, [B, N, D] in half precision, and cache it in a
    file."""
    if keep.exists():
        return load_file(keep)["features"]
    model.eval()
    batches = range(-(-len(inputs.samples) // 100))
    found = []
    for index in track(batches, description=keep.name):
        x = inputs.collate(inputs.batch(index, 100, wrap=False))["x"]
        x_BND = model.norm_pre(model._pos_embed(model.patch_embed(x)))
        rows = Rows(start=0, stop=x_BND.shape[1])
        found.append(blocks_under(model, plan, 0, CUT, rows, x_BND).half())
    keep.parent.mkdir(exist_ok=True)
    part = keep.with_suffix(".part")
    save_file({"features": torch.cat(found)}, part)
    part.rename(keep)
    return torch.cat(found)


def tail(model: nn.Module, plan: ExecutionPlan, x_BND: Tensor) -> Tensor:
    """Compute logits [B, C] from the output of `front`, by the blocks from CUT on and the head on the class token."""
    rows = Rows(start=0, stop=1)
    return model.forward_head(model.norm(blocks_under(model, plan, CUT, len(model.blocks), rows, x_BND.float())))


@torch.no_grad()
def logits(model: nn.Module, plan: ExecutionPlan, features_BND: Tensor) -> Tensor:
    """Compute the logits [B, C] of all features in batches."""
    model.eval()
    return torch.cat([tail(model, plan, part) for part in features_BND.split(100)])


def train_tail(
    model: nn.Module,
    plan: ExecutionPlan,
    features_BND: Tensor,
    classes_B: Tensor,
    *,
    epochs: int,
    rate: float,
    head_rate: float,
    seed: int,
) -> float:
    """Train blocks, norm and head from CUT on, in place, with AdamW and a one-cycle schedule; return the seconds."""
    began = time.perf_counter()
    torch.manual_seed(seed)
    model.requires_grad_(False)
    body = nn.ModuleList([*model.blocks[CUT:], model.norm]).requires_grad_(True)
    head = model.head.requires_grad_(True)
    parameters = [*body.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(
        [{"params": body.parameters()}, {"params": head.parameters()}], rate, weight_decay=0.05
    )
    steps = epochs * (len(classes_B) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, [rate, head_rate], total_steps=steps + 1, pct_start=0.1)
    for epoch in range(epochs):
        model.train()
        order = torch.randperm(len(classes_B)).split(BATCH)[: len(classes_B) // BATCH]
        for index in track(order, description=f"epoch {epoch + 1} of {epochs}"):
            answer = tail(model, plan, features_BND[index])
            loss = F.cross_entropy(answer, classes_B[index], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            schedule.step()
    model.eval().requires_grad_(False)
    return time.perf_counter() - began
