"""Small models of every family, and one body that runs a case as one rank of any exchange."""

from typing import Any

import msgspec
import timm.models.vision_transformer as vit
import torch
import transformers
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
)

from prism.nn.distribute import distribute
from prism.nn.exchange import Exchange, run_in_process
from prism.plan import ExecutionPlan

VIT = dict(img_size=32, patch_size=8, num_classes=7, embed_dim=64, depth=3, num_heads=4, qkv_bias=True)
VITS: dict[str, dict[str, Any]] = {
    "vit": {},
    "vit_registers": dict(reg_tokens=4, init_values=0.5, no_embed_class=True),
    "vit_mean": dict(global_pool="avg"),
    "vit_mean_no_class": dict(global_pool="avg", class_token=False),
    "vit_mean_after_norm": dict(global_pool="avg", fc_norm=False),
    "vit_map": dict(global_pool="map", class_token=False),
    "vit_post": dict(block_fn=vit.ResPostBlock, init_values=0.5),
    "vit_qk": dict(qk_norm=True, pre_norm=True, scale_attn_norm=True),
}
BERT = dict(hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128, vocab_size=99)
BERTS = {"bert": BertModel, "bert_classifier": BertForSequenceClassification, "bert_lm": BertForMaskedLM}
GPT = dict(n_embd=64, n_layer=3, n_head=4, vocab_size=99, n_positions=64, use_cache=True)
GPTS = {"gpt2": GPT2Model, "gpt2_lm": GPT2LMHeadModel, "gpt2_scaled": GPT2LMHeadModel, "gpt2_last": GPT2LMHeadModel}
LLAMA = dict(
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=96,
    vocab_size=99,
    max_position_embeddings=64,
    attention_bias=True,
    mlp_bias=True,
)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=100.0,
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
LLAMAS: dict[str, dict[str, Any]] = {"llama_lm": {}, "llama_last": dict(num_key_value_heads=1, rope_parameters=LLAMA3)}
FAMILIES = (*VITS, *BERTS, *GPTS, *LLAMAS)
# transformers' other heads, by class name; a GPT2DoubleHeadsModel takes no padding
HEADS: dict[str, Any] = {
    **dict.fromkeys(
        (
            "BertForPreTraining",
            "BertForNextSentencePrediction",
            "BertForMultipleChoice",
            "BertForTokenClassification",
            "BertForQuestionAnswering",
        ),
        BertConfig(**BERT),
    ),
    **dict.fromkeys(
        (
            "GPT2DoubleHeadsModel",
            "GPT2ForSequenceClassification",
            "GPT2ForTokenClassification",
            "GPT2ForQuestionAnswering",
        ),
        GPT2Config(**GPT, pad_token_id=0),
    ),
    **dict.fromkeys(
        ("LlamaModel", "LlamaForSequenceClassification", "LlamaForTokenClassification", "LlamaForQuestionAnswering"),
        LlamaConfig(**LLAMA, pad_token_id=0),
    ),
}
CHOICES = {"BertForMultipleChoice": 2, "GPT2DoubleHeadsModel": 2}  # texts of a sample
TOKENS = 23  # of a text; a multiple of no P and no L in the tests


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One model, one plan, one input."""

    family: str
    plan: ExecutionPlan
    batch: int = 2
    padding: str = ""  # "right" or "left"
    seed: int = 0
    tokens: int = TOKENS  # of a text
    under_way: int = 0  # batches that are begun before the first is answered; their samples are rolled

    @property
    def causal(self) -> bool:
        return self.family not in VITS and not self.family.lower().startswith("bert")


def build(family: str, seed: int = 0) -> nn.Module:
    """A model with every parameter random: zero biases and unit norms would hide mistakes."""
    torch.manual_seed(seed)
    model: nn.Module
    if family in VITS:
        model = vit.VisionTransformer(**{**VIT, **VITS[family]})
    elif family in HEADS:
        model = getattr(transformers, family)(HEADS[family])
    elif family in BERTS:
        model = BERTS[family](BertConfig(**BERT))
    elif family in LLAMAS:
        model = LlamaForCausalLM(LlamaConfig(**{**LLAMA, **LLAMAS[family]}))
    else:
        options = dict(scale_attn_by_inverse_layer_idx=True) if family == "gpt2_scaled" else {}
        model = GPTS[family](GPT2Config(**GPT, **options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.08)
    return model.eval()


def inputs(case: Case) -> dict[str, Any]:
    torch.manual_seed(case.seed + 1)
    if case.family in VITS:
        return {"x": torch.randn(case.batch, 3, 32, 32)}
    texts = (case.batch, CHOICES[case.family]) if case.family in CHOICES else (case.batch,)
    call: dict[str, Any] = {"input_ids": torch.randint(0, 99, (*texts, case.tokens))}
    if case.padding:
        hidden = mask(case)
        call["attention_mask"] = torch.stack([hidden] * texts[1], dim=1) if len(texts) > 1 else hidden
    if case.family == "GPT2DoubleHeadsModel":
        call["mc_token_ids"] = torch.randint(0, case.tokens, texts)
    if case.family.endswith("_last"):
        call["logits_to_keep"] = 1
    if case.causal:
        call["use_cache"] = False
    return call


def mask(case: Case) -> Tensor:
    """Sample b has 1 + 5 b real tokens less than all; the last one has but two."""
    real = torch.ones(case.batch, case.tokens, dtype=torch.long)
    for sample in range(case.batch):
        hidden = case.tokens - 2 if sample == case.batch - 1 else min(1 + 5 * sample, case.tokens - 2)
        real[sample, slice(0, hidden) if case.padding == "left" else slice(case.tokens - hidden, None)] = 0
    return real


def main_tensor(output: Any) -> Tensor:
    """What is compared: all that a head returns, in one tensor."""
    if isinstance(output, Tensor):
        return output
    if "start_logits" in output:
        return torch.stack([output.start_logits, output.end_logits], dim=-1)
    if "seq_relationship_logits" in output:
        each = output.prediction_logits
        return torch.cat([each, output.seq_relationship_logits[:, None].expand(-1, each.shape[1], -1)], dim=-1)
    if "mc_logits" in output:
        return torch.cat([output.logits.flatten(1), output.mc_logits], dim=1)
    return output.logits if "logits" in output else output.last_hidden_state


def real_rows(case: Case, out: Tensor) -> Tensor:
    """The outputs at real tokens: what stands at padding has no meaning."""
    if not case.padding or out.ndim < 3 or out.shape[1] != case.tokens:
        return out
    return out[mask(case).bool()]


@torch.no_grad()
def run_rank(case: Case, exchange: Exchange, whole: nn.Module, call: dict[str, Any]) -> Tensor | None:
    """The case's output on the leader, None elsewhere."""
    model = distribute(whole, case.plan, exchange)
    if exchange.rank >= case.plan.ranks:
        return None
    if exchange.rank:
        for own in _rolled(case, call) if case.under_way else [call]:
            model.follow(**(own if case.plan.embed == "each" else {}))
        return None
    if case.under_way:
        answers = [model.start(**each) for each in _rolled(case, call)]
        return torch.cat([main_tensor(answer.wait()) for answer in answers])
    return main_tensor(model(**call))


def _rolled(case: Case, call: dict[str, Any]) -> list[dict[str, Any]]:
    """The batches that are under way together."""
    return [
        {name: value.roll(k, 0) if isinstance(value, Tensor) else value for name, value in call.items()}
        for k in range(case.under_way)
    ]


def in_process(case: Case) -> Tensor:
    """The case's output with every rank a thread of this process, sharing one model."""
    whole, call = build(case.family, case.seed), inputs(case)
    out = run_in_process(case.plan.ranks, lambda exchange: run_rank(case, exchange, whole, call))[0]
    assert out is not None
    return out


@torch.no_grad()
def local(case: Case) -> Tensor:
    model, call = build(case.family, case.seed), inputs(case)
    return torch.cat([main_tensor(model(**each)) for each in (_rolled(case, call) if case.under_way else [call])])


def relative_error(case: Case, out: Tensor) -> float:
    ours, theirs = real_rows(case, out), real_rows(case, local(case))
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())
