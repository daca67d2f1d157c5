"""What the contract doesn't reach: every head, refusals, a folder, a spec file's workload."""

import msgspec
import pytest
import torch
from support.cases import LLAMA, build
from transformers import (
    LlamaConfig,
    LlamaForQuestionAnswering,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    LlamaModel,
)

from prism.errors import UnsupportedModelError
from prism.nn.distribute import distribute
from prism.nn.exchange import run_in_process
from prism.nn.families import adapter_for
from prism.nn.zoo import describe, load_model
from prism.plan import ExecutionPlan, Mode
from prism.spec import load_model_spec
from prism.workload import build as build_workload

HEADS = (LlamaModel, LlamaForSequenceClassification, LlamaForTokenClassification, LlamaForQuestionAnswering)
CALL = {"input_ids": torch.randint(1, 99, (3, 11), generator=torch.Generator().manual_seed(0))}
PLAN = ExecutionPlan(mode=Mode.FULL, devices=2)


def small(cls: type = LlamaModel, **options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return cls(LlamaConfig(**{**LLAMA, "pad_token_id": 0, "use_cache": False, **options})).eval()


def distributed(model, call):
    def body(exchange):
        whole = distribute(model, PLAN, exchange)
        return whole.follow() if exchange.rank else whole(**call)

    with torch.no_grad():
        return run_in_process(2, body)[0]


@pytest.mark.parametrize("cls", HEADS)
def test_every_head_is_the_local_models(cls):
    model = small(cls)
    with torch.no_grad():
        theirs = model(**CALL)
    ours = distributed(model, CALL)
    assert type(ours) is type(theirs)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert (ours[name] - tensor).abs().max() / tensor.abs().max() < 1e-4


@pytest.mark.parametrize("rope", ["linear", "yarn"])
def test_scaled_rotations_are_the_local_models(rope):
    parameters = dict(rope_type=rope, rope_theta=50.0, factor=2.0, original_max_position_embeddings=32)
    model = small(rope_parameters=parameters)
    with torch.no_grad():
        theirs = model(**CALL)[0]
    assert (distributed(model, CALL)[0] - theirs).abs().max() / theirs.abs().max() < 1e-4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(past_key_values=object()), "past_key_values=object can't be distributed; pass whole prompts"),
        (dict(cache=object()), "pass whole prompts"),
        (dict(use_cache=True), "pass use_cache=False"),
        (dict(position_ids=torch.arange(11)[None]), "position_ids=Tensor can't be distributed; leave them out"),
        (dict(output_attentions=True), "run it locally"),
        (dict(attention_mask=torch.ones(3, 1, 11, 11)), "attention_mask of 4 dimensions"),
    ],
)
def test_calls_that_would_be_wrong_are_refused(arguments, words):
    with pytest.raises(UnsupportedModelError, match=words):
        adapter_for(small()).padding({**CALL, **arguments})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(rope_parameters=dict(rope_type="dynamic", rope_theta=10.0, factor=2.0)), "rope_type dynamic"),
        (dict(head_dim=32), "4 heads of 32 channels at width 64"),
    ],
)
def test_models_that_would_be_wrong_are_refused(options, words):
    with pytest.raises(UnsupportedModelError, match=words):
        adapter_for(small(**options))


def test_layers_of_another_kind_are_refused():
    model = small()
    model.layers[1] = torch.nn.Identity()
    with pytest.raises(UnsupportedModelError, match="a layer that isn't LlamaDecoderLayer"):
        adapter_for(model)


def test_a_folder_and_its_spec_file_give_the_same_workload(tmp_path):
    build("llama_lm").save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    assert loaded.kind == "text"
    spec = describe(str(tmp_path))
    assert (spec.family, spec.heads, spec.kv_heads, spec.kv_width, spec.structure.gated) == ("llama", 4, 2, 32, True)
    assert spec.parameters == sum(each.numel() for each in loaded.model.parameters())
    path = tmp_path / "spec.json"
    path.write_bytes(msgspec.json.encode(spec))
    read = load_model_spec(path)
    assert read == spec
    narrow, wide = (build_workload(each, PLAN, 2, 16) for each in (read, msgspec.structs.replace(read, kv_heads=4)))
    # two matrices of keys and values half as wide, for 8 own rows and, at rank 1, 8 received ones
    assert wide.flops(1) - narrow.flops(1) == 3 * 2 * 2 * (2 * 16) * 64 * 32
    assert narrow.block_bytes() == wide.block_bytes() == 2 * 8 * 64 * 4  # rows cross, as wide as ever


def test_kv_heads_that_do_not_divide_the_heads_are_refused():
    with pytest.raises(ValueError, match="kv_heads 3 must divide heads 4"):
        msgspec.structs.replace(adapter_for(small()).spec, kv_heads=3)
