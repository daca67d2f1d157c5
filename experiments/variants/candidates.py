"""List the variants to measure, by name: rows, codec, and anything else. "delta" is the codec that Prism ships."""

from experiments.variants.schemes import Quantiser, Scheme

NARROW = {bits: Quantiser(bits=bits) for bits in (2, 3, 4, 8)}
WIDE = {bits: Quantiser(bits=bits, group=128) for bits in (2, 3)}
MSE = {bits: Quantiser(bits=bits, group=128, kind="mse") for bits in (2, 3)}
RMS = {bits: Quantiser(bits=bits, group=128, kind="rms") for bits in (2, 3)}
TURNED = {bits: Quantiser(bits=bits, group=128, kind="rms", rotate=True) for bits in (1, 2, 3, 4)}
TURNED_RANGE = {bits: Quantiser(bits=bits, group=128, rotate=True) for bits in (2, 3)}
APART = {bits: Quantiser(bits=bits, group=128, kind="mse", outliers=4) for bits in (2, 3)}

# all variants are measured on these with 2 devices; other models and more devices get the core
EVERYTHING_ON = ("dinov2-fashion", "minilm")
CORE = (
    "full fp32",
    "means fp32",
    "means fp32, prefix exact",
    "full int2 g32",
    "full int3 rotated",
    "full delta4",
    "full delta3",
    "full delta2",
    "full delta1",
    "means 1/2 delta1",
    "means 1/4 delta3",
    "means 1/2 delta1, prefix exact",
    "means 1/4 delta3, prefix exact",
    "half of the rows in turn, delta1",
)


def candidates(plain: int, family: str) -> dict[str, Scheme]:
    """Return every variant for a family of models; `plain` is the L of CR 9.9 in fp32."""
    found = {
        "full fp32": Scheme(),
        # the baseline, and what is done to it at equal bytes
        "means fp32": Scheme(segments=plain),
        "means fp32, not weighted": Scheme(segments=plain, weighted=False),
        "means fp32, second moment": Scheme(segments=plain, second_moment=True),
        "means fp32, prefix exact": Scheme(segments=plain, exact_prefix=1),
        "means fp32, uneven": Scheme(segments=plain, uneven=True),
        "means fp32, normalised rows": Scheme(segments=plain, normalise=True),
        "means fp32, L per block": Scheme(segments=plain),
        # other baselines
        "drop fp32": Scheme(keep=0.1),
        "top-k fp32": Scheme(keep=0.1, by="distance"),
        "subspace fp32": Scheme(keep=0.1, by="subspace"),
        "every 4th block int3 rotated": Scheme(TURNED[3], stale=4),
        # quantisers of the full exchange
        **{f"full int{b} g32": Scheme(q) for b, q in NARROW.items()},
        **{f"full int{b} g128": Scheme(q) for b, q in WIDE.items()},
        **{f"full int{b} g128, range of least error": Scheme(q) for b, q in MSE.items()},
        **{f"full int{b} g128, symmetric": Scheme(q) for b, q in RMS.items()},
        **{f"full int{b} rotated": Scheme(TURNED[b]) for b in (1, 2, 3)},
        **{f"full int{b} rotated, minimum and maximum": Scheme(q) for b, q in TURNED_RANGE.items()},
        **{f"full int{b} g128, outliers apart": Scheme(q) for b, q in APART.items()},
        # prediction from the block before
        **{f"full int{b} g32, predicted": Scheme(NARROW[b], predict=True) for b in (2, 3)},
        **{f"full int{b} g128, range of least error, predicted": Scheme(MSE[b], predict=True) for b in (2, 3)},
        **{f"full delta{b}": Scheme(q, predict=True) for b, q in TURNED.items()},
        "full delta2, normalised rows": Scheme(TURNED[2], predict=True, normalise=True),
        "full delta2, first block int8": Scheme(TURNED[2], predict=True, first=8),
        # beyond CR 12: fewer rows
        **{
            f"means 1/{k} delta{b}": Scheme(TURNED[b], segments=1 / k, predict=True)
            for k, b in ((2, 3), (2, 2), (2, 1), (4, 3), (4, 2), (5, 3), (5, 4))
        },
        **{
            f"means 1/{k} delta{b}, prefix exact": Scheme(TURNED[b], segments=1 / k, predict=True, exact_prefix=1)
            for k, b in ((2, 1), (4, 3))
        },
        "means 1/4 int3 rotated": Scheme(TURNED[3], segments=0.25),
        **{f"means 1/{k} int4 g32": Scheme(NARROW[4], segments=1 / k) for k in (2, 4, 10)},
        **{
            f"{share} of the rows{how}, delta{b}": Scheme(TURNED[b], predict=True, stale=k, stale_by=by)
            for by, how in (("rows", " in turn"), ("changed", " that changed most"))
            for share, k, b in (("half", 2, 1), ("a quarter", 4, 2))
        },
        "every 2nd block delta1": Scheme(TURNED[1], predict=True, stale=2),
    }
    if family != "bert":
        found["means fp32, after norm"] = Scheme(segments=plain, after_norm=True)
        found["full int3 rotated, after norm"] = Scheme(TURNED[3], after_norm=True)
    return found
