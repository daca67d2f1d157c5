"""The one seam between what is decided and what executes it: hardware and simulator look the same."""

from typing import Protocol

import msgspec

from prism.plan import ExecutionPlan
from prism.spec import ModelSpec
from prism.trace import Trace


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """What to run: a model, the samples of a batch, and how many batches after `warmups` unmeasured ones."""

    model: ModelSpec
    batch: int
    batches: int = 1
    warmups: int = 0
    seed: int = 0


class Backend(Protocol):
    """Runs a plan and says where the time went."""

    def run(self, plan: ExecutionPlan, workload: Workload) -> Trace:
        """Raises PlanError where the plan doesn't fit the workload, ExchangeError where the group breaks."""
        ...
