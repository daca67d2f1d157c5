"""Average a part's rows over segments, and compute the attention bias that makes up for it.

Shapes: B batch, N tokens, n own tokens, L segments, M rows received, D width.
"""

import torch
from torch import Tensor

from prism.partition import split_sizes


def segment_counts(mask_BN: Tensor | None, start: int, stop: int, segments: int, first_alone: bool = False) -> Tensor:
    """Count the real tokens in each segment of tokens [start, stop): [L] without padding, [B, L] with it."""
    rows = stop - start
    sizes = (1, *split_sizes(rows - 1, segments - 1)) if first_alone and rows > 1 else split_sizes(rows, segments)
    if mask_BN is None:
        return torch.tensor(sizes, dtype=torch.float32)
    bounds = torch.tensor((0, *sizes)).cumsum(0)
    running = torch.nn.functional.pad(mask_BN[:, start:stop].float().cumsum(1), (1, 0))
    return running[:, bounds].diff(dim=1)


def segment_means(x_BnD: Tensor, segments: int, mask_Bn: Tensor | None = None, first_alone: bool = False) -> Tensor:
    """Average `segments` consecutive segments, sized as by `array_split`: [B, L, D].

    Padding (mask 0) is left out of the mean; a segment without real tokens becomes zero, and its
    count of 0 drops it from attention. With L = n the rows themselves are returned, uncopied.
    first_alone: the first row is a segment of its own.
    """
    rows = x_BnD.shape[1]
    if segments == rows:
        return x_BnD
    if first_alone:
        rest = segment_means(x_BnD[:, 1:], segments - 1, None if mask_Bn is None else mask_Bn[:, 1:])
        return torch.cat([x_BnD[:, :1], rest], dim=1)
    if mask_Bn is not None:
        x_BnD = x_BnD * mask_Bn.unsqueeze(-1).to(x_BnD.dtype)
    size, extra = divmod(rows, segments)
    cut = extra * (size + 1)
    pieces = [x_BnD[:, :cut].unflatten(1, (extra, size + 1)).sum(2)] if extra else []
    pieces.append(x_BnD[:, cut:].unflatten(1, (segments - extra, size)).sum(2))
    sums_BLD = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)
    counts = segment_counts(mask_Bn, 0, rows, segments).to(x_BnD.device, x_BnD.dtype)
    return sums_BLD / counts.clamp(min=1).unsqueeze(-1)


def segment_positions(
    mask_BN: Tensor | None, start: int, stop: int, segments: int, first_alone: bool = False
) -> Tensor:
    """Place each segment of tokens [start, stop) at the centre of its real tokens: [1, L], with padding [B, L].

    With L = n a token's own position.
    """
    positions_1n1 = torch.arange(start, stop, dtype=torch.float32)[None, :, None]
    if mask_BN is None:
        return segment_means(positions_1n1, segments, None, first_alone)[..., 0]
    mask_Bn = mask_BN[:, start:stop]
    return segment_means(positions_1n1.expand(len(mask_Bn), -1, -1), segments, mask_Bn, first_alone)[..., 0]


def attention_bias(
    counts: list[Tensor], own: int, mask_Bn: Tensor | None, *, causal: bool, dtype: torch.dtype
) -> Tensor | None:
    """Additive attention bias of a part's `own` queries, [B or 1, 1, n or 1, n + M], or None where there is none.

    Keys are the own rows, then the received rows with `counts` (one tensor a part). A mean of c rows
    gets log(c), which equals attention over the row repeated c times; a row of padding is hidden.
    Causal: the own part is lower triangular, and received rows, all of earlier parts, are visible.
    """
    received = torch.cat(counts, dim=-1) if counts else torch.empty(0)
    if mask_Bn is None and not causal and bool((received == 1).all()):
        return None
    hidden = torch.finfo(dtype).min
    weights = received.unsqueeze(0) if received.ndim == 1 else received
    columns = [torch.zeros(weights.shape[0], own) if mask_Bn is None else _log(mask_Bn.float(), hidden)]
    columns.append(_log(weights, hidden).expand(columns[0].shape[0], -1))
    bias = torch.cat(columns, dim=1)[:, None, None, :]
    if causal:
        future = torch.ones(own, own, dtype=torch.bool).triu(1)
        future = torch.nn.functional.pad(future, (0, received.shape[-1]))
        bias = bias.masked_fill(future, hidden)
    return bias.to(dtype)


def _log(counts: Tensor, hidden: float) -> Tensor:
    return counts.log().clamp(min=hidden)
