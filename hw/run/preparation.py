"""What a rank prepares before it needs any other rank: its device, the model with its inputs, the power meter.

All that can be refused is refused here, so that nobody is started or kept waiting for a run that can't be.
"""

from pathlib import Path
from typing import Any

from hw.comm.recorder import recorder_for
from hw.comm.staging import stager_for
from hw.energy.meter import find_meter
from hw.energy.sampler import PowerSampler
from hw.machine.torch_device import torch_device
from hw.run.config import RunConfig
from hw.run.messages import RankJob, RunStep, Work
from hw.run.workpiece import Workpiece
from prism.nn.zoo import describe
from prism.trace import Record
from prism.workload.memory import check_memory

PERIOD_S = 0.01  # between two power samples


class Preparation:
    """One rank's device, and what is loaded on it: kept for the next step that wants the same."""

    def __init__(self, job: RankJob) -> None:
        self._job = job
        self.device = torch_device()
        self.recorder = recorder_for(self.device, job.rank)
        self.stager = stager_for(self.device, self.recorder)
        self._piece: Workpiece | None = None
        self._key: tuple[Any, ...] = ()
        self._sampler: PowerSampler | None = None
        self._meter: list[Record] = []

    @property
    def fingerprint(self) -> str:
        """The hash of the loaded weights; empty before any are."""
        return self._piece.fingerprint if self._piece else ""

    @property
    def metered(self) -> bool:
        """Whether this rank samples a power meter."""
        return self._sampler is not None

    def prepare(self, step: Work) -> None:
        """Load what a step needs, and start its power meter. Raises PrismError for what can't be had."""
        if not isinstance(step, RunStep):
            return
        self._check_memory(step.config)
        piece = self.workpiece(step.config, step.shares)
        step.config.plan.check(piece.spec, step.config.batch, piece.tokens)
        if self._job.meter_covers and self._sampler is None:
            self._start_sampling(step.config)

    def _check_memory(self, config: RunConfig) -> None:
        """Refuse, before weights are loaded, a plan that needs more than a device has. Raises PlanError."""
        given, ranks = config.memory_limit(), config.plan.ranks
        limits = self._job.memory[:ranks] if given is None else (given,) * ranks
        if any(limit is not None for limit in limits):
            check_memory(describe(config.model), config.plan, config.batch, config.tokens, limits)

    def workpiece(self, config: RunConfig, shares: bool = False) -> Workpiece:
        """Return the loaded workpiece where it fits the configuration, else load another. shares: as in RunStep."""
        stage = config.plan.stages > 1 and shares and self._job.rank < config.plan.ranks
        key = (*Workpiece.key(config), config.plan if stage else None)
        if self._piece is None or self._key != key:
            self._piece = None  # two models need not fit at once
            with_inputs = self._job.rank == 0 or config.plan.embed == "each"
            self._piece = Workpiece(config, self.device, with_inputs, self._job.rank if stage else None)
            self._key = key
        return self._piece

    def power(self) -> list[Record]:
        """Return the meter's description and its samples since the last call; nothing without a meter."""
        return [*self._meter, *self._sampler.take()] if self._sampler else []

    def _start_sampling(self, config: RunConfig) -> None:
        meter = find_meter(config.meter, {"ina3221": Path(self._job.hwmon)})
        if meter is not None:
            self._sampler = PowerSampler(meter, self._job.rank, self._job.meter_covers, PERIOD_S)
            self._meter = self._sampler.take()  # describes the samples: every step's trace begins with it
            self._sampler.start()
