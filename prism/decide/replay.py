"""Replay a log of decisions with the same policy, and compare."""

from collections.abc import Iterator

import msgspec

from prism.decide.log import Corrected, Decided, DecisionLog, decided
from prism.decide.policy import State
from prism.decide.table import CellPlace, Table
from prism.labels import plan_label


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the same policy decides the same. first_difference: a decision's number, and both plans with reasons."""

    decisions: int
    identical: bool
    first_difference: str = ""


def replayed(log: DecisionLog) -> Iterator[tuple[Decided, Decided]]:
    """Yield each decision as logged, and as the policy makes it from the logged observation."""
    header = log.header
    table, state, factors = Table(header.rows), State(), dict[CellPlace, float]()
    for entry in log.entries:
        if isinstance(entry, Corrected):
            factors[entry.place] = entry.factor
            table = Table(header.rows).corrected(factors)
        elif isinstance(entry, Decided):
            again = header.policy.decide(entry.observation, table, header.objective, state)
            state = again.state
            yield entry, decided(entry.number, entry.epoch, entry.observation, again)


def replay(log: DecisionLog) -> Replay:
    """Decide a log again. Compares plans, reasons and expectations to the bit."""
    count, first = 0, ""
    for logged, again in replayed(log):
        count += 1
        if logged != again and not first:
            first = (
                f"decision {logged.number}: {plan_label(logged.plan)} ({logged.why}) in the log, "
                f"{plan_label(again.plan)} ({again.why}) again"
            )
    return Replay(decisions=count, identical=not first, first_difference=first)
