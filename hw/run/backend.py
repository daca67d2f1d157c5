"""Run plans as prism.backend.Backend asks, over real ranks on this machine."""

import msgspec

from hw.machine.scratch import scratch
from hw.run.config import RunConfig
from hw.run.launch import Site
from hw.run.messages import RunStep
from hw.run.processes import Ranks
from prism.backend import Workload
from prism.errors import PlanError
from prism.nn.zoo import describe
from prism.plan import ExecutionPlan
from prism.trace import Trace, read_trace


class GlooBackend:
    """Run plans of one model over one link.

    `config` has all that a plan and a workload lack: the model's name, its weights, the link, threads and timeouts.
    """

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._spec = describe(config.model)

    def run(self, plan: ExecutionPlan, workload: Workload) -> Trace:
        """Raises PlanError for another model's workload, or a plan that doesn't fit; ExchangeError."""
        if workload.model != self._spec:
            raise PlanError(
                f"the workload is of {workload.model.name}, this backend runs {self._spec.name}; "
                f"make one for each model"
            )
        plan.check(workload.model, workload.batch, self._config.tokens)
        with scratch() as folder:
            trace = folder / "trace.jsonl"
            config = msgspec.structs.replace(
                self._config,
                plan=plan,
                batch=workload.batch,
                batches=workload.batches,
                warmups=workload.warmups,
                seed=workload.seed,
                trace=str(trace),
            )
            site = Site(config.link_spec(), plan.ranks, config)
            with site, Ranks(site.jobs("GlooBackend.run"), site.folder) as ranks:
                ranks.perform(RunStep(config=config, score=False), lambda _: None)
            return read_trace(trace)
