"""The registry of families: what a spec file may name, and what an unsupported model is told."""

import msgspec
import pytest
import torch

from prism.errors import ConfigError, UnsupportedModelError
from prism.families import FAMILIES
from prism.nn.families import adapter_for
from prism.plan import LOCAL
from prism.spec import ModelSpec, load_model_spec
from prism.workload import build

SPEC = ModelSpec(name="m", family="vit", blocks=2, width=64, heads=4, mlp_width=256, tokens=17)


def test_an_unknown_family_in_a_spec_file_is_refused_with_the_known_ones(tmp_path):
    path = tmp_path / "spec.json"
    path.write_bytes(msgspec.json.encode(SPEC).replace(b'"vit"', b'"mamba"'))
    with pytest.raises(ConfigError, match="family 'mamba' is unknown; use one of vit, bert, gpt2, llama"):
        load_model_spec(path)


def test_a_spec_is_the_json_that_it_was():
    assert msgspec.json.encode(SPEC) == (
        b'{"name":"m","family":"vit","blocks":2,"width":64,"heads":4,"mlp_width":256,"tokens":17,"prefix_tokens":0,'
        b'"patch_values":0,"output_width":0,"head":"first","causal":false,"parameters":0,"kv_heads":0}'
    )


def test_what_cannot_be_distributed_is_told_every_family():
    with pytest.raises(UnsupportedModelError) as caught:
        adapter_for(torch.nn.Linear(2, 2))
    assert all(family.supported in str(caught.value) for family in FAMILIES.values())


def test_kernels_follow_the_structure_of_the_family():
    def kernels(family: str) -> list[str]:
        model = msgspec.structs.replace(SPEC, family=family, blocks=1)
        operations = build(model, LOCAL, 1).operations()
        return [kernel.op_class for op in operations if op.block == 0 for kernel in op.kernels]

    vit, gpt2, llama = (kernels(family) for family in ("vit", "gpt2", "llama"))
    assert vit.count("gemm") == gpt2.count("gemm") == 4 and llama.count("gemm") == 7
    assert gpt2.count("elementwise") - vit.count("elementwise") == 7
    assert llama.count("norm") == vit.count("norm") == 2


def test_a_family_of_plain_blocks_is_one_row_here(monkeypatch):
    """And its adapter: nothing else asks for a family's name."""
    monkeypatch.setitem(FAMILIES, "deit3", FAMILIES["vit"]._replace(name="deit3"))
    model = msgspec.structs.replace(SPEC, family="deit3")
    assert build(model, LOCAL, 1).flops(0) == build(SPEC, LOCAL, 1).flops(0)
