"""Say who owns, sends and returns which rows: index arithmetic without tensors."""

import math
from collections.abc import Sequence

import msgspec

from prism.errors import PlanError
from prism.spec import ModelSpec

HEADER_BYTES = 1024  # of the leader's message that announces a batch to each rank


def split_sizes(length: int, parts: int) -> tuple[int, ...]:
    """Sizes of `parts` consecutive pieces of `length`, the larger ones first (numpy's `array_split`)."""
    size, extra = divmod(length, parts)
    return (size + 1,) * extra + (size,) * (parts - extra)


def proportional(total: int, weights: Sequence[float], least: int = 0) -> tuple[int, ...]:
    """Split `total` in proportion to `weights`, by largest remainder; a weight above 0 gets at least `least`."""
    floor = [least if weight else 0 for weight in weights]
    spare = total - sum(floor)
    shares = [spare * weight / sum(weights) for weight in weights]
    sizes = [low + int(share) for low, share in zip(floor, shares, strict=True)]
    by_remainder = sorted(range(len(sizes)), key=lambda p: (int(shares[p]) - shares[p], p))
    for p in by_remainder[: total - sum(sizes)]:
        sizes[p] += 1
    return tuple(sizes)


def compression_rate(tokens: int, parts: int, segments: int) -> float:
    """CR = N / (L P): rows of the sequence over rows that cross the link."""
    return tokens / (segments * parts)


def segments_for_rate(tokens: int, parts: int, rate: float) -> int:
    """The L whose compression rate is nearest to `rate`, at least 1."""
    return max(1, round(tokens / (rate * parts)))


class Partition(msgspec.Struct, frozen=True, kw_only=True):
    """P contiguous parts of N tokens; part p has `sizes[p]` of them."""

    sizes: tuple[int, ...]

    @classmethod
    def even(cls, tokens: int, parts: int) -> "Partition":
        """Make parts that differ by at most one token, the larger ones first. Raises PlanError for too many."""
        _check(tokens, parts)
        return cls(sizes=split_sizes(tokens, parts))

    @classmethod
    def weighted(cls, tokens: int, weights: tuple[float, ...]) -> "Partition":
        """Make parts in proportion to `weights` (a device's speed), by largest remainder, each at least one token.

        Raises PlanError for more parts than tokens, or a weight that isn't above 0.
        """
        _check(tokens, len(weights))
        if not all(0 < weight < math.inf for weight in weights):
            raise PlanError(
                f"weights {weights} must all be above 0 and finite; leave a device out instead of giving it 0"
            )
        return cls(sizes=proportional(tokens, weights, least=1))

    @property
    def tokens(self) -> int:
        """N, of all parts together."""
        return sum(self.sizes)

    def bounds(self, part: int) -> tuple[int, int]:
        """First token of a part and the one after its last."""
        start = sum(self.sizes[:part])
        return start, start + self.sizes[part]


class Rows(msgspec.Struct, frozen=True, kw_only=True):
    """The rows [start, stop) of the last block's output, which the head reads.

    mean_from: from 0 on, asks instead for the rows before it and, as one more row, the mean of all from it on.
    """

    start: int
    stop: int
    mean_from: int = -1


def head_rows(model: ModelSpec, tokens: int) -> Rows:
    """Rows of the last block that the model's own head reads, of `tokens` in all."""
    if model.head == "first":
        return Rows(start=0, stop=1)
    if model.head == "last":
        return Rows(start=tokens - 1, stop=tokens)
    if model.head == "mean":
        return Rows(start=0, stop=tokens, mean_from=model.prefix_tokens)
    return Rows(start=0, stop=tokens)


def returned_rows(rows: Rows, start: int, stop: int) -> int:
    """Count the rows that the owner of tokens [start, stop) sends back to a head that reads `rows`."""
    if rows.mean_from < 0:
        return max(0, min(stop, rows.stop) - max(start, rows.start))
    prefix = max(0, min(stop, rows.mean_from) - start)
    return prefix + (1 if stop > rows.mean_from else 0)


def receivers(rank: int, ranks: int, causal: bool) -> tuple[int, ...]:
    """Ranks that need the rows of `rank`'s part: all others, in a causal model the later ones."""
    return tuple(p for p in range(ranks) if p != rank and (not causal or p > rank))


def _check(tokens: int, parts: int) -> None:
    if parts < 1:
        raise PlanError(f"{parts} devices: at least 1 is needed")
    if parts > tokens:
        raise PlanError(
            f"{parts} devices for {tokens} tokens: a part needs at least one token; use at most {tokens} devices"
        )
