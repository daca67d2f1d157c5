"""A made-up profile with round numbers, and models, for tests of the cost model and the simulator."""

from collections.abc import Sequence
from typing import Any

import msgspec

from prism.cost import CalibratedProfile, CostModel, Term
from prism.spec import ModelSpec, PowerProfile
from prism.workload import Kernel

VALUES = {
    "gemm.s_per_flop": 1.5e-12,
    "attention.s_per_flop": 3e-12,
    "memory.s_per_byte": 2e-11,
    "kernel.fixed_s": 2e-5,
    "block.fixed_s": 1e-3,
    "overlap.power": 1.5,
    "link.gain": 1.0,
    "link.message_s": 3e-4,
    "d2h.fixed_s": 2e-4,
    "d2h.s_per_byte": 1e-9,
    "h2d.fixed_s": 2e-4,
    "h2d.s_per_byte": 1e-9,
}
POWER = PowerProfile(
    name="test", covers="nothing real", idle_w=1.0, compute_w=7.0, copy_w=5.0, transmit_w=4.0, receive_w=3.0, wait_w=2.0
)
VIT = ModelSpec(
    name="vit_base",
    family="vit",
    blocks=12,
    width=768,
    heads=12,
    mlp_width=3072,
    tokens=197,
    prefix_tokens=1,
    patch_values=768,
    output_width=1000,
)
SMALL = ModelSpec(
    name="small", family="vit", blocks=3, width=64, heads=4, mlp_width=256, tokens=65, prefix_tokens=1, patch_values=48
)
GPT = ModelSpec(name="g", family="gpt2", blocks=2, width=64, heads=4, mlp_width=256, tokens=48, causal=True, head="all")


def terms(**changes: float) -> tuple[Term, ...]:
    """The terms, with changes given as gemm__s_per_flop=..."""
    values = {**VALUES, **{name.replace("__", "."): value for name, value in changes.items()}}
    return tuple(Term(name=name, value=value, origin="prior", source="made up") for name, value in values.items())


def profile(**changes: Any) -> CalibratedProfile:
    base = CalibratedProfile(
        name="test",
        device="none",
        power_mode="none",
        note="made up",
        staged=True,
        terms=terms(),
        ranges={},
        traces=(),
        power=POWER,
    )
    return msgspec.structs.replace(base, **changes)


def step_s(cost: CostModel, kernels: Sequence[Kernel], *, exchanged: bool = False) -> float:
    """Seconds of kernels one after the other, at the full clock."""
    device = sum(cost.device_s(kernel) for kernel in kernels)
    return cost.joined(cost.launch_s(len(kernels), exchanged=exchanged), device)
