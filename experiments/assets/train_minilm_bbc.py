"""Train a head for the five classes of BBC News on all-MiniLM-L6-v2, with a frozen encoder.

    python -m experiments.assets.train_minilm_bbc [--cache DIR]     # about two minutes on two cores

The pooler and the classifier are trained on the class token of each article, cut at 256 tokens. The result is
models/minilm-bbc in the cache. The test articles chose nothing.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, BertForSequenceClassification

from experiments.assets.texts import read_lines
from experiments.lib.cache import cache_folder, need, once

TOKENS, EPOCHS, BATCH, RATE, SEED = 256, 40, 32, 1e-3, 0


@torch.no_grad()
def class_tokens(model: Any, tokenizer: Any, texts: list[str]) -> Tensor:
    """Encode each text; return the rows of the class token, [B, D]."""
    found = []
    for start in track(range(0, len(texts), 16), description="class tokens"):
        inputs = tokenizer(
            texts[start : start + 16], truncation=True, max_length=TOKENS, padding=True, return_tensors="pt"
        )
        found.append(model.bert(**inputs).last_hidden_state[:, 0])
    return torch.cat(found)


def head(model: Any, tokens_BD: Tensor) -> Tensor:
    """Compute logits [B, 5], as BertForSequenceClassification does."""
    return model.classifier(model.dropout(model.bert.pooler(tokens_BD[:, None])))


def train(model: Any, tokens_BD: Tensor, classes_B: Tensor) -> None:
    """Train pooler and classifier with AdamW and a one-cycle schedule."""
    trained = [*model.bert.pooler.parameters(), *model.classifier.parameters()]
    optimiser = torch.optim.AdamW(trained, RATE, weight_decay=0.05)
    steps = EPOCHS * -(-len(classes_B) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps + 1)
    model.train()
    for _ in range(EPOCHS):
        for index in torch.randperm(len(classes_B)).split(BATCH):
            loss = F.cross_entropy(head(model, tokens_BD[index]), classes_B[index], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, help="folder of models and data")
    args = parser.parse_args()
    cache = cache_folder(args.cache)
    minilm, data = need(cache, "models/minilm", "data/bbc")

    def make(folder: Path) -> None:
        began = time.perf_counter()
        torch.manual_seed(SEED)
        rows = {split: read_lines(data / f"{split}.jsonl") for split in ("train", "test")}
        labels = sorted({row["label"] for row in rows["train"]})
        names = dict(enumerate(labels))
        model = BertForSequenceClassification.from_pretrained(
            minilm, num_labels=len(labels), id2label=names, label2id={name: k for k, name in names.items()}
        )
        model.eval()
        tokenizer = AutoTokenizer.from_pretrained(minilm)
        tokens = {s: class_tokens(model, tokenizer, [row["text"] for row in each]) for s, each in rows.items()}
        classes = {s: torch.tensor([labels.index(row["label"]) for row in each]) for s, each in rows.items()}
        train(model, tokens["train"], classes["train"])
        with torch.no_grad():
            right = head(model, tokens["test"]).argmax(1) == classes["test"]
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        print(f"top-1 of {len(right)} test articles {right.float().mean():.4f}; {time.perf_counter() - began:.0f} s")

    once(cache / "models" / "minilm-bbc", make)


if __name__ == "__main__":
    main()
