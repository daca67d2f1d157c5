"""Choose the plan of each batch: pure functions, shared by simulator, hardware and replay.

Nothing here keeps state, reads a clock or knows where an observation comes from. The state goes in and comes out with
the decision, so that the same observations give the same decisions anywhere. A policy is data: a log of decisions names
the policy that made them.
"""

import math
from enum import Enum, IntEnum
from typing import NamedTuple, Protocol

import msgspec

from prism.config import NonNegativeNumber
from prism.decide.accuracy import is_exact
from prism.decide.table import Expectation, Objective, Observation, Table, View
from prism.errors import ConfigError
from prism.plan import LOCAL, ExecutionPlan


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What a policy remembers: the plan of the last batch, and since when it has been this one."""

    plan: ExecutionPlan | None = None
    since_s: float = 0.0


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """The plan, why, what is expected of it and of the runner-up, and the state for the next decision."""

    plan: ExecutionPlan
    why: str
    expected: Expectation | None = None
    runner_up: Expectation | None = None
    state: State = State()


class Policy(Protocol):
    """Pure: the same arguments give the same decision. Raises ConfigError where it needs a table and has none."""

    def decide(self, observation: Observation, table: Table | None, objective: Objective, state: State) -> Decision:
        """Choose a plan for what was observed."""


class FixedPolicy(msgspec.Struct, frozen=True, tag="fixed"):
    """Choose one plan as long as its devices can be reached and each of its replicas has a sample, local otherwise."""

    plan: ExecutionPlan

    def decide(self, observation: Observation, table: Table | None, objective: Objective, state: State) -> Decision:
        """Choose the plan, or local where it lacks devices or samples."""
        plan, why = self.plan, "fixed"
        if observation.devices < plan.ranks:
            plan, why = LOCAL, "devices missing"
        elif observation.batch < plan.least_batch:
            plan, why = LOCAL, "fewer samples than replicas"
        return Decision(plan=plan, why=why, state=State(plan=plan))


class LookupPolicy(msgspec.Struct, frozen=True, tag="lookup"):
    """Choose the fastest plan of the nearest measured batch and rate, without memory: the published rule."""

    def decide(self, observation: Observation, table: Table | None, objective: Objective, state: State) -> Decision:
        """Choose the fastest plan of the nearest cell."""
        table = _required(table)
        nearest = (table.nearest(plan, observation) for plan in table.plans)
        place, _ = min((cell for cell in nearest if cell is not None), key=lambda cell: cell[1])
        return Decision(plan=place.plan, why="nearest cell", state=State(plan=place.plan))


class Reason(str, Enum):
    """Why a plan was chosen, in the words of the log."""

    FIRST = "the first decision"
    LEFT = "the plan before can't be kept"
    STILL_BEST = "still the best"
    WITHIN_DOUBT = "the gain is within its doubt"
    TOO_YOUNG = "the last change is too young"
    WORTH_IT = "the gain is worth it"


class Note(str, Enum):
    """How many plans keep all constraints, where that leaves no choice; appended to the reason."""

    NONE = "; no plan keeps the constraints"
    ONE = "; no other plan keeps the constraints"
    SEVERAL = ""


class Standing(IntEnum):
    """How far a plan keeps the constraints: a late answer is better than a wrong one."""

    WRONG = 0  # its answers are not known to be good enough
    RIGHT = 1  # its answers will do, or are the model's own, but another constraint is broken
    KEEPS_ALL = 2


class Candidates(NamedTuple):
    """The cheapest plan of the highest standing, the next one, and how many plans keep all constraints."""

    best: Expectation
    runner_up: Expectation | None
    note: Note


class PrismPolicy(msgspec.Struct, frozen=True, kw_only=True, tag="prism", forbid_unknown_fields=True):
    """Choose the cheapest plan that satisfies the constraints.

    Switch only when the expected gain exceeds its uncertainty.

    hysteresis: least gain, as a share of the present plan's cost. doubt: least gain, in standard deviations of the
    difference. dwell_s: least age of the last switch, unless the gain is `urgent` times the least one.
    A plan that can't run, or that breaks a constraint which another plan keeps, is left at once.
    """

    hysteresis: NonNegativeNumber = 0.02
    doubt: NonNegativeNumber = 0.1
    dwell_s: NonNegativeNumber = 1.0
    urgent: NonNegativeNumber = 3.0

    def decide(self, observation: Observation, table: Table | None, objective: Objective, state: State) -> Decision:
        """Choose a plan, and say by which rule."""
        view = _required(table).at(observation, objective)
        choice = candidates(view, observation, objective)
        present = _present(view, choice.best, observation, objective, state)
        reason = self._reason(choice.best, present, observation.at_s, state)
        stays = reason is Reason.WITHIN_DOUBT or reason is Reason.TOO_YOUNG
        chosen = present if present is not None and stays else choice.best
        return Decision(
            plan=chosen.plan,
            why=reason + choice.note,
            expected=chosen,
            runner_up=choice.best if chosen is not choice.best else choice.runner_up,
            state=State(plan=chosen.plan, since_s=state.since_s if chosen.plan == state.plan else observation.at_s),
        )

    def _reason(self, best: Expectation, present: Expectation | None, at_s: float, state: State) -> Reason:
        """Apply the rules in turn; the first that holds is the reason."""
        if present is None:
            return Reason.FIRST if state.plan is None else Reason.LEFT
        if present is best:
            return Reason.STILL_BEST
        gain, least = present.cost - best.cost, self._least_gain(best, present)
        if not gain > least:
            return Reason.WITHIN_DOUBT
        if at_s - state.since_s < self.dwell_s and gain < self.urgent * least:
            return Reason.TOO_YOUNG
        return Reason.WORTH_IT

    def _least_gain(self, best: Expectation, present: Expectation) -> float:
        """Compute the gain below which a switch may as well lose."""
        uncertainty = math.hypot(present.deviation * present.cost, best.deviation * best.cost)
        return max(self.hysteresis * present.cost, self.doubt * uncertainty)


AnyPolicy = PrismPolicy | LookupPolicy | FixedPolicy  # those that can serve


def candidates(view: View, observation: Observation, objective: Objective) -> Candidates:
    """Find the two cheapest plans that keep all constraints. Where none does, those whose answers are right."""
    keeping: list[Expectation] = []
    every: list[Expectation] = []
    for expected in view.ranked():
        every.append(expected)
        if keeps_all(expected, observation, objective):
            keeping.append(expected)
            if len(keeping) == 2:
                break
    # never empty: every table has a local plan, and its answers are the model's own
    best, *others = keeping or [plan for plan in every if standing(plan, observation, objective) > Standing.WRONG]
    one = Note.ONE if len(every) > 1 else Note.SEVERAL
    return Candidates(best, others[0] if others else None, (Note.NONE, one, Note.SEVERAL)[len(keeping)])


def standing(expected: Expectation, observation: Observation, objective: Objective) -> Standing:
    """Judge a plan by the constraints, whatever it costs."""
    if keeps_all(expected, observation, objective):
        return Standing.KEEPS_ALL
    return Standing.RIGHT if answers_suffice(expected, objective) or is_exact(expected.plan) else Standing.WRONG


def keeps_all(expected: Expectation, observation: Observation, objective: Objective) -> bool:
    """Say whether a plan keeps the constraints, and the deadline of the batch's first request."""
    if objective.most_ms is not None and expected.ms > objective.most_ms:
        return False
    if observation.left_ms is not None and expected.ms > observation.left_ms:
        return False
    if objective.most_joules is not None and (expected.joules is None or expected.joules > objective.most_joules):
        return False
    return answers_suffice(expected, objective)


def answers_suffice(expected: Expectation, objective: Objective) -> bool:
    """Say whether a plan's answers are known to be good enough."""
    return _reaches(expected.accuracy, objective.least_accuracy) and _reaches(
        expected.agreement, objective.least_agreement
    )


def _reaches(value: float | None, least: float | None) -> bool:
    return least is None or (value is not None and value >= least)


def _present(
    view: View, best: Expectation, observation: Observation, objective: Objective, state: State
) -> Expectation | None:
    """Look up the plan of the last batch; None where it can't run or stands lower than the best one."""
    present = None if state.plan is None else view.of(state.plan)
    if present is None or present is best:
        return present
    lower = standing(present, observation, objective) < standing(best, observation, objective)
    return None if lower else present


def _required(table: Table | None) -> Table:
    if table is None:
        raise ConfigError("this policy chooses from a table of measured or simulated cells; give it a map")
    return table
