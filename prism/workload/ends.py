"""Count the bytes of a batch's two ends: the raw input, and what the head returns."""

from prism.partition import head_rows
from prism.spec import ModelSpec
from prism.workload.kernels import WORD

PIXEL = 1  # bytes of one channel of a pixel: images come as uint8
TOKEN_ID = 4  # bytes of a token's id: int32 holds every vocabulary


def input_bytes(model: ModelSpec, samples: int, tokens: int) -> int:
    """Count the bytes of raw samples in their smallest exact form: pixels, or ids. A mask adds next to nothing."""
    if not model.patch_values:
        return samples * tokens * TOKEN_ID
    return samples * (tokens - model.prefix_tokens) * model.patch_values * PIXEL


def answer_bytes(model: ModelSpec, samples: int, tokens: int) -> int:
    """Count the bytes of what the model returns: logits, or the rows that a headless one returns; a mean is one."""
    rows = head_rows(model, tokens)
    count = 1 if rows.mean_from >= 0 else rows.stop - rows.start
    return samples * count * (model.output_width or model.width) * WORD
