"""prism-sim serve-sim: requests that arrive, wait, and are answered."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from prism.cli.option_groups import OptionGroup
from prism.cli.options import option
from prism.cost import load_profile
from prism.decide.accuracy import load_accuracy
from prism.decide.policy import FixedPolicy, Policy, PrismPolicy
from prism.decide.table import Objective, Table, table_of
from prism.errors import ConfigError
from prism.labels import mode_label
from prism.perfmap import load_map
from prism.plan import LOCAL, ExecutionPlan
from prism.spec import ModelSpec
from prism.units import parse_seconds
from prism.workload.memory import check_memory
from sim.ask.memory_limit import memory_limit
from sim.ask.point import Point, outside_of
from sim.cli import options
from sim.cli.answer_tables import extrapolated, facts_view, served_facts, served_row
from sim.cli.predict import every_way
from sim.cli.presentation import Presentation
from sim.engine.backend import Machines, identical
from sim.serving.fleet import Fault
from sim.serving.requests import Batching, parse_arrivals
from sim.serving.scenario import PredictingPolicy, Scenario, ServingReport, simulate_serving

REQUESTS, POLICY, FAULTS = "Requests", "Policy", "Faults"  # panels of --help


class RequestOptions(OptionGroup, frozen=True, kw_only=True):
    """How requests arrive, and how they are batched."""

    arrivals: Annotated[
        str, option("poisson:RATE, server:RATE, single-stream, multi-stream:SAMPLES, offline, trace:FILE.csv", REQUESTS)
    ] = "poisson:5"
    requests: Annotated[int, option("How many.", REQUESTS, min=1, max=10_000_000)] = 500
    max_batch: Annotated[int, option("Requests that go together at most.", REQUESTS, min=1)] = 1
    max_wait: Annotated[str, option("How long the first of a batch waits for others.", REQUESTS)] = "0ms"

    def scenario(self, model: ModelSpec, faults: "FaultOptions", seed: int) -> Scenario:
        """Describe what is served. Raises ConfigError."""
        return Scenario(
            model=model,
            arrivals=parse_arrivals(self.arrivals, self.requests),
            batching=Batching(largest=self.max_batch, patience_s=parse_seconds(self.max_wait)),
            faults=tuple(faults.faults()),
            timeout_s=parse_seconds(faults.timeout),
            seed=seed,
        )


class PolicyOptions(OptionGroup, frozen=True, kw_only=True):
    """Which plan a batch runs under, and what the policy knows."""

    mode: Annotated[
        Literal["local", "full", "segment_means", "replicas", "stages", "best"],
        option("best: what is predicted to be fastest, or what the policy of prism-hw serve chooses by --map.", POLICY),
    ] = "best"
    map_file: Annotated[Path | None, option("Performance map that the policy decides by.", POLICY, "--map")] = None
    accuracy: Annotated[Path | None, option("Accuracy table of prism-hw evaluate, for --least-agreement.", POLICY)] = (
        None
    )
    least_agreement: Annotated[
        float | None, option("With the uncompressed model, of what the policy may choose.", POLICY, min=0, max=1)
    ] = None

    memory: options.Memory = None

    def table(self, model: str) -> Table | None:
        """Load what the policy of prism-hw serve decides by, if a map is given. Raises ConfigError."""
        if self.map_file is None or self.mode != "best":
            if self.map_file or self.accuracy or self.least_agreement is not None:
                raise ConfigError(
                    "--map, --accuracy and --least-agreement are the policy's: leave --mode at best, and give a --map"
                )
            return None
        return table_of([load_map(self.map_file)], model, [load_accuracy(self.accuracy)] if self.accuracy else [])

    def plans(self, possible: Sequence[ExecutionPlan], table: Table | None) -> list[ExecutionPlan]:
        """Choose the plans that may run: of the table, of the mode, or all. Raises ConfigError where there is none."""
        if table is not None:
            return [LOCAL, *(plan for plan in table.plans if plan.ranks > 1)]
        chosen = [plan for plan in possible if self.mode in ("best", mode_label(plan))]
        if not chosen:
            raise ConfigError(
                f"mode {self.mode} needs at least 2 devices, and replicas as many requests in a batch; raise --devices "
                f"or --max-batch"
            )
        return chosen

    def policy(self, machines: Machines, model: ModelSpec, plans: list[ExecutionPlan], table: Table | None) -> Policy:
        """Choose who decides: prism-hw serve's policy by a table, the simulator itself, or nobody."""
        if table is not None:
            return PrismPolicy()
        if self.mode != "best":
            return FixedPolicy(plans[0])
        return PredictingPolicy(machines, model, [plan for plan in plans if plan.ranks > 1])


class FaultOptions(OptionGroup, frozen=True, kw_only=True):
    """What goes wrong meanwhile."""

    fail: Annotated[list[str] | None, option("A device lost: NUMBER@TIME[,silent], as in 1@2s.", FAULTS)] = None
    outage: Annotated[list[str] | None, option("The link out: FROM-TO, as in 3s-4s.", FAULTS)] = None
    timeout: Annotated[str, option("After it a batch without answer has failed.", FAULTS)] = "60s"

    def faults(self) -> list[Fault]:
        """Parse the faults. Raises ConfigError."""
        return [*(_lost_device(text) for text in self.fail or []), *(_outage(text) for text in self.outage or [])]


def serve_command(
    model: options.ModelOptions,
    requests: RequestOptions,
    policy: PolicyOptions,
    faults: FaultOptions,
    plan: options.PlanOptions,
    link: options.VaryingLinkOptions,
    output: options.OutputOptions,
    profile: options.Profile = "orin-nano",
    seed: options.Seed = 0,
) -> None:
    """Serve requests that arrive, wait and are answered: percentiles, throughput, queue, joules per sample."""
    costs, spec = load_profile(profile), model.spec()
    machines = identical(costs, costs.model(), plan.count, link.spec(), kind=link.topology)
    scenario = requests.scenario(spec, faults, seed)
    check_memory(spec, LOCAL, requests.max_batch, None, [memory_limit(policy.memory, costs)])  # all fall back to it
    table = policy.table(options.map_name(model.model, spec))
    plans = policy.plans(every_way(plan, costs, spec, requests.max_batch), table)
    deciding = policy.policy(machines, spec, plans, table)
    served = simulate_serving(machines, scenario, deciding, table, Objective(least_agreement=policy.least_agreement))
    served = msgspec.structs.replace(served, outside=_outside(machines, spec, plans, requests.max_batch))
    title = f"Serving: {requests.arrivals}, batches of at most {requests.max_batch}, mode {policy.mode}"
    _served_answer(served, title, costs.name).show(output)


def _served_answer(served: ServingReport, title: str, profile: str) -> Presentation:
    facts = served_facts(served)
    return Presentation(
        title=title,
        profile=profile,
        whole=served,
        view=facts_view(facts),
        lines=extrapolated(served.outside),
        rows=[served_row(served)],
        facts=facts,
    )


def _outside(machines: Machines, model: ModelSpec, plans: Sequence[ExecutionPlan], max_batch: int) -> tuple[str, ...]:
    """In what the plans that may run lie outside of the profile's data, each reason once."""
    points = [
        Point(model=model, plan=plan, batch=batch, link=machines.link, topology=machines.kind)
        for plan in dict.fromkeys([LOCAL, *plans])
        for batch in (max(1, plan.least_batch), max_batch)
    ]
    return tuple(dict.fromkeys(line for point in points for line in outside_of(machines.profile, point)))


def _lost_device(text: str) -> Fault:
    """Parse NUMBER@TIME[,silent]. Raises ConfigError."""
    device, _, rest = text.partition("@")
    moment, _, manner = rest.partition(",")
    if not device.isdigit() or not moment or manner not in ("", "silent"):
        raise ConfigError(f"fail {text!r} is unknown; write NUMBER@TIME or NUMBER@TIME,silent, as in 1@2s")
    return Fault(kind="device", device=int(device), at_s=parse_seconds(moment), silent=manner == "silent")


def _outage(text: str) -> Fault:
    """Parse FROM-TO. Raises ConfigError."""
    begin, _, end = text.partition("-")
    start, stop = parse_seconds(begin), parse_seconds(end)
    if stop <= start:
        raise ConfigError(f"outage {text!r} ends before it begins; write FROM-TO, as in 3s-4s")
    return Fault(kind="link", at_s=start, until_s=stop)
