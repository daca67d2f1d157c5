"""Index arithmetic: which rank owns which tokens, and which tokens a segment covers. No tensors here."""

import math

import msgspec

from prism.errors import PlanError


def split_sizes(length: int, parts: int) -> tuple[int, ...]:
    """Sizes of `parts` consecutive pieces of `length`, the larger ones first (numpy's `array_split`)."""
    size, extra = divmod(length, parts)
    return (size + 1,) * extra + (size,) * (parts - extra)


def compression_rate(tokens: int, parts: int, segments: int) -> float:
    """CR = N / (L P): rows of the sequence per row that crosses the link."""
    return tokens / (segments * parts)


def segments_for_rate(tokens: int, parts: int, rate: float) -> int:
    """The L whose compression rate is nearest to `rate`, at least 1."""
    return max(1, round(tokens / (rate * parts)))


class Partition(msgspec.Struct, frozen=True, kw_only=True):
    """P contiguous parts of N tokens; part p has `sizes[p]` of them."""

    sizes: tuple[int, ...]

    @classmethod
    def even(cls, tokens: int, parts: int) -> "Partition":
        """Parts that differ by at most one token, the larger ones first."""
        _check(tokens, parts)
        return cls(sizes=split_sizes(tokens, parts))

    @classmethod
    def weighted(cls, tokens: int, weights: tuple[float, ...]) -> "Partition":
        """Parts in proportion to `weights` (a device's speed), by largest remainder, each at least one token."""
        _check(tokens, len(weights))
        if not all(0 < weight < math.inf for weight in weights):
            raise PlanError(
                f"weights {weights} must all be above 0 and finite; leave a device out instead of giving it 0"
            )
        spare = tokens - len(weights)
        shares = [spare * weight / sum(weights) for weight in weights]
        sizes = [1 + int(share) for share in shares]
        by_remainder = sorted(range(len(sizes)), key=lambda p: (int(shares[p]) - shares[p], p))
        for p in by_remainder[: tokens - sum(sizes)]:
            sizes[p] += 1
        return cls(sizes=tuple(sizes))

    @property
    def tokens(self) -> int:
        return sum(self.sizes)

    def bounds(self, part: int) -> tuple[int, int]:
        """First token of a part and the one after its last."""
        start = sum(self.sizes[:part])
        return start, start + self.sizes[part]


def _check(tokens: int, parts: int) -> None:
    if parts < 1:
        raise PlanError(f"{parts} devices: at least 1 is needed")
    if parts > tokens:
        raise PlanError(
            f"{parts} devices for {tokens} tokens: a part needs at least one token; use at most {tokens} devices"
        )
