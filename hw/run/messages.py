"""What a rank is told and what it reports: its job, the steps, the events. Data only: no torch."""

from typing import Any

import msgspec

from hw.inputs.tally import PredictedLabel
from hw.link.report import LinkConfig, LinkReport
from hw.probe.cells import ProbeConfig
from hw.run.config import RunConfig, flattened
from prism.cli.progress import Progress
from prism.errors import MENDABLE
from prism.plan import ExecutionPlan
from prism.trace.energy import Energy


class RankJob(msgspec.Struct, frozen=True, kw_only=True):
    """One rank of a group: where it runs and how it finds the others. What to do comes in steps.

    netns: path of the network namespace to enter. medium: file of the user-space shaper, where there is one.
    meter_covers: ranks of this device, on the one of them that reads its power meter.
    hwmon: folder of a Jetson's sensor files.
    memory: bytes that a plan may need on each rank's device, where that is limited; empty where none is.
    facts: what the header should say of the testbed.
    """

    rank: int
    world_size: int
    leader: str
    port: int
    interface: str
    timeout_s: float
    threads: int = 1
    cores: tuple[int, ...] = ()
    oversubscribed: bool = False
    netns: str = ""
    medium: str = ""
    meter_covers: tuple[int, ...] = ()
    hwmon: str = "/sys/class/hwmon"
    serve_store: bool = True
    memory: tuple[float | None, ...] = ()
    facts: dict[str, Any] = {}
    command: str = ""


class RunStep(msgspec.Struct, frozen=True, kw_only=True, tag="run"):
    """Run batches of one configuration.

    score: compare each input's output with the local model's, and with its label. shares: each rank of a pipeline loads
    its stage's weights alone, so that nothing is compared with the local model.
    """

    config: RunConfig
    score: bool = True
    shares: bool = False


class LinkStep(msgspec.Struct, frozen=True, kw_only=True, tag="link"):
    """Measure the links of the group. `trace` keeps the raw probes."""

    config: LinkConfig
    link: str
    trace: str


class ProbeStep(msgspec.Struct, frozen=True, kw_only=True, tag="probe"):
    """Time operations on the leader while the others wait. `trace` keeps the raw probes."""

    config: ProbeConfig
    link: str
    trace: str


class EndStep(msgspec.Struct, frozen=True, kw_only=True, tag="end"):
    """No step follows: every rank ends."""


Work = RunStep | LinkStep | ProbeStep
AnyStep = Work | EndStep


class Checked(msgspec.Struct, frozen=True, kw_only=True, tag="checked"):
    """The leader has its model and inputs, and the plan fits them: the others are worth starting."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True, tag="outcome"):
    """The result of a run. Times are medians over the measured batches; null is "not measured".

    route: the collective that a block's exchange took, or "none" on one device.
    """

    model: str
    weights: str
    inputs: str
    plan: ExecutionPlan
    route: str
    batch: int
    batches: int
    tokens: int
    link: str
    oversubscribed: bool
    latency_ms: dict[str, float]
    split_ms: dict[str, float]
    split_per_rank_ms: dict[int, dict[str, float]]
    bytes_per_exchange: int
    effective_bandwidth_mbps: float | None
    energy_j: float | None
    energy: Energy | None
    energy_note: str
    agreement: float | None
    agreement_kind: str
    top1: float | None
    samples: int
    max_rel_error: float | None
    samples_per_s: float
    peak_memory_bytes: dict[int, int]
    predictions: tuple[PredictedLabel, ...]
    seed: int
    config: dict[str, Any]
    host: dict[str, Any]
    command: str

    def flat(self) -> dict[str, Any]:
        """Make the object that `prism-hw run --json` prints: one level of keys, the collective resolved."""
        fields = flattened(msgspec.to_builtins(self))
        route, _ = fields.pop("route"), fields.pop("device_weights")  # these stand in the configuration
        return {**fields, "devices": self.plan.ranks, "collective": route}


class Measured(msgspec.Struct, frozen=True, kw_only=True, tag="measured"):
    """The end of a link or probe step; its raw measurements are in the step's trace."""

    report: LinkReport | None = None


class Failure(msgspec.Struct, frozen=True, kw_only=True, tag="failure"):
    """A rank's own error. `lost_peer`: another rank's end caused it, so the other's message counts first."""

    message: str
    exit_code: int = MENDABLE
    lost_peer: bool = False


Event = Checked | Progress | Outcome | Measured | Failure
