"""Define the only trace schema: a header and flat records.

Times are integer nanoseconds on the leader's monotonic clock. docs/trace-schema.md describes every field.
"""

import time
from typing import Any, Literal, get_args

import msgspec

from prism.codecs import PROBED_BY_PLACE, Wire
from prism.plan import ExecutionPlan
from prism.spec import ModelSpec, PowerProfile

SCHEMA_VERSION = 1
Kind = Literal["compute", "stage_d2h", "wait", "wire", "stage_h2d"]
KINDS: tuple[Kind, ...] = get_args(Kind)
TraceSource = Literal["measured", "simulated"]
CODED = ("pack", "unpack")  # ops of the probes that are of one codec
SensorName = Literal["ina3221", "jtop", "rapl"]  # each is a module of hw/energy; "auto" tries them in this order
MeterName = Literal["auto", "none", SensorName]  # what a run may ask for
PACE = "pace"  # op of the probes that time a fixed block beside the batches: the machine's speed at that moment


class TraceHeader(msgspec.Struct, frozen=True, kw_only=True, tag="header", tag_field="type"):
    """What was run, on what, and the command that reproduces it.

    power: declared by the user; energy is modelled from it where no sensor was read.
    spec: the model's shape; null in older files.
    """

    schema: int = SCHEMA_VERSION
    source: TraceSource
    created: str
    model: str
    weights: str
    plan: ExecutionPlan
    batch: int
    tokens: int
    link: str
    seed: int
    command: str
    oversubscribed: bool = False
    config: dict[str, Any] = {}
    config_hash: str = ""
    host: dict[str, Any] = {}
    power: PowerProfile | None = None
    spec: ModelSpec | None = None


# gc=False: no reference cycle leads through a span, and a trace has hundreds of thousands of them
class Span(msgspec.Struct, frozen=True, kw_only=True, tag="span", tag_field="type", gc=False):
    """One stretch of one rank's time; the spans of a rank within a batch never overlap.

    op: the step inside the kind (embed, compress, project, attend, head, exchange, ...).
    block: the Transformer block; -1 before the first, the number of blocks after the last.
    issued_ns: on wire spans, when this rank handed its own message over.
    sources: on wire spans, the ranks whose messages were waited for.
    sent_bytes, received_bytes: payload of the messages, without headers of lower layers.
    """

    batch: int
    rank: int
    kind: Kind
    op: str
    block: int
    start_ns: int
    end_ns: int
    issued_ns: int = 0
    sources: tuple[int, ...] = ()
    sent_bytes: int = 0
    received_bytes: int = 0


class Batch(msgspec.Struct, frozen=True, kw_only=True, tag="batch", tag_field="type"):
    """One whole batch as the leader saw it, written after its spans. failed: the reason, empty where it succeeded."""

    batch: int
    size: int
    start_ns: int
    end_ns: int
    warmup: bool = False
    failed: str = ""

    @property
    def counts(self) -> bool:
        """Whether it is a measurement: neither a warm-up nor failed."""
        return not self.warmup and not self.failed


class Clock(msgspec.Struct, frozen=True, kw_only=True, tag="clock", tag_field="type"):
    """A rank's monotonic clock less the leader's, estimated by round trips; the error is half of the shortest one."""

    rank: int
    at_ns: int
    offset_ns: int
    error_ns: int


class Meter(msgspec.Struct, frozen=True, kw_only=True, tag="meter", tag_field="type"):
    """The source of the power samples of `rank`: a device has one, which the first of its ranks reads.

    rails: what is sampled. total: the rail that stands for the device; empty where the rails add up to it.
    covers: the ranks that run on this device.
    ended: why sampling stopped early, in a second record of the same rank.
    """

    rank: int
    source: SensorName
    rails: tuple[str, ...]
    total: str = ""
    covers: tuple[int, ...] = ()
    ended: str = ""


class Power(msgspec.Struct, frozen=True, kw_only=True, tag="power", tag_field="type"):
    """One raw sample of one rail, at the middle of its read."""

    rank: int
    rail: str
    at_ns: int
    watts: float


class Idle(msgspec.Struct, frozen=True, kw_only=True, tag="idle", tag_field="type"):
    """A stretch in which every rank was loaded and had nothing to do."""

    start_ns: int
    end_ns: int


class Probe(msgspec.Struct, frozen=True, kw_only=True, tag="probe", tag_field="type"):
    """One timed repeat of a micro-benchmark: `calls` calls of `op` between start and end, back to back.

    op: gemm, attention, norm, elementwise, block, d2h, h2d, pack, unpack, pair, mesh, ring, or pace: a block of one
    shape that is timed beside the batches of a run.
    shape: as hw/probe/suite.py says for the op, in that order.
    codec: of pack and unpack alone. Older files have its place in a list as the last number of the shape instead.
    flops, bytes: of one call, by the rules of prism.workload (pair, mesh, ring: payload bytes of one message).
    """

    rank: int
    op: str
    shape: tuple[int, ...]
    flops: int
    bytes: int
    start_ns: int
    end_ns: int
    calls: int = 1
    warmup: bool = False
    codec: Wire | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        if self.op in CODED and self.codec is msgspec.UNSET:
            *shape, place = self.shape
            if not 0 <= place < len(PROBED_BY_PLACE):
                raise ValueError(f"codec {place} of a probe is unknown; places go to {len(PROBED_BY_PLACE) - 1}")
            msgspec.structs.force_setattr(self, "shape", tuple(shape))
            msgspec.structs.force_setattr(self, "codec", PROBED_BY_PLACE[place])


Record = Span | Batch | Clock | Meter | Power | Idle | Probe


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """A header and its records in the order written. cut: a truncated last line was dropped."""

    header: TraceHeader
    records: tuple[Record, ...]
    cut: bool = False

    @property
    def spans(self) -> list[Span]:
        """Every Span."""
        return [record for record in self.records if isinstance(record, Span)]

    @property
    def probes(self) -> list[Probe]:
        """Every Probe."""
        return [record for record in self.records if isinstance(record, Probe)]

    @property
    def batches(self) -> list[Batch]:
        """Every Batch, warm-ups and failed ones too."""
        return [record for record in self.records if isinstance(record, Batch)]

    @property
    def measured(self) -> list[Batch]:
        """Batches that count: neither warm-ups nor failed ones."""
        return [batch for batch in self.batches if batch.counts]


def now_text() -> str:
    """The time now in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
