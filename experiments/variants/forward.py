"""Run a model whose parts exchange rows by a scheme, with all parts in one process and one copy of the weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.variants.schemes import Coder, Scheme, Sent
from prism.nn.distribute import _with_stack
from prism.nn.families import adapter_for
from prism.partition import Partition

_NORMS = ("norm1", "ln_1", "input_layernorm")


@dataclass(frozen=True)
class Subject:
    """Hold a model with its items: batches of keyword arguments, labels if there are any, and what is compared."""

    name: str
    model: Any
    batches: list[dict[str, Tensor]]
    calibration: list[dict[str, Tensor]]
    labels: Tensor | None
    kind: str  # class, embedding or next


def run(subject: Subject, kwargs: dict[str, Tensor], scheme: Scheme, parts: int) -> tuple[Tensor, float]:
    """Run a model over `parts` parts; return its output, and the bits that all parts sent per sample and peer."""
    adapter = adapter_for(subject.model)
    blocks = list(adapter.blocks())
    coders: list[Coder] = []

    def stack(x_BND: Tensor, *_: Any, **__: Any) -> Tensor:
        partition = Partition.even(x_BND.shape[1], parts)
        bounds = [partition.bounds(p) for p in range(parts)]
        coders.extend(Coder(scheme, *each) for each in bounds)
        for index, block in enumerate(blocks):
            x_BND = _step(adapter, block, index, x_BND, coders, scheme)
        return x_BND

    shell = _with_stack(subject.model, adapter.stack_path, stack)
    return output_of(subject, shell(**{**adapter.forced, **kwargs})), sum(c.bits for c in coders)


def _step(adapter: Any, block: Any, index: int, x_BND: Tensor, coders: list[Coder], scheme: Scheme) -> Tensor:
    """Run one block for every part, each with its own rows and what the coders made of the others'."""
    bounds = [(coder.start, coder.start + coder.rows) for coder in coders]

    def at(places: Tensor) -> Tensor | None:
        return adapter.rotation(places[None]) if adapter.rotation else None

    query, key, value = block.project(x_BND, at(torch.arange(x_BND.shape[1]).float()))
    seen = _without_norm(block, x_BND) if scheme.after_norm else x_BND
    bare = _Bare(block) if scheme.after_norm else block
    received = [
        c(index, seen[:, a:b], lambda x, places: block.project_kv(x, at(places))[0])
        for c, (a, b) in zip(coders, bounds, strict=True)
    ]
    foreign = [bare.project_kv(s.rows, at(s.positions)) for s in received]
    out = []
    for p, (a, b) in enumerate(bounds):
        others = [q for q in range(len(bounds)) if q != p and (q < p or not adapter.causal)]
        keys = torch.cat([key[:, :, a:b], *(foreign[q][0] for q in others)], 2)
        values = torch.cat([value[:, :, a:b], *(foreign[q][1] for q in others)], 2)
        bias = _bias(query[:, :, a:b], [received[q] for q in others], adapter.causal, block.scale)
        mixed = F.scaled_dot_product_attention(query[:, :, a:b], keys, values, attn_mask=bias, scale=block.scale)
        out.append(block.finish(x_BND[:, a:b], mixed.transpose(1, 2).flatten(2)))
    return torch.cat(out, 1)


def output_of(subject: Subject, out: Any) -> Tensor:
    """Extract logits [items, classes] or unit embeddings; for a language model, the logits at every position."""
    if subject.kind == "embedding":
        return F.normalize(out.last_hidden_state.mean(1), dim=-1)
    return out if isinstance(out, Tensor) else out.logits


def _bias(query: Tensor, received: Sequence[Sent], causal: bool, scale: float) -> Tensor:
    """Build the additive attention bias: segment counts, the causal mask, and the second-moment correction."""
    own = query.shape[2]
    counts = torch.cat([torch.ones(own), *(s.counts for s in received)])
    bias = counts.log().expand(own, -1).clone()
    if causal:
        bias[:, :own].masked_fill_(torch.ones(own, own, dtype=torch.bool).triu(1), torch.finfo().min)
    if not received or received[0].variance is None:
        return bias
    # log mean exp(q k) = q mean(k) + q' Cov(k) q / 2 for Gaussian keys, with Cov(k) = variance times the identity
    spread = torch.cat([s.variance for s in received if s.variance is not None], 2)
    extra = 0.5 * scale**2 * query.pow(2).sum(-1, keepdim=True) * spread.unsqueeze(2)
    return bias + torch.cat([torch.zeros(*extra.shape[:3], own), extra], 3)


def _norm_of(block: Any) -> tuple[Any, str]:
    inner = getattr(block, "_block", None) or block._layer
    return inner, next(name for name in _NORMS if hasattr(inner, name))


def _without_norm(block: Any, x: Tensor) -> Tensor:
    inner, name = _norm_of(block)
    return getattr(inner, name)(x)


class _Bare:
    """Wrap a block so that its projection of received rows skips the norm."""

    def __init__(self, block: Any) -> None:
        self._block = block

    def project_kv(self, z: Tensor, at: Tensor | None) -> Any:
        inner, name = _norm_of(self._block)
        norm = inner._modules[name]
        inner._modules[name] = torch.nn.Identity()
        try:
            return self._block.project_kv(z, at)
        finally:
            inner._modules[name] = norm
