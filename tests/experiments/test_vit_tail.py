"""Training under a plan, with the bundled ViT: gradients are those of one device where nothing is compressed, and go
through the means where something is."""

import pytest
import torch

from experiments.fine_tune.run import recovered
from experiments.lib import vit_tail
from prism.nn.zoo import load_model
from prism.partition import Rows
from prism.plan import ExecutionPlan, Mode

TOKENS, WIDTH, FIRST, LAST = 50, 64, 2, 6


def gradients(plan: ExecutionPlan) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the class token's sum: with respect to the input rows, and to a weight of the first block that is run."""
    model = load_model("fashion-vit").model
    weight = model.blocks[FIRST].attn.qkv.weight.requires_grad_(True)
    x = torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    out = vit_tail.blocks_under(model, plan, FIRST, LAST, Rows(start=0, stop=1), x)
    out.sum().backward()
    assert out.shape == (2, 1, WIDTH) and x.grad is not None and weight.grad is not None
    return x.grad, weight.grad


@pytest.mark.parametrize("devices", [1, 2, 3])
def test_full_exchange_has_the_gradients_of_the_model_itself(devices):
    model = load_model("fashion-vit").model
    weight = model.blocks[FIRST].attn.qkv.weight.requires_grad_(True)
    x = torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    model.blocks[FIRST:LAST](x)[:, 0].sum().backward()
    plan = ExecutionPlan(mode=Mode.FULL, devices=devices) if devices > 1 else vit_tail.LOCAL
    for ours, theirs in zip(gradients(plan), (x.grad, weight.grad), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_gradients_reach_the_other_part_through_its_means():
    """Rows of one segment count alike in the first exchange; the other part's own rows differ only through it."""
    rows, _ = gradients(ExecutionPlan(mode=Mode.SEGMENT_MEANS, devices=2, segments=1))
    assert (rows[:, TOKENS // 2 :].abs().sum(-1) > 0).all()


def test_the_share_recovered_is_that_of_the_loss():
    local, before, after = (torch.arange(1000).numpy() < k for k in (900, 800, 875))
    found = recovered(local, before, after, seed=0)
    assert found["share"] == 0.75
    assert 0.6 < found["ci90"][0] < 0.75 < found["ci90"][1] < 0.9
