"""Encode what a part may send instead of its rows: quantisers, choices of rows, prediction.

Everything here encodes and decodes in one step and counts bits by formula. The codecs that Prism ships
are in prism/nn/codecs.py.
Shapes: B batch, n rows of a part, M rows received in their place, D width.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from prism.nn.codecs import rotation
from prism.partition import split_sizes

# steps in units of the rms that lose least on Gaussian values, by bits (Max 1960, table II)
STEP = {1: 1.596, 2: 0.9957, 3: 0.5860, 4: 0.3352, 5: 0.1881, 8: 0.0308}


@dataclass(frozen=True)
class Quantiser:
    """Quantise groups of consecutive values.

    bits: 32 and 16 are floats. kind: `minmax` keeps a scale and a minimum in fp16, `mse` the range among five that
    loses least, `rms` one fp16 scale around zero.
    rotate: apply Prism's rotation to each group of 128 first.
    outliers: the number of channels, those of the largest range, that cross separately in fp16.
    """

    bits: int = 32
    group: int = 32
    kind: Literal["minmax", "mse", "rms"] = "minmax"
    rotate: bool = False
    outliers: int = 0

    def bits_per_value(self, width: int) -> float:
        if self.bits >= 16:
            return float(self.bits)
        return self.bits + (16 if self.kind == "rms" else 32) / self.group + 16 * self.outliers / width

    def __call__(self, x: Tensor) -> Tensor:
        if self.bits == 32:
            return x
        if self.bits == 16:
            return x.half().float()
        if self.outliers:
            apart = x.flatten(0, -2).abs().amax(0).topk(self.outliers).indices
            inside = x.clone()
            inside[..., apart] = 0
            coded = replace(self, outliers=0)(inside)
            coded[..., apart] = x[..., apart].half().float()
            return coded
        flat = x.flatten()
        spare = -flat.numel() % self.group
        groups = torch.nn.functional.pad(flat, (0, spare)).view(-1, self.group)
        turn = rotation(x.device) if self.rotate else None
        groups = groups if turn is None else groups @ turn
        groups = self._symmetric(groups) if self.kind == "rms" else self._ranged(groups)
        groups = groups if turn is None else groups @ turn.T
        return groups.flatten()[: x.numel()].view(x.shape)

    def _symmetric(self, x: Tensor) -> Tensor:
        step = (x.pow(2).mean(1, keepdim=True).sqrt() * STEP[self.bits]).half().float().clamp(min=1e-7)
        half = 2 ** (self.bits - 1)
        return ((x / step).floor().clamp(-half, half - 1) + 0.5) * step

    def _ranged(self, x: Tensor) -> Tensor:
        low, high = x.aminmax(dim=1, keepdim=True)
        best, least = x, torch.full_like(low, torch.inf)
        for shrink in (1.0,) if self.kind == "minmax" else (1.0, 0.9, 0.8, 0.7, 0.6):
            centre, half = (high + low) / 2, (high - low) / 2 * shrink
            minimum = (centre - half).half().float()
            levels = 2**self.bits - 1
            scale = ((centre + half - minimum) / levels).half().float().clamp(min=1e-7)
            coded = minimum + scale * ((x - minimum) / scale).round().clamp(0, levels)
            loss = (coded - x).pow(2).sum(1, keepdim=True)
            best, least = torch.where(loss < least, coded, best), torch.minimum(loss, least)
        return best


@dataclass(frozen=True)
class Scheme:
    """Describe one way to exchange. At most one of `segments`, `keep`, `stale` may differ from its default.

    segments: means per part, as a share of its rows, as a number, or as one number per block.
    exact_prefix: leading tokens (a class token, an attention sink) that are sent as they are and enter no mean.
    keep: share of rows sent. `by` says which: evenly spaced ones, those farthest from the part's mean (with the mean of
    the others as one row), or all rows in a random subspace with that share of the channels.
    stale: only every n-th block exchanges (`whole`), or every n-th row in each block (`rows`), or the 1/n of the rows
    that changed most (`changed`). Receivers keep the last decoded value of the others.
    predict: send the quantised difference to the last decoded rows.
    normalise: scale rows to a mean square of 1, which a norm at the receiver undoes.
    after_norm: average rows after the norm. first: bits of the first block if they differ.
    """

    quantiser: Quantiser = Quantiser()
    segments: float | int | tuple[int, ...] | None = None
    weighted: bool = True
    second_moment: bool = False
    exact_prefix: int = 0
    uneven: bool = False
    keep: float = 1.0
    by: Literal["spaced", "distance", "subspace"] = "spaced"
    stale: int = 1
    stale_by: Literal["whole", "rows", "changed"] = "whole"
    predict: bool = False
    normalise: bool = False
    after_norm: bool = False
    first: int = 0


@dataclass(frozen=True)
class Sent:
    """Hold what receivers have of a part: rows [B, M, D], tokens behind each [M], and their positions [M].

    The second-moment correction adds the variance of the keys inside each segment [B, H, M]."""

    rows: Tensor
    counts: Tensor
    positions: Tensor
    variance: Tensor | None = None


class Coder:
    """Apply a scheme to one part of one batch; `bits` counts what one sample sent, over all blocks."""

    def __init__(self, scheme: Scheme, start: int, stop: int) -> None:
        self.scheme, self.start, self.rows = scheme, start, stop - start
        self.prefix = scheme.exact_prefix if start == 0 else 0
        self.bits = 0.0
        self._last: Tensor | None = None

    def __call__(self, block: int, x_BnD: Tensor, keys: Any) -> Sent:
        s = self.scheme
        if s.normalise:
            x_BnD = x_BnD * x_BnD.pow(2).mean(-1, keepdim=True).clamp(min=1e-12).rsqrt()
        if s.segments is not None:
            return self._means(block, x_BnD, keys)
        if s.keep < 1:
            return self._kept(block, x_BnD)
        places = torch.arange(self.start, self.start + self.rows).float()
        return Sent(self._stale(block, x_BnD), torch.ones(self.rows), places)

    def _code(self, block: int, x: Tensor, last: Tensor | None) -> Tensor:
        q = self.scheme.quantiser
        if block == 0 and self.scheme.first:
            q = replace(q, bits=self.scheme.first)
        self.bits += q.bits_per_value(x.shape[-1]) * x[0].numel()
        return last + q(x - last) if self.scheme.predict and last is not None else q(x)

    def _stale(self, block: int, x_BnD: Tensor) -> Tensor:
        s = self.scheme
        if s.stale == 1 or self._last is None:
            self._last = self._code(block, x_BnD, self._last)
        elif s.stale_by == "whole":
            if block % s.stale == 0:
                self._last = self._code(block, x_BnD, self._last)
        elif s.stale_by == "rows":
            now = slice(block % s.stale, None, s.stale)
            self._last = self._last.clone()
            self._last[:, now] = self._code(block, x_BnD[:, now], self._last[:, now])
        else:
            count = max(1, round(self.rows / s.stale))
            change = (x_BnD - self._last).pow(2).sum(-1)
            index = change.topk(count, dim=1).indices.unsqueeze(-1).expand(-1, -1, x_BnD.shape[-1])
            fresh = self._code(block, x_BnD.gather(1, index), self._last.gather(1, index))
            self._last = self._last.scatter(1, index, fresh)
            self.bits += 16 * count
        return self._last

    def _sizes(self, block: int, x_BnD: Tensor) -> list[int]:
        s, rows = self.scheme, self.rows - self.prefix
        wanted = s.segments[block] if isinstance(s.segments, tuple) else s.segments
        if isinstance(wanted, float):
            wanted = max(1, round(self.rows * wanted))
        count = min(rows, max(1, int(wanted or 1) - self.prefix))
        if not s.uneven or count == rows or count == 1:
            return list(split_sizes(rows, count))
        # cut where neighbouring rows differ most, averaged over the batch's calibration: the same cuts for all
        jump = (x_BnD[:, self.prefix + 1 :] - x_BnD[:, self.prefix : -1]).pow(2).sum(-1).mean(0)
        cuts = sorted((jump.topk(count - 1).indices + 1).tolist())
        return [b - a for a, b in zip([0, *cuts], [*cuts, rows], strict=True)]

    def _means(self, block: int, x_BnD: Tensor, keys: Any) -> Sent:
        sizes = [1] * self.prefix + self._sizes(block, x_BnD)
        if self.scheme.uneven:
            self.bits += 8 * len(sizes)
        owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        pool = torch.zeros(len(sizes), self.rows)
        pool[owner, torch.arange(self.rows)] = 1
        counts = pool.sum(1)
        pool = pool / counts[:, None]
        means = pool @ x_BnD
        last = self._last if self._last is not None and self._last.shape == means.shape else None
        self._last = self._code(block, means, last)
        places = self.start + pool @ torch.arange(self.rows).float()
        variance = None
        if self.scheme.second_moment:
            key_BHnC = keys(x_BnD, torch.arange(self.start, self.start + self.rows).float())
            spread = pool @ key_BHnC.pow(2) - (pool @ key_BHnC).pow(2)
            variance = spread.mean(-1).half().float().clamp(min=0)
            self.bits += 16 * variance[0].numel()
        return Sent(self._last, counts if self.scheme.weighted else torch.ones_like(counts), places, variance)

    def _kept(self, block: int, x_BnD: Tensor) -> Sent:
        s, count = self.scheme, max(1, round(self.rows * self.scheme.keep))
        places = torch.arange(self.start, self.start + self.rows).float()
        if s.by == "subspace":
            width = x_BnD.shape[-1]
            generator = torch.Generator().manual_seed(block)
            basis = torch.linalg.qr(torch.randn(width, max(1, round(width * s.keep)), generator=generator))[0]
            return Sent(self._code(block, x_BnD @ basis, None) @ basis.T, torch.ones(self.rows), places)
        if s.by == "spaced":
            index = torch.linspace(0, self.rows - 1, count).round().long()
            rows = self._code(block, x_BnD[:, index], None)
            return Sent(rows, torch.full((count,), self.rows / count), places[index])
        middle = x_BnD.mean(1, keepdim=True)
        far = (x_BnD - middle).pow(2).sum(-1).topk(max(1, count - 1), dim=1).indices.sort(dim=1).values
        chosen = x_BnD.gather(1, far.unsqueeze(-1).expand(-1, -1, x_BnD.shape[-1]))
        others = (x_BnD.sum(1, keepdim=True) - chosen.sum(1, keepdim=True)) / max(1, self.rows - far.shape[1])
        rows = self._code(block, torch.cat([chosen, others], 1), None)
        self.bits += 16 * far.shape[1]
        counts = torch.tensor([1.0] * far.shape[1] + [float(max(1, self.rows - far.shape[1]))])
        centre = torch.full((1,), self.start + (self.rows - 1) / 2)
        return Sent(rows, counts, torch.cat([places[far[0]], centre]))
