"""Offer a plan as a model of lm-eval (EleutherAI's lm_eval), where that package is installed: `pip install lm-eval`.

    import lm_eval
    from hw.evaluate.lm_eval_model import PrismLM
    from prism.plan import ExecutionPlan, Mode

    plan = ExecutionPlan(mode=Mode.SEGMENT_MEANS, devices=2, segments=10)
    print(lm_eval.simple_evaluate(model=PrismLM("my-gpt2", plan), tasks=["lambada_openai"])["results"])

Likelihoods alone: nothing is generated.
"""

from typing import Any

from hw.evaluate.likelihood import Ids, Likelihood
from prism.errors import ConfigError, InputError
from prism.nn.zoo import load_model
from prism.plan import ExecutionPlan

try:
    from lm_eval.api.model import TemplateLM
except ImportError as missing:
    raise ConfigError(f"lm-eval is not installed ({missing}); pip install lm-eval") from None


class PrismLM(TemplateLM):  # type: ignore[misc]
    """model: a transformers name or folder with a tokenizer. Arguments as of Likelihood. Raises PrismError."""

    def __init__(self, model: str, plan: ExecutionPlan, tokens: int | None = None, batch: int = 8) -> None:
        super().__init__()
        from transformers import AutoTokenizer

        loaded = load_model(model)
        self._likelihood = Likelihood(loaded, plan, tokens, batch)
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(loaded.folder or model, local_files_only=True)
        except Exception as error:
            raise InputError(
                f"{model}: no tokenizer ({str(error).splitlines()[0]}); save it beside the model"
            ) from None
        if self.tokenizer.eos_token_id is None:
            raise InputError(
                f"{model}: its tokenizer has no end-of-text token, which stands before a text; give it one"
            )

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token that a text begins with."""
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else int(begin)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> Ids:
        """Return the tokens of a text."""
        return list(self.tokenizer.encode(string, add_special_tokens=bool(add_special_tokens)))

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], Ids, Ids]], **_: Any
    ) -> list[tuple[float, bool]]:
        return self._likelihood.of([(context, continuation) for _, context, continuation in requests])

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each whole text."""
        texts = (self.tok_encode(request.args[0]) for request in requests)
        return [self._likelihood.rolling(ids, self.prefix_token_id) for ids in texts]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Raises ConfigError: there is no cache of keys and values across ranks."""
        raise ConfigError("a distributed model generates no text: choose tasks of likelihood, not generate_until")
