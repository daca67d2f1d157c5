import msgspec
import pytest

from prism.errors import PlanError
from prism.nn.families import adapter_for
from prism.nn.zoo import describe, load_model
from prism.plan import LOCAL, ExecutionPlan, Mode
from prism.workload.kernels import WORD
from prism.workload.memory import block_parameters, check_memory, memory_bytes, weights

MODELS = ["vit_base_patch16_224", "bert-base-uncased", "gpt2", "HuggingFaceTB/SmolLM2-135M"]
TWO_STAGES = ExecutionPlan(mode=Mode.LOCAL, devices=2, stages=2)
TWO_REPLICAS = ExecutionPlan(mode=Mode.LOCAL, devices=2, replicas=2)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_split_as_the_model_has_them(name):
    model = load_model(name, "random", device="meta").model
    adapter = adapter_for(model)
    blocks = adapter.spec.blocks
    counted = dict.fromkeys((-1, 0, blocks), 0)
    for path, parameter in model.named_parameters(remove_duplicate=False):
        owner = adapter.owner(path)
        if owner in counted:
            counted[owner] += parameter.numel()
    split = weights(adapter.spec)
    assert split.block == block_parameters(adapter.spec) == counted[0]
    assert split.embedding == pytest.approx(counted[-1], rel=0.03)  # BERT's pooler counts as one of the ends
    assert split.head == pytest.approx(counted[blocks], rel=0.02, abs=1_000_000)


def test_two_stages_hold_little_more_than_half_each_and_replicas_hold_all():
    model = describe("vit_base_patch16_224")
    (whole,) = memory_bytes(model, LOCAL, 4)
    first, second = memory_bytes(model, TWO_STAGES, 4)
    assert max(first, second) < 0.62 * whole
    assert model.parameters * WORD < first + second
    assert min(memory_bytes(model, TWO_REPLICAS, 4)) > model.parameters * WORD


def test_a_larger_batch_takes_more_but_not_where_microbatches_pass():
    model = describe("vit_base_patch16_224")
    assert memory_bytes(model, LOCAL, 8)[0] > memory_bytes(model, LOCAL, 1)[0]
    small, large = (memory_bytes(model, TWO_STAGES, batch)[1] for batch in (1, 8))
    assert large - small < 1e6  # logits alone


def test_a_model_without_a_count_of_parameters():
    spec = msgspec.structs.replace(describe("vit_base_patch16_224"), parameters=0)
    known = memory_bytes(describe("vit_base_patch16_224"), LOCAL, 1)[0]
    assert memory_bytes(spec, LOCAL, 1)[0] == pytest.approx(known, rel=0.01)


def test_a_plan_that_does_not_fit_is_refused():
    with pytest.raises(PlanError, match="use at most 1 replicas"):
        memory_bytes(describe("gpt2"), TWO_REPLICAS, 1)


def test_too_little_memory_is_refused_with_both_figures_and_the_stages_that_fit():
    model = describe("vit_base_patch16_224")
    (whole,) = memory_bytes(model, LOCAL, 1)
    limit = 0.7 * whole
    with pytest.raises(PlanError, match=r"local: rank 0 needs 3\d\d.* MB .* limit is 2\d\d.* MB; use --stages 2"):
        check_memory(model, LOCAL, 1, None, [limit])
    check_memory(model, TWO_STAGES, 1, None, [limit, limit])
    check_memory(model, LOCAL, 1, None, [None])
    with pytest.raises(PlanError, match="no number of stages fits"):
        check_memory(model, LOCAL, 1, None, [1e6])
