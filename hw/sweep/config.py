"""Configure a sweep, list its cells, and order the visits to them. No torch."""

import hashlib
import random
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from hw.run.config import RunConfig
from prism.codecs import Wire
from prism.config import NonNegative, Positive, PositiveNumber
from prism.errors import ConfigError, PlanError
from prism.labels import plan_label
from prism.link import LinkKind, LinkSpec
from prism.plan import Choices, Collective, ExecutionPlan, Mode
from prism.spec import ModelSpec
from prism.trace import MeterName
from prism.workload import build
from prism.workload.memory import check_memory

GROUPS = ("replicas", "stages", "microbatches")
Several = Annotated[int, msgspec.Meta(ge=2, le=64)]


class SweepConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`prism-hw profile` as one file. Cells are all combinations; local ones need neither rate, wire nor L.

    repeats: visits of each cell, interleaved with those of all others.
    passes: measured batches a visit, after `warmups` that are kept and marked.
    rates: of the link's medium; empty with link "loopback", and with "network", the devices' own.
    share: of each model's distributed lines (a batch and a plan, over all rates) that are measured; the seed draws
    which. Local cells are all kept.
    replicas, stages, microbatches: besides parts alone, every combination whose product divides the devices.
    """

    models: tuple[str, ...]
    weights: str | None = None
    modes: tuple[Mode, ...] = (Mode.LOCAL, Mode.FULL, Mode.SEGMENT_MEANS)
    segments: tuple[Positive, ...] = ()
    batches: tuple[Positive, ...] = (1,)
    rates: tuple[str, ...] = ()
    wires: tuple[Wire, ...] = ("fp32",)
    share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    devices: tuple[Several, ...] = (2,)
    replicas: tuple[Several, ...] = ()
    stages: tuple[Several, ...] = ()
    microbatches: tuple[Positive, ...] = ()
    link: LinkKind = "testbed"
    latency: str = "0s"
    jitter: str = "0s"
    loss: str = "0%"
    repeats: Positive = 5
    passes: Positive = 2
    warmups: NonNegative = 1
    tokens: Positive | None = None
    images: str | None = None
    text: str | None = None
    resize: bool = True
    overlap: bool = True
    collective: Collective = "auto"
    threads: Positive = 1
    timeout_s: PositiveNumber = 60.0
    meter: MeterName = "auto"
    power: str | None = None
    seed: NonNegative = 0

    def __post_init__(self) -> None:
        for name in ("models", "modes", "batches", "wires", "devices", "replicas", "stages", "microbatches"):
            values = getattr(self, name)
            if not values and name not in GROUPS:
                raise ValueError(f"{name} is empty: nothing would be measured; name at least one")
            if len(set(values)) < len(values):
                raise ValueError(f"{name} {list(values)} names one twice")
        averaging = next((mode for mode in self.modes if mode.averages), None)
        if averaging and not self.segments:
            raise ValueError(f"segments is empty; mode {averaging.value} needs at least one, as in segments = [10]")
        shaped = self.link in ("shaper", "testbed")
        if self.linked and shaped and not self.rates:
            raise ValueError(f'rates is empty; link {self.link} needs at least one, as in rates = ["100Mbps"]')
        if self.rates and not shaped:
            raise ValueError(f"rates {list(self.rates)}: the {self.link} has none; use link testbed or shaper")

    @property
    def distributed(self) -> tuple[Mode, ...]:
        """The modes that need several devices."""
        return tuple(mode for mode in self.modes if mode is not Mode.LOCAL)

    @property
    def linked(self) -> bool:
        """Whether some cell needs a link."""
        return bool(self.distributed or self.replicas or self.stages)

    def choices(self) -> Choices:
        """The values that plans are combined of."""
        return Choices(**{name: getattr(self, name) for name in Choices.__struct_fields__})

    def links(self) -> tuple[str, ...]:
        """Spell out the link of each rate. Raises ConfigError for a rate or time that can't be read."""
        if self.link in ("loopback", "network"):
            return (self.link,)
        tail = "" if self.link == "shaper" else f",{self.jitter},{self.loss}"
        return tuple(str(LinkSpec.parse(f"{self.link}:{rate},{self.latency}{tail}")) for rate in self.rates)

    def digest(self) -> str:
        """Hash all that makes two sweeps the same; more repeats of one may be added later."""
        same = msgspec.structs.replace(self, repeats=1)
        counted = {**msgspec.to_builtins(same)}
        for name in GROUPS:  # so that folders from before resume
            if not counted[name]:
                del counted[name]
        return hashlib.blake2b(msgspec.json.encode(counted), digest_size=6).hexdigest()


class Visit(msgspec.Struct, frozen=True, kw_only=True):
    """One stay at one cell. `ranks` have to be up for it; `file` is its trace's name."""

    config: RunConfig
    repeat: int
    ranks: int
    file: str


def cells(sweep: SweepConfig) -> list[tuple[RunConfig, int]]:
    """List every cell's configuration, with the ranks of the session that it is measured in. Raises PlanError."""
    found: list[tuple[RunConfig, int]] = []
    for model in sweep.models:
        if Mode.LOCAL in sweep.modes:
            plan = _plan(sweep, Mode.LOCAL)
            found += [(_run(sweep, model, batch, plan, "loopback"), sweep.devices[0]) for batch in sweep.batches]
        found += [
            (_run(sweep, model, batch, plan, link), plan.devices)
            for batch, plan in _lines(sweep, model)
            for link in sweep.links()
        ]
    return found


def _lines(sweep: SweepConfig, model: str) -> list[tuple[int, ExecutionPlan]]:
    """List batch and plan of each of a model's distributed lines that `share` keeps.

    A batch that can't fill the replicas of a plan has no line.
    """
    lines = [
        (batch, _plan(sweep, mode, devices=ranks, segments=segments, wire=wire))
        for batch in sweep.batches
        for ranks in sweep.devices
        for mode in sweep.distributed
        for segments in (sweep.segments if mode.averages else (None,))
        for wire in sweep.wires
    ]
    habits = {"overlap": sweep.overlap, "collective": sweep.collective}
    lines += [
        (batch, plan)
        for batch in sweep.batches
        for plan in sweep.choices().grouped(**habits)
        if plan.least_batch <= batch
    ]
    kept = round(max(1, sweep.share * len(lines))) if lines else 0
    places = sorted(random.Random(f"{sweep.seed}-{model}").sample(range(len(lines)), kept))
    return [lines[place] for place in places]


def _plan(sweep: SweepConfig, mode: Mode, **fields: Any) -> ExecutionPlan:
    return ExecutionPlan(mode=mode, overlap=sweep.overlap, collective=sweep.collective, **fields)


def _run(sweep: SweepConfig, model: str, batch: int, plan: ExecutionPlan, link: str) -> RunConfig:
    return RunConfig(
        model=model,
        weights=sweep.weights,
        plan=plan,
        batch=batch,
        batches=sweep.passes,
        warmups=sweep.warmups,
        tokens=sweep.tokens,
        images=sweep.images,
        text=sweep.text,
        resize=sweep.resize,
        link=link,
        threads=sweep.threads,
        timeout_s=sweep.timeout_s,
        meter=sweep.meter,
        power=sweep.power,
        seed=sweep.seed,
    )


def visits(sweep: SweepConfig) -> list[Visit]:
    """Order a sweep: every cell once before any a second time.

    Within a repeat it goes by number of ranks, by model (loading one takes long), then by link and cell in an order
    that each repeat shuffles anew from the seed.
    """
    all_cells = cells(sweep)
    order: list[Visit] = []
    for repeat in range(sweep.repeats):
        shuffle = random.Random(f"{sweep.seed}-{repeat}")
        ranked = {link: shuffle.random() for link in ("loopback", *sweep.links())}
        keys = {id(config): shuffle.random() for config, _ in all_cells}
        order += [
            Visit(config=config, repeat=repeat, ranks=ranks, file=file_name(config, repeat))
            for config, ranks in sorted(
                all_cells, key=lambda c: (c[1], sweep.models.index(c[0].model), ranked[c[0].link], keys[id(c[0])])
            )
        ]
    return order


def file_name(config: RunConfig, repeat: int) -> str:
    """Name a visit's trace: readable, and different for every cell and repeat. Sweeps resume by these names."""
    model, plan = config.model.rstrip("/").rsplit("/", 1)[-1], config.plan
    name = plan.mode.value + (f"{plan.segments}" if plan.segments else "")
    name += f"_R{plan.replicas}" if plan.replicas > 1 else ""
    name += f"_S{plan.stages}" if plan.stages > 1 else ""
    if plan.ranks > 1:
        link = config.link.replace(":", "-").replace(",", "-").replace("%", "pc")
        name += f"_{plan.wire}_P{plan.devices}_{link}"
    return f"{model}_B{config.batch}_{name}_{config.digest()}.{repeat}.jsonl"


def left_out(sweep: SweepConfig) -> list[str]:
    """Say which combinations are no cell, because replicas would get no sample."""
    plans = list(sweep.choices().grouped())
    return [
        f"{plan_label(plan)} at batch {batch}: fewer samples than replicas"
        for batch in sweep.batches
        for plan in plans
        if plan.least_batch > batch
    ]


def check(sweep: SweepConfig, specs: dict[str, ModelSpec], memory: Sequence[float | None] = ()) -> None:
    """Refuse what no rank could run. memory: of each device, where that is limited. Raises ConfigError, PlanError."""
    for config, _ in cells(sweep):
        config.check()
        spec = specs[config.model]
        try:
            config.plan.check(spec, config.batch, sweep.tokens)
            if any(limit is not None for limit in memory):
                check_memory(spec, config.plan, config.batch, sweep.tokens, memory)
        except PlanError as error:
            raise ConfigError(f"{config.model}: {error}") from None


def estimate_s(config: RunConfig, spec: ModelSpec, flops_per_s: float) -> float:
    """Estimate a visit's seconds: FLOPs of the busiest rank, and twice over the air for every byte."""
    plan = config.plan
    graph = build(spec, plan, config.batch, config.tokens or spec.tokens)
    compute = max(graph.flops(rank) for rank in range(plan.ranks)) / flops_per_s
    rate = config.link_spec().rate_bps
    wire = 0.0 if rate is None else 2 * 8 * graph.block_bytes() * spec.blocks / rate
    return (config.warmups + config.batches) * (compute + wire)
