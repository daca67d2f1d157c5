"""Which plan a batch runs with: pure functions of what is known, shared by simulator, hardware and replay.

Nothing here keeps anything, reads a clock or knows where an observation comes from: the state goes in and comes out
with the decision, so that the same observations give the same decisions anywhere. A policy is data: a log of decisions
names the one that made them.
"""

import math
from collections.abc import Mapping
from typing import Protocol

import msgspec

from prism.config import NonNegativeNumber
from prism.decide.accuracy import is_exact
from prism.decide.table import LOCAL, Expectation, Objective, Observation, Table, View
from prism.errors import ConfigError
from prism.plan import ExecutionPlan


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What a policy remembers: the plan of the last batch, and since when it has been this one."""

    plan: ExecutionPlan | None = None
    since_s: float = 0.0


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """The plan, why, what is expected of it and of the next best one, and the state for the next decision."""

    plan: ExecutionPlan
    why: str
    expected: Expectation | None = None
    runner_up: Expectation | None = None
    state: State = State()


class Policy(Protocol):
    """Pure: the same arguments give the same decision. Raises ConfigError where it needs a table and has none."""

    def decide(self, observation: Observation, table: Table | None, objective: Objective, state: State) -> Decision: ...


class FixedPolicy(msgspec.Struct, frozen=True, tag="fixed"):
    """One plan as long as its devices are there; local otherwise."""

    plan: ExecutionPlan

    def decide(self, observation: Observation, table: Table | None, objective: Objective, state: State) -> Decision:
        plan = self.plan if observation.devices >= self.plan.ranks else LOCAL
        return Decision(plan=plan, why="fixed" if plan == self.plan else "devices missing", state=State(plan=plan))


class LookupPolicy(msgspec.Struct, frozen=True, tag="lookup"):
    """The published rule: the fastest plan of the nearest measured batch and rate, with no memory."""

    def decide(self, observation: Observation, table: Table | None, objective: Objective, state: State) -> Decision:
        table = _given(table)
        near = [found for plan in table.plans if (found := table.nearest(plan, observation)) is not None]
        plan = min(near, key=lambda found: found[1])[0].plan
        return Decision(plan=plan, why="nearest cell", state=State(plan=plan))


class PrismPolicy(msgspec.Struct, frozen=True, kw_only=True, tag="prism", forbid_unknown_fields=True):
    """The best plan that keeps the constraints, but no change that isn't worth it.

    A change must be expected to gain more than `hysteresis` of the present plan's cost, and more than `doubt` deviations
    of the difference: within them it may as well lose. It also waits until the last change is `dwell_s` old, unless
    the gain is `urgent` times what it would have to be. A plan that can't run, or that breaks a constraint while
    another keeps it, is left at once.
    """

    hysteresis: NonNegativeNumber = 0.02
    doubt: NonNegativeNumber = 0.1
    dwell_s: NonNegativeNumber = 1.0
    urgent: NonNegativeNumber = 3.0

    def decide(self, observation: Observation, table: Table | None, objective: Objective, state: State) -> Decision:
        table = _given(table)
        view = table.at(observation, objective)
        best, runner_up, able = _best_two(view, observation, objective)
        present = None if state.plan is None else view.of(state.plan)
        if present is not None and present is not best:
            standing = _standing(present, objective, observation)
            present = present if standing >= _standing(best, objective, observation) else None

        def decided(chosen: Expectation, why: str) -> Decision:
            moved = chosen.plan != state.plan
            since = observation.at_s if moved else state.since_s
            other = best if chosen is not best else runner_up
            note = ("; no plan keeps the constraints", "; no other plan keeps the constraints", "")[able]
            return Decision(
                plan=chosen.plan,
                why=why + note,
                expected=chosen,
                runner_up=other,
                state=State(plan=chosen.plan, since_s=since),
            )

        if present is None:
            return decided(best, "the first decision" if state.plan is None else "the plan before can't be kept")
        if present is best:
            return decided(best, "still the best")
        gain = present.cost - best.cost
        doubt = self.doubt * math.hypot(present.deviation * present.cost, best.deviation * best.cost)
        needed = max(self.hysteresis * present.cost, doubt)
        if not gain > needed:
            return decided(present, "the gain is within its doubt")
        if observation.at_s - state.since_s < self.dwell_s and gain < self.urgent * needed:
            return decided(present, "the last change is too young")
        return decided(best, "the gain is worth it")


AnyPolicy = PrismPolicy | LookupPolicy | FixedPolicy  # those that can serve


class OraclePolicy:
    """For scoring: what is truly the fastest, by latencies that no policy may know. truth: milliseconds of each plan
    by the time of an observation."""

    def __init__(self, truth: Mapping[float, Mapping[ExecutionPlan, float]]) -> None:
        self._truth = truth

    def decide(self, observation: Observation, table: Table | None, objective: Objective, state: State) -> Decision:
        known = self._truth[observation.at_s]
        plan = min((p for p in known if p.ranks <= observation.devices), key=lambda p: known[p])
        return Decision(plan=plan, why="the truth", state=State(plan=plan))


def kept(each: Expectation, objective: Objective, observation: Observation) -> bool:
    """Whether a plan keeps the constraints, and the deadline of the batch's first request."""
    if objective.most_ms is not None and each.ms > objective.most_ms:
        return False
    if observation.left_ms is not None and each.ms > observation.left_ms:
        return False
    if objective.most_joules is not None and (each.joules is None or each.joules > objective.most_joules):
        return False
    return answers_kept(each, objective)


def answers_kept(each: Expectation, objective: Objective) -> bool:
    """Whether a plan's answers are good enough."""
    right, agreeing = objective.least_accuracy, objective.least_agreement
    if right is not None and (each.accuracy is None or each.accuracy < right):
        return False
    return agreeing is None or (each.agreement is not None and each.agreement >= agreeing)


def _standing(each: Expectation, objective: Objective, observation: Observation) -> int:
    """2 for a plan that keeps all constraints; 1 for one whose answers will do, or are the model's own; 0 for others."""
    if kept(each, objective, observation):
        return 2
    return int(answers_kept(each, objective) or is_exact(each.plan))


def _best_two(
    view: View, observation: Observation, objective: Objective
) -> tuple[Expectation, Expectation | None, int]:
    """The two best plans of those that stand highest: a late answer is better than a wrong one, and where none is known to
    be good enough, the model's own is. And how many keep all constraints: 0 for none, 1 for one of several."""
    good: list[Expectation] = []
    every: list[Expectation] = []
    for each in view.ranked():
        every.append(each)
        if kept(each, objective, observation):
            good.append(each)
            if len(good) == 2:
                break
    chosen = good or [each for each in every if _standing(each, objective, observation)]  # local is in every table
    return chosen[0], chosen[1] if len(chosen) > 1 else None, 2 if len(good) == len(every) else len(good)


def _given(table: Table | None) -> Table:
    if table is None:
        raise ConfigError("this policy chooses from a table of measured or simulated cells; give it a map")
    return table
