"""Loading is pure: the caller's environment and random state stay, and weights of a seed are the same tensors."""

import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from prism.errors import InputError
from prism.nn.zoo import describe, load_model

ROOT = Path(__file__).parents[3]
TINY = "vit_tiny_patch16_224"
FOLDERS = {
    "bert": (
        BertModel,
        BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, vocab_size=99),
    ),
    "gpt2": (GPT2LMHeadModel, GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=99, n_positions=64)),
    "llama": (
        LlamaForCausalLM,
        LlamaConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, vocab_size=99),
    ),
}


def state() -> tuple:
    """Everything global that drawing weights might move."""
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist(), dict(os.environ)


def digest(model: torch.nn.Module) -> str:
    """Hash of all weights' bytes."""
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        found.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return found.hexdigest()[:20]


@pytest.mark.parametrize(("name", "weights"), [("fashion-vit", None), ("fashion-vit", "random"), (TINY, "random")])
def test_loading_leaves_environment_and_random_state_alone(name, weights):
    torch.manual_seed(5)
    torch.randn(3)
    before = state()
    load_model(name, weights, seed=7)
    assert state() == before


@pytest.mark.cold
def test_describing_leaves_them_alone_also_in_a_process_that_loads_the_libraries():
    code = (
        "import os, torch; torch.manual_seed(5); before = torch.get_rng_state().tolist(), dict(os.environ)\n"
        "from prism.nn.zoo import describe\n"
        "for name in ('gpt2', 'fashion-vit'): describe(name)\n"
        "after = torch.get_rng_state().tolist(), dict(os.environ)\n"
        "assert after[0] == before[0]; assert after[1] == before[1], set(after[1].items()) ^ set(before[1].items())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("seed", [0, 7])
def test_the_weights_of_a_seed_are_those_of_a_seeded_process(seed):
    torch.manual_seed(seed)
    expected = digest(timm.create_model(TINY, pretrained=False))
    torch.manual_seed(99)
    assert digest(load_model(TINY, "random", seed).model) == expected


@pytest.mark.parametrize("family", FOLDERS)
def test_so_are_those_of_a_folder(tmp_path, family):
    cls, config = FOLDERS[family]
    cls(config).save_pretrained(tmp_path)
    torch.manual_seed(9)
    expected = digest(cls(cls.config_class.from_pretrained(tmp_path)))
    assert digest(load_model(str(tmp_path), "random", 9).model) == expected


def test_a_timm_models_weights_come_from_the_cache_and_from_no_hub(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("timm.models._hub.hf_hub_download", refused)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="nothing is downloaded"):
        load_model(TINY)
    made = load_model(TINY, "random", seed=3).model
    folder = tmp_path / "models--timm--vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    save_file(made.state_dict(), folder / "snapshots" / "abc" / "model.safetensors")
    loaded = load_model(TINY)
    assert digest(loaded.model) == digest(made) and loaded.weights == f"{TINY} (local cache)"


def test_a_name_is_described_without_weights():
    assert describe("gpt2").parameters == 124_439_808
    with pytest.raises(InputError, match="did you mean 'gpt2-medium'"):
        describe("gpt2-mediun")
