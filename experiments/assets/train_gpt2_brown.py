"""Train a small GPT-2 on the Brown corpus, as no package has one with English weights.

    python -m experiments.assets.train_gpt2_brown [--cache DIR]     # about ten minutes on two cores

The tokenizer is a byte-level BPE of 4,096 tokens. The model has 4 blocks of width 256 and 256 positions, and is trained
on concatenated passages. The result is models/gpt2-brown in the cache; the perplexity of the held-out documents is
printed."""

import argparse
import math
import time
from pathlib import Path
from typing import Any

import torch
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from experiments.assets.texts import read_lines
from experiments.lib.cache import cache_folder, need, once

VOCABULARY, CONTEXT, WIDTH, BLOCKS, HEADS = 4096, 256, 256, 4, 4
BATCH, RATE, WARM_UP, END = 8, 2e-3, 0.05, "<|endoftext|>"
STEPS, SEED = 800, 0


def train_tokenizer(texts: list[str]) -> Any:
    """Train a byte-level BPE on texts."""
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, vocab_size=VOCABULARY, special_tokens=[END], show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer, bos_token=END, eos_token=END, unk_token=END, model_max_length=CONTEXT
    )


def stream(tokenizer: Any, texts: list[str]) -> Tensor:
    """Concatenate all texts into one row of tokens, each preceded by the end mark."""
    return torch.tensor([token for text in texts for token in (tokenizer.eos_token_id, *tokenizer.encode(text))])


def rate_at(done: float) -> float:
    """Compute the share of the full learning rate after `done` of the steps: a linear warm-up, then a cosine down to 2
    %."""
    if done < WARM_UP:
        return done / WARM_UP
    return 0.02 + 0.49 * (1 + math.cos(math.pi * min(1.0, (done - WARM_UP) / (1 - WARM_UP))))


def train(model: Any, tokens: Tensor, steps: int) -> None:
    """Train on windows that begin anywhere in the row of tokens."""
    optimiser = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.1, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate_at((step + 1) / steps))
    model.train()
    for step in range(steps):
        starts = torch.randint(len(tokens) - CONTEXT, (BATCH,))
        ids = torch.stack([tokens[start : start + CONTEXT] for start in starts])
        loss = model(input_ids=ids, labels=ids).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step} of {steps}, loss {loss.item():.2f}", flush=True)
    model.eval()


@torch.no_grad()
def perplexity(model: Any, tokens: Tensor) -> float:
    """Compute the perplexity of a row of tokens, cut into windows of the whole context."""
    windows = tokens[: len(tokens) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    losses = [model(input_ids=part, labels=part).loss * len(part) for part in windows.split(16)]
    return math.exp(sum(losses).item() / len(windows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, help="folder of models and data")
    args = parser.parse_args()
    cache = cache_folder(args.cache)
    (data,) = need(cache, "data/brown")

    def make(folder: Path) -> None:
        torch.manual_seed(SEED)
        texts = {s: [row["text"] for row in read_lines(data / f"{s}.jsonl")] for s in ("train", "test")}
        tokenizer = train_tokenizer(texts["train"])
        tokens = {split: stream(tokenizer, each) for split, each in texts.items()}
        config = GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=CONTEXT,
            n_embd=WIDTH,
            n_layer=BLOCKS,
            n_head=HEADS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        model = GPT2LMHeadModel(config)
        began = time.perf_counter()
        train(model, tokens["train"], STEPS)
        seen, seconds = STEPS * BATCH * CONTEXT / len(tokens["train"]), time.perf_counter() - began
        print(
            f"{STEPS} steps in {seconds:.0f} s, {seen:.1f} times over {len(tokens['train'])} tokens; perplexity "
            f"of {len(tokens['test'])} held-out tokens {perplexity(model, tokens['test']):.1f}"
        )
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    once(cache / "models" / "gpt2-brown", make)


if __name__ == "__main__":
    main()
