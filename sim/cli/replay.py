"""prism-sim replay: the decisions of a served day, made again by the same policy, and scored by the simulator."""

import itertools
import math
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from prism.cost import CalibratedProfile, load_profile
from prism.decide.log import Answered, Decided, DecisionLog, Replay, read_decisions, replay
from prism.errors import PrismError
from prism.link import LinkSpec
from prism.plan import ExecutionPlan
from prism.spec import ModelSpec
from sim.ask.point import Point, latency_ms
from sim.cli import options

STEP = 1.05  # rates within this factor are simulated as one


class Scored(msgspec.Struct, frozen=True, kw_only=True):
    """By a profile, at the rates that were believed: milliseconds of all decided plans, and of the best ones."""

    profile: str
    decided_ms: float
    oracle_ms: float
    regret: float


class ReplayReport(msgspec.Struct, frozen=True, kw_only=True):
    """switches: changes of the decided plan. served_ms: of all answers; failed: answered locally after another plan."""

    replay: Replay
    switches: int
    served_ms: float
    failed: int
    cut: bool
    scored: Scored | None = None


class DifferentDecisions(PrismError):
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
    report = examined(log, load_profile(profile) if profile else None)
    if json:
        print(msgspec.json.encode(report).decode())
    else:
        _print(report)
    if not report.replay.identical:
        raise DifferentDecisions(
            f"{decisions}: {report.replay.first_difference}; the log was edited or another version made it"
        )


def examined(log: DecisionLog, profile: CalibratedProfile | None) -> ReplayReport:
    """What a log says, and by a profile how good its decisions were."""
    made = [entry for entry in log.entries if isinstance(entry, Decided)]
    answered = [entry for entry in log.entries if isinstance(entry, Answered)]
    return ReplayReport(
        replay=replay(log),
        switches=sum(a.plan != b.plan for a, b in itertools.pairwise(made)),
        served_ms=sum(entry.ms for entry in answered),
        failed=sum(bool(entry.failed) for entry in answered),
        cut=log.cut,
        scored=None if profile is None else _scored(log, made, profile),
    )


def _scored(log: DecisionLog, made: list[Decided], profile: CalibratedProfile) -> Scored:
    model, cost = options.model_of(log.header.model), profile.model()
    plans = list(dict.fromkeys(row.plan for row in log.header.rows))
    known: dict[tuple[ExecutionPlan, int, float], float] = {}

    def ms(plan: ExecutionPlan, entry: Decided) -> float:
        rate = _stepped(entry.observation.bandwidth_bps) if plan.ranks > 1 else 1e9
        key = (plan, entry.observation.batch, rate)
        if key not in known:
            point = _point(model, plan, entry.observation.batch, rate)
            known[key] = latency_ms(profile, cost, point)
        return known[key]

    decided_ms = oracle_ms = 0.0
    for entry in made:
        able = [
            p
            for p in plans
            if p.ranks == 1 or (p.ranks <= entry.observation.devices and entry.observation.bandwidth_bps)
        ]
        decided_ms += ms(entry.plan, entry)
        oracle_ms += min(ms(plan, entry) for plan in able)
    return Scored(
        profile=profile.name,
        decided_ms=decided_ms,
        oracle_ms=oracle_ms,
        regret=decided_ms / oracle_ms - 1 if oracle_ms else 0.0,
    )


def _stepped(rate: float | None) -> float:
    """Onto a coarse grid, so that few rates are simulated."""
    return float(STEP ** round(math.log(rate or 1.0) / math.log(STEP)))


def _point(model: ModelSpec, plan: ExecutionPlan, batch: int, rate: float) -> Point:
    return Point(model=model, plan=plan, batch=batch, link=LinkSpec(kind="testbed", rate_bps=rate))


def _print(report: ReplayReport) -> None:
    console, found = Console(), report.replay
    style = "green" if found.identical else "red"
    word = "identical" if found.identical else "DIFFERENT"
    console.print(f"{found.decisions} decisions made again: {word}", style=style)
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
