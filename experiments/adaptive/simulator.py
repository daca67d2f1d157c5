"""Run the slots in the simulator."""

import math
import random
from pathlib import Path
from typing import Any

from experiments.adaptive.plans import (
    MODEL,
    SLOT_S,
    STATIC,
    answers_of,
    contenders,
    known_map,
    looked_up,
    named,
    objective_of,
)
from hw.inputs.samples import Sample
from hw.serving.runtime import PROBE_DEVIATION, PROBE_EVERY_S
from prism.cost import load_profile
from prism.decide.link_rate import RateEstimate, updated
from prism.decide.policy import PrismPolicy, State
from prism.decide.table import Observation, table_of
from prism.link import LinkSpec
from sim.ask.point import Point, summary
from sim.cli.options import model_of


class Simulated:
    """Simulate the same slots with the same policy, Kalman filter and table."""

    def __init__(self, folder: Path) -> None:
        self._profile, self._model = load_profile("x86-core"), model_of(MODEL)
        self._table = table_of([known_map()], MODEL, answers_of(folder))
        self._objective, self._policy, self._state = objective_of(folder), PrismPolicy(), State()
        self._estimate: RateEstimate | None = None
        self._noise, self._rng, self._now = random.Random(3), random.Random(1), 0.0

    def slot(self, slot: int, rate: float) -> dict[str, Any]:
        link = LinkSpec(kind="testbed", rate_bps=rate)
        found = {
            name: summary(self._profile, self._profile.model(), Point(model=self._model, plan=plan, batch=1, link=link))
            for name, plan in STATIC.items()
        }
        until = self._now + SLOT_S
        row: dict[str, Any] = {"adaptive": [], "modes": [], "lookups": [], "seen": [], "failed": 0}
        order = contenders(slot, self._rng)
        while order or self._now < until:
            name = order.pop() if order else "adaptive"
            if name == "adaptive":
                name = self._decide(row, rate)
                split = found[name].split_ms
                row["adaptive"].append(found[name].latency_ms.p50)
                told = self._table.rate_of(STATIC[name], 1, split["wire"] + split["wait"])
                if told is not None:
                    self._saw(told[0], told[1], "batch", found[name].latency_ms.p50)
            else:
                row[name] = found[name].latency_ms.p50
            self._now += found[name].latency_ms.p50 / 1e3
        return {**row, "believed_bps": self._estimate.rate_bps if self._estimate else None}

    def _decide(self, row: dict[str, Any], rate: float) -> str:
        if self._estimate is None or self._now - self._estimate.at_s > PROBE_EVERY_S:
            self._saw(rate * math.exp(PROBE_DEVIATION * self._noise.gauss(0, 1)), PROBE_DEVIATION, "probe", 0.0)
        estimate = self._estimate
        seen = Observation(
            batch=1,
            devices=2,
            at_s=self._now,
            bandwidth_bps=estimate.rate_bps if estimate else None,
            bandwidth_deviation=estimate.deviation_at(self._now) if estimate else 0.0,
        )
        decision = self._policy.decide(seen, self._table, self._objective, self._state)
        self._state = decision.state
        row["modes"].append(decision.plan.mode.value)
        row["lookups"].append(looked_up(seen, self._table))
        row["seen"].append(seen)
        return named(decision.plan)

    def _saw(self, rate: float, deviation: float, source: Any, after_ms: float) -> None:
        sample = Sample(at_s=self._now + after_ms / 1e3, rate_bps=rate, deviation=deviation, source=source)
        self._estimate = updated(self._estimate, sample)


def simulated(rates: list[float], folder: Path) -> list[dict[str, Any]]:
    """Simulate every slot; return the rows."""
    machine = Simulated(folder)
    return [{"slot": k, "rate_bps": rate, **machine.slot(k, rate)} for k, rate in enumerate(rates)]
