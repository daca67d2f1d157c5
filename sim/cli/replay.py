"""prism-sim replay: the decisions of a log, made again by the same policy, and scored by the simulator."""

import functools
import itertools
import math
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from prism.cost import CalibratedProfile, load_profile
from prism.decide.log import Answered, Decided, DecisionLog, read_decisions
from prism.decide.replay import Replay, replay
from prism.decide.table import can_run
from prism.errors import PrismError
from prism.link import LinkSpec
from prism.plan import ExecutionPlan
from sim.ask.point import Point, latency_ms
from sim.cli import options

STEP = 1.05  # rates within this factor are simulated as one
ANY_RATE = 1e9  # of a local plan, which uses no link


class DecisionCost(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds of all decided plans and of the best ones, by a profile, at the rates that the policy believed."""

    profile: str
    decided_ms: float
    oracle_ms: float
    regret: float


class ReplayReport(msgspec.Struct, frozen=True, kw_only=True):
    """A replay and what the log says of its day.

    `switches` counts changes of the decided plan, `failed` the batches answered locally after another plan failed.
    `served_ms` is the time of all answers; `scored` is null without a profile.
    """

    replay: Replay
    switches: int
    served_ms: float
    failed: int
    cut: bool
    scored: DecisionCost | None = None


class DifferentDecisionsError(PrismError):
    """A replay made other decisions than the log."""


def replay_command(
    decisions: Annotated[Path, typer.Argument(help="A log that prism-hw serve --decisions wrote.")],
    profile: Annotated[
        str | None, typer.Option(help="Score the decisions by a profile: orin-nano, x86-core, or a file.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Make a log's decisions again from what was observed; exit code 2 where any differs."""
    log = read_decisions(decisions)
    report = replay_report(log, load_profile(profile) if profile else None)
    if json:
        print(msgspec.json.encode(report).decode())
    else:
        _print(report)
    if not report.replay.identical:
        raise DifferentDecisionsError(
            f"{decisions}: {report.replay.first_difference}; the log was edited or another version made it"
        )


def replay_report(log: DecisionLog, profile: CalibratedProfile | None) -> ReplayReport:
    """Replay a log, and score its decisions by a profile, if there is one."""
    made = [entry for entry in log.entries if isinstance(entry, Decided)]
    answered = [entry for entry in log.entries if isinstance(entry, Answered)]
    return ReplayReport(
        replay=replay(log),
        switches=sum(a.plan != b.plan for a, b in itertools.pairwise(made)),
        served_ms=sum(entry.ms for entry in answered),
        failed=sum(bool(entry.failed) for entry in answered),
        cut=log.cut,
        scored=None if profile is None else _decision_cost(log, made, profile),
    )


def _decision_cost(log: DecisionLog, decisions: list[Decided], profile: CalibratedProfile) -> DecisionCost:
    """Simulate every decided plan, and the best of those that the devices and the link allowed."""
    model, cost = options.model_of(log.header.model), profile.model()
    plans = list(dict.fromkeys(row.plan for row in log.header.rows))

    @functools.cache
    def simulated_ms(plan: ExecutionPlan, batch: int, rate_bps: float) -> float:
        link = LinkSpec(kind="testbed", rate_bps=rate_bps)
        return latency_ms(profile, cost, Point(model=model, plan=plan, batch=batch, link=link))

    decided_ms = oracle_ms = 0.0
    for decision in decisions:
        seen = decision.observation
        rate = _stepped(seen.bandwidth_bps)
        able = [plan for plan in plans if can_run(plan, seen)]
        rates = {plan: rate if plan.ranks > 1 else ANY_RATE for plan in (*able, decision.plan)}
        decided_ms += simulated_ms(decision.plan, seen.batch, rates[decision.plan])
        oracle_ms += min(simulated_ms(plan, seen.batch, rates[plan]) for plan in able)
    return DecisionCost(
        profile=profile.name,
        decided_ms=decided_ms,
        oracle_ms=oracle_ms,
        regret=decided_ms / oracle_ms - 1 if oracle_ms else 0.0,
    )


def _stepped(rate: float | None) -> float:
    """Round a rate to a coarse grid, so that few rates are simulated."""
    return float(STEP ** round(math.log(rate or 1.0) / math.log(STEP)))


def _print(report: ReplayReport) -> None:
    console = Console()
    style, word = ("green", "identical") if report.replay.identical else ("red", "DIFFERENT")
    console.print(f"{report.replay.decisions} decisions made again: {word}", style=style)
    console.print(
        f"{report.switches} switches; answers took {report.served_ms / 1e3:.1f} s; {report.failed} after a failure"
    )
    if report.cut:
        console.print("the log's last line is not whole: read as far as it goes", style="yellow")
    if report.scored is not None:
        scored = report.scored
        console.print(
            f"by {scored.profile}, at the believed rates: {scored.decided_ms / 1e3:.1f} s decided, "
            f"{scored.oracle_ms / 1e3:.1f} s at best: regret {scored.regret:.1%}"
        )
