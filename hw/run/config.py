"""What a run is, what one rank of it is told, and what a rank reports. Data only: no torch."""

import hashlib
from typing import Annotated, Any, Literal

import msgspec

from hw.link.report import LinkConfig, LinkReport
from hw.probe.cells import ProbeConfig
from prism.codecs import Wire
from prism.errors import ConfigError
from prism.plan import ExecutionPlan, Mode
from prism.spec import LinkSpec, Port, Positive
from prism.trace.energy import Energy

NonNegative = Annotated[int, msgspec.Meta(ge=0)]


class RunConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`prism-hw run` as one file: every field is a flag of the same name."""

    model: str = "fashion-vit"
    images: str | None = None
    text: str | None = None
    resize: bool = False
    tokens: Positive | None = None
    weights: str | None = None
    seed: NonNegative = 0
    mode: Mode = Mode.FULL
    devices: Annotated[int, msgspec.Meta(ge=1, le=64)] = 2
    segments: int | None = None
    wire: Wire = "fp32"
    device_weights: tuple[float, ...] | None = None
    embed: Literal["terminal", "each"] = "terminal"
    collective: Literal["auto", "mesh", "ring"] = "auto"
    overlap: bool = True
    batch: Positive = 1
    batches: NonNegative = 10
    warmups: NonNegative = 2
    link: str = "loopback"
    threads: Positive = 1
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    interface: str = ""
    port: Port | None = None
    meter: Literal["auto", "none", "ina3221", "jtop", "rapl"] = "auto"
    power: str | None = None
    trace: str | None = None

    def plan(self) -> ExecutionPlan:
        """Raises PlanError where the fields contradict each other."""
        local = self.mode is Mode.LOCAL
        return ExecutionPlan(
            mode=self.mode,
            devices=1 if local else self.devices,
            segments=self.segments,
            wire=self.wire,
            weights=None if local else self.device_weights,
            embed=self.embed,
            collective=self.collective,
            overlap=self.overlap,
        )

    def link_spec(self) -> LinkSpec:
        return LinkSpec.parse(self.link)

    def digest(self) -> str:
        """A hash of all that matters to what is measured."""
        same = msgspec.structs.replace(self, trace=None, port=None)
        return hashlib.blake2b(msgspec.json.encode(same), digest_size=6).hexdigest()

    def check(self) -> None:
        """Everything that can be refused without loading the model."""
        self.plan()
        self.link_spec()
        if self.images and self.text:
            raise ConfigError("both --images and --text are given; a model takes one of them")


class RankJob(msgspec.Struct, frozen=True, kw_only=True):
    """One rank of a group: where it runs and how it finds the others. What to do comes in steps.

    netns: path of the network namespace to enter, medium: file of the user-space shaper, where there is one.
    meter_covers: ranks of this device, on the one of them that reads its power meter; hwmon: where a
    Jetson's sensor files are.
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
    facts: dict[str, Any] = {}
    command: str = ""


class RunStep(msgspec.Struct, frozen=True, kw_only=True, tag="run"):
    """Run batches of one configuration. `score` compares each input's output with the local model's."""

    config: RunConfig
    score: bool = True


class LinkStep(msgspec.Struct, frozen=True, kw_only=True, tag="link"):
    """Measure the links of the group. `trace` keeps the raw probes."""

    config: LinkConfig
    link: str
    trace: str


class ProbeStep(msgspec.Struct, frozen=True, kw_only=True, tag="probe"):
    """Time operations on the terminal while the others wait. `trace` keeps the raw probes."""

    config: ProbeConfig
    link: str
    trace: str


class EndStep(msgspec.Struct, frozen=True, kw_only=True, tag="end"):
    """Nothing follows: every rank ends."""


Work = RunStep | LinkStep | ProbeStep
Step = Work | EndStep


class Checked(msgspec.Struct, frozen=True, kw_only=True, tag="checked"):
    """The terminal has its model and inputs, and the plan fits them: the others are worth starting."""


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag="progress"):
    done: int
    total: int


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    label: str | None
    predicted: str
    probability: float | None


class Outcome(msgspec.Struct, frozen=True, kw_only=True, tag="outcome"):
    """What `prism-hw run --json` prints. Times are medians over the measured batches; null is "not measured"."""

    model: str
    weights: str
    inputs: str
    mode: str
    devices: int
    segments: int | None
    wire: str
    embed: str
    collective: str
    overlap: bool
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
    peak_memory_bytes: dict[int, int]
    predictions: tuple[Prediction, ...]
    seed: int
    config: dict[str, Any]
    host: dict[str, Any]
    command: str


class Measured(msgspec.Struct, frozen=True, kw_only=True, tag="measured"):
    """The end of a link or probe step; its raw measurements are in the step's trace."""

    report: LinkReport | None = None


class Failure(msgspec.Struct, frozen=True, kw_only=True, tag="failure"):
    """A rank's own error. `lost_peer`: another rank's end caused it, so the other's word counts first."""

    message: str
    exit_code: int = 2
    lost_peer: bool = False


Event = Checked | Progress | Outcome | Measured | Failure
