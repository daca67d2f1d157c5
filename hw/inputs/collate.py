"""Put the samples of a batch together: texts of unlike length are padded."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from hw.inputs.samples import Sample


def collate_texts(batch: "Sequence[Sample]", tokens: int | None) -> dict[str, Any]:
    """Pad token numbers on the right, to `tokens` or the longest: input_ids and attention_mask, [B, T]."""
    longest = tokens or max(len(sample.content) for sample in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask = torch.zeros(len(batch), longest, dtype=torch.long)
    for row, sample in enumerate(batch):
        ids[row, : len(sample.content)] = torch.tensor(sample.content)
        mask[row, : len(sample.content)] = 1
    return {"input_ids": ids, "attention_mask": mask}
