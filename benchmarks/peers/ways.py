"""The ways that are compared. Each is made for a batch, and then called on both ranks; rank 0 returns the logits.

With a stream, a call runs so many batches in a row and returns the last one's logits.
"""

import copy
import functools
import os
from collections import deque
from collections.abc import Callable
from typing import Any

import timm
import torch
import torch.distributed as dist
from torch import Tensor, nn

from hw.comm.control import Control
from hw.comm.recorder import SpanRecorder
from hw.comm.staging import HostStager
from prism.nn.distribute import DistributedTransformer, distribute
from prism.nn.inputs import Pixels
from prism.plan import LOCAL, ExecutionPlan, Mode

BARE = 7  # tag of hand-written loops: the framework's next receives are posted already
Way = Callable[[], Tensor | None]


class Setting:
    """A model of a seed and its inputs, on one rank. alone: the one way that is going to run, for its memory."""

    def __init__(self, name: str, control: Control, rank: int, alone: str = "") -> None:
        self.control, self.rank, self.alone, self.interface = control, rank, alone, os.environ["GLOO_SOCKET_IFNAME"]
        torch.manual_seed(0)
        self.model: Any = timm.create_model(name, pretrained=False).eval()
        config = self.model.pretrained_cfg
        self.pixels, self.size = Pixels(tuple(config["mean"]), tuple(config["std"])), config["input_size"]

    @functools.cached_property
    def framework(self) -> DistributedTransformer:
        """Prism's wrapper, one for all plans: a follower waits for the next batch's header from the last one on."""
        recorder = SpanRecorder(self.rank)
        return distribute(self.model, LOCAL, self.control.exchange(HostStager(), recorder), recorder)

    def bytes_(self, batch: int) -> Tensor:
        """Images as they came, uint8 [B, C, H, W]."""
        return torch.randint(0, 256, (batch, *self.size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))

    def x(self, batch: int) -> Tensor:
        """Images as the model takes them."""
        return self.pixels.values(self.bytes_(batch), torch.float32)

    def reference(self, batch: int) -> Tensor | None:
        """The logits of the model alone, on rank 0."""
        return self.model(self.x(batch)) if self.rank == 0 else None

    def drop(self, kept: range, embedding: bool, head: bool) -> None:
        """Give back the weights that a stage doesn't need, where only one way runs."""
        if not self.alone:
            return
        for index, block in enumerate(self.model.blocks):
            if index not in kept:
                block.to("meta")
        if not embedding:
            self.model.patch_embed.to("meta")
        if not head:
            self.model.head.to("meta")


def repeated(once: Way, stream: int) -> Way:
    """Call a way so many times."""

    def run() -> Tensor | None:
        output = None
        for _ in range(max(stream, 1)):
            output = once()
        return output

    return run


def local(setting: Setting, batch: int, stream: int) -> Way:
    x = setting.x(batch)
    return repeated(lambda: setting.model(x) if setting.rank == 0 else None, stream)


def prism(**fields: Any) -> Callable[[Setting, int, int], Way]:
    """A plan of Prism's."""

    def make(setting: Setting, batch: int, stream: int) -> Way:
        plan = ExecutionPlan(devices=2, **fields)
        if plan.stages > 1:
            first, stop = plan.stage_blocks(len(setting.model.blocks))[setting.rank]
            setting.drop(range(first, stop), embedding=setting.rank == 0, head=setting.rank == 1)
        model, x = setting.framework, setting.x(batch)

        def run() -> Tensor | None:
            model.plan = plan
            if setting.rank:
                for _ in range(max(stream, 1)):
                    model.follow()
                return None
            if not stream:
                return model(x)
            output, begun = None, deque()
            for _ in range(stream):
                begun.append(model.start(x))
                if len(begun) == 4:
                    output = begun.popleft().wait()
            while begun:
                output = begun.popleft().wait()
            return output

        return run

    return make


def bare_replicas(setting: Setting, batch: int, stream: int) -> Way:
    """Half of the images' bytes across, half of the logits back."""
    model, half = setting.model, batch // 2
    if not half:
        raise NotImplementedError("a batch of one image has no half")
    raw, x = setting.bytes_(batch), setting.x(batch)
    classes = model.num_classes

    def run() -> Tensor | None:
        if setting.rank == 0:
            sent = dist.isend(raw[batch - half :].contiguous(), 1, tag=BARE)
            rest = torch.empty(half, classes)
            back = dist.irecv(rest, 1, tag=BARE)
            mine = model(x[: batch - half])
            sent.wait()
            back.wait()
            return torch.cat([mine, rest])
        got = torch.empty(half, *setting.size, dtype=torch.uint8)
        dist.recv(got, 0, tag=BARE)
        dist.send(model(setting.pixels.values(got, torch.float32)), 0, tag=BARE)
        return None

    return repeated(run, stream)


def bare_pipeline(setting: Setting, batch: int, stream: int) -> Way:
    """Half of the blocks each, an image at a time, receives posted ahead."""
    model, x = setting.model, setting.x(batch)
    cut, count = len(model.blocks) // 2, batch * max(stream, 1)
    setting.drop(range(cut) if setting.rank == 0 else range(cut, 2 * cut), setting.rank == 0, setting.rank == 1)
    tokens = model.patch_embed.num_patches + model.num_prefix_tokens
    shape, classes = (1, tokens, model.embed_dim), model.num_classes

    def first() -> Tensor:
        answers = [torch.empty(1, classes) for _ in range(count)]
        back, sent = [dist.irecv(answer, 1, tag=BARE) for answer in answers], []
        for k in range(count):
            rows = model._pos_embed(model.patch_embed(x[k % batch][None]))
            for block in model.blocks[:cut]:
                rows = block(rows)
            sent.append((dist.isend(rows, 1, tag=BARE), rows))
        for work in (*(work for work, _ in sent), *back):
            work.wait()
        return torch.cat(answers[-batch:])

    def second() -> None:
        buffers, sent = [torch.empty(shape), torch.empty(shape)], []
        coming = dist.irecv(buffers[0], 0, tag=BARE)
        for k in range(count):
            coming.wait()
            if k + 1 < count:
                coming = dist.irecv(buffers[(k + 1) % 2], 0, tag=BARE)
            rows = buffers[k % 2]
            for block in model.blocks[cut:]:
                rows = block(rows)
            logits = model.forward_head(model.norm(rows))
            sent.append((dist.isend(logits, 0, tag=BARE), logits))
        for work, _ in sent:
            work.wait()

    return first if setting.rank == 0 else second


class Half(nn.Module):
    """One stage for torch.distributed.pipelining."""

    def __init__(self, model: Any, cut: int, stage: int) -> None:
        super().__init__()
        self.stage = stage
        self.blocks = nn.Sequential(*(model.blocks[:cut] if stage == 0 else model.blocks[cut:]))
        self.ends = [model]  # in a list: no child, whose parameters would count

    def forward(self, x: Tensor) -> Tensor:
        model = self.ends[0]
        if self.stage == 0:
            return self.blocks(model._pos_embed(model.patch_embed(x)))
        return model.forward_head(model.norm(self.blocks(x)))


def torch_pipelining(setting: Setting, batch: int, stream: int) -> Way:
    """GPipe of an image a microbatch; the answer is on the last rank and is sent back."""
    from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

    model, count = setting.model, batch * max(stream, 1)
    cut = len(model.blocks) // 2
    setting.drop(range(cut) if setting.rank == 0 else range(cut, 2 * cut), setting.rank == 0, setting.rank == 1)
    group = dist.new_group()  # its messages have no tag, as the framework's
    stage = PipelineStage(Half(model, cut, setting.rank), setting.rank, 2, torch.device("cpu"), group=group)
    schedule = ScheduleGPipe(stage, n_microbatches=count)
    x = setting.x(batch).repeat(max(stream, 1), 1, 1, 1)

    def run() -> Tensor | None:
        if setting.rank == 0:
            schedule.step(x)
            logits = torch.empty(count, model.num_classes)
            dist.recv(logits, 1, tag=BARE)
            return logits[-batch:]
        dist.send(schedule.step().contiguous(), 0, tag=BARE)
        return None

    return run


def tensor_parallel(setting: Setting, batch: int, stream: int) -> Way:
    """Each rank has half of every matrix; two sums of all rows a block."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    model = setting.model if setting.alone else copy.deepcopy(setting.model)
    mesh = init_device_mesh("cpu", (2,))
    for block in model.blocks:
        attn = block.attn
        # a rank's rows of the fused projection must be queries, keys and values of its own heads
        order = torch.arange(3 * attn.attn_dim).view(3, 2, -1).transpose(0, 1).reshape(-1)
        for tensor in (attn.qkv.weight, attn.qkv.bias):
            tensor.data = tensor.data[order].contiguous()
        plan = {"attn.qkv": ColwiseParallel(), "attn.proj": RowwiseParallel()}
        parallelize_module(block, mesh, {**plan, "mlp.fc1": ColwiseParallel(), "mlp.fc2": RowwiseParallel()})
        attn.num_heads, attn.attn_dim = attn.num_heads // 2, attn.attn_dim // 2
    x = setting.x(batch)

    def run() -> Tensor | None:
        shared = x.clone() if setting.rank == 0 else torch.empty_like(x)
        dist.broadcast(shared, 0)
        logits = model(shared)
        return logits if setting.rank == 0 else None

    return repeated(run, stream)


WAYS: dict[str, Callable[[Setting, int, int], Way]] = {
    "local": local,
    "2 replicas": prism(mode=Mode.LOCAL, replicas=2),
    "replicas by hand": bare_replicas,
    "2 stages": prism(mode=Mode.LOCAL, stages=2),
    "pipeline by hand": bare_pipeline,
    "torch pipelining": torch_pipelining,
    "2 parts, means L=10": prism(mode=Mode.SEGMENT_MEANS, segments=10),
    "2 parts, full int4": prism(mode=Mode.FULL, wire="int4"),
    "torch tensor parallel": tensor_parallel,
}
