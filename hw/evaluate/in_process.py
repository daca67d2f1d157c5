"""Run a plan with every part in this process."""

from typing import Any

import torch

from prism.nn.distribute import distribute
from prism.nn.exchange import Exchange, run_in_process
from prism.plan import ExecutionPlan


def together(model: torch.nn.Module, plan: ExecutionPlan, call: dict[str, Any]) -> Any:
    """Compute a plan's output, with one copy of the weights. Raises PrismError."""

    def body(exchange: Exchange) -> Any:
        part = distribute(model, plan, exchange)
        return part(**call) if exchange.rank == 0 else part.follow()

    return run_in_process(plan.ranks, body)[0]
