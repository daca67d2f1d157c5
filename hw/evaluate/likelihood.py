"""Compute the likelihood of texts under a plan of a causal model, as language benchmarks ask for it."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hw.evaluate.in_process import together
from hw.inputs.collate import collate_texts
from hw.inputs.samples import Sample
from prism.errors import InputError
from prism.nn.families import adapter_for
from prism.nn.zoo import Loaded
from prism.plan import ExecutionPlan

Ids = list[int]


class Likelihood:
    """Log-likelihoods under a plan. tokens: the longest input; default: all positions of the model.

    Raises InputError for a model that predicts no tokens, and PlanError for a plan that doesn't fit.
    """

    def __init__(self, loaded: Loaded, plan: ExecutionPlan, tokens: int | None = None, batch: int = 8) -> None:
        if not (adapter_for(loaded.model).causal and hasattr(loaded.model, "lm_head")):
            raise InputError(f"{type(loaded.model).__name__} predicts no next token; use one such as GPT2LMHeadModel")
        positions = loaded.model.config.max_position_embeddings
        self.tokens = min(tokens or positions, positions)
        plan.partition(self.tokens)
        self._model, self._plan, self._batch = loaded.model, plan, batch
        self._least = plan.ranks * (plan.segments or 1)  # shorter inputs are padded to what the plan needs

    @torch.no_grad()
    def of(self, pairs: Sequence[tuple[Ids, Ids]]) -> list[tuple[float, bool]]:
        """Score each continuation of a context: its log-likelihood, and whether each of its tokens was the likeliest.

        A context too long loses its beginning. Raises InputError.
        """
        inputs = [self._input(*pair) for pair in pairs]
        order = sorted(range(len(pairs)), key=lambda k: len(inputs[k]))  # little padding
        scores = {}
        for start in range(0, len(order), self._batch):
            numbers = order[start : start + self._batch]
            samples = [Sample(name=str(k), label=None, content=inputs[k]) for k in numbers]
            call = collate_texts(samples, max(self._least, len(inputs[numbers[-1]])))
            logits_BTV = together(self._model, self._plan, call).logits
            for k, logits_TV in zip(numbers, logits_BTV, strict=True):
                stop, next_T = len(inputs[k]), torch.tensor(pairs[k][1])
                scores[k] = _likelihood(logits_TV[stop - len(next_T) : stop], next_T)
        return [scores[k] for k in range(len(pairs))]

    def rolling(self, ids: Ids, prefix: int) -> float:
        """Score a whole text in windows of `tokens`; its first token is predicted from `prefix`."""
        return sum(value for value, _ in self.of(list(windows(ids, prefix, self.tokens))))

    def _input(self, context: Ids, continuation: Ids) -> Ids:
        if not context or not 0 < len(continuation) <= self.tokens:
            raise InputError(
                f"{len(context)} tokens and {len(continuation)} after them: at least one of each, and at most "
                f"{self.tokens} after"
            )
        return [*context, *continuation][-self.tokens - 1 : -1]


def windows(ids: Ids, prefix: int, size: int) -> Iterator[tuple[Ids, Ids]]:
    """Cut a text into contexts and continuations that predict each token once; the last reaches back to be full."""
    before = [prefix, *ids]
    for start in range(0, len(ids), size):
        stop = min(start + size, len(ids))
        yield before[max(stop - size, 0) : start + 1], ids[start:stop]


def _likelihood(logits_TV: Tensor, next_T: Tensor) -> tuple[float, bool]:
    chosen_T = logits_TV.float().log_softmax(-1).gather(-1, next_T[:, None])
    return float(chosen_T.sum()), bool((logits_TV.argmax(-1) == next_T).all())
