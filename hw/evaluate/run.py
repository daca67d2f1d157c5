"""What compression costs in answers: a model's plans over labelled data, each against the model as it is.

All parts of a plan run in this process, as threads that share one copy of the weights; what crosses a link goes through
the same codecs and masks as between devices. Results are appended to a file, from which a killed run goes on.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Annotated, Any

import msgspec
import torch

from hw.evaluate.datasets import Columns, Dataset, load_dataset
from hw.evaluate.scores import METRICS, Scored, figures, scored
from hw.machine import facts as host
from hw.run.config import Progress
from hw.run.workpiece import fingerprint
from prism.codecs import Wire, payload_bytes
from prism.decide.accuracy import AccuracyTable, Metric, PlanAccuracy, answers_alike
from prism.decide.table import LOCAL, Objective, Observation, table_of
from prism.errors import ConfigError
from prism.nn.distribute import distribute
from prism.nn.exchange import Exchange, run_in_process
from prism.nn.families import adapter_for
from prism.nn.zoo import Loaded, load_model
from prism.perfmap import load_map
from prism.plan import ExecutionPlan, Mode, combinations
from prism.spec import ModelSpec, Positive
from prism.trace import now_text
from prism.units import parse_rate
from prism.workload import build

Costs = dict[ExecutionPlan, tuple[float, float | None]]  # milliseconds and joules


class EvalConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`prism-hw evaluate` as one file: plans are all combinations of modes, devices, segments and wires. limit: items of the
    data at most. map and bandwidth: for each plan's milliseconds and joules. tokens: texts are cut there."""

    model: str = "fashion-vit"
    weights: str | None = None
    seed: int = 0
    data: str | None = None
    columns: Columns = Columns()
    limit: Positive | None = None
    tokens: Positive | None = None
    batch: Positive = 16
    threads: Positive | None = None
    modes: tuple[Mode, ...] = (Mode.FULL, Mode.SEGMENT_MEANS)
    devices: tuple[Annotated[int, msgspec.Meta(ge=2, le=64)], ...] = (2,)
    segments: tuple[Positive, ...] = ()
    wires: tuple[Wire, ...] = ("fp32",)
    map: str | None = None
    bandwidth: str | None = None

    def plans(self, tokens: int) -> tuple[list[ExecutionPlan], list[str]]:
        """Local first, then every combination that fits so many tokens; and why others don't. Raises ConfigError."""
        if not self.segments and Mode.FULL not in self.modes and any(mode.averages for mode in self.modes):
            raise ConfigError("modes that average need segments: pass --segments 1,4,10")
        modes = [mode for mode in self.modes if mode is not Mode.LOCAL]
        plans, misfits = combinations(tokens, self.devices, self.wires, modes, self.segments)
        return [LOCAL, *plans], misfits


class Header(msgspec.Struct, frozen=True, kw_only=True, tag="evaluation", tag_field="type"):
    """What makes two runs the same. command, created and host are of the first."""

    config: EvalConfig
    weights: str
    data: str
    plans: tuple[ExecutionPlan, ...]
    command: str = ""
    created: str = ""
    host: dict[str, Any] = {}

    def same(self, other: "Header") -> bool:
        return _bare(self) == _bare(other)


def _bare(header: Header) -> bytes:
    """All but who made it when, and what is only looked up afterwards. The batch stays: texts are padded to its longest, and
    a delta codec's groups go across its samples."""
    replace = msgspec.structs.replace
    config = replace(header.config, threads=None, map=None, bandwidth=None)
    return msgspec.json.encode(replace(header, command="", created="", host={}, config=config))


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """The table, and what was left out of it."""

    table: AccuracyTable
    misfits: tuple[str, ...]


class Store:
    """Scored samples in a file, a line each. A cut last line is dropped, and what it held is done again."""

    def __init__(self, path: Path, header: Header) -> None:
        self.rows: dict[tuple[int, int], Scored] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                header = self._read(path, header)
            self._file: IO[bytes] = open(path, "ab")  # noqa: SIM115
        except OSError as error:
            raise ConfigError(f"{path} can't be written ({error.strerror}); choose another --output") from None
        self.header = header
        if self._file.tell() == 0:
            self._write(header)

    def _read(self, path: Path, header: Header) -> Header:
        raw = path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        lines = whole.splitlines()
        if not lines:
            path.write_bytes(b"")
            return header
        try:
            before = msgspec.json.decode(lines[0], type=Header)
            scores = [msgspec.json.decode(line, type=Scored) for line in lines[1:]]
        except msgspec.DecodeError as error:
            raise ConfigError(f"{path} is no evaluation ({error}); choose another --output") from None
        if not before.same(header):
            raise ConfigError(
                f"{path} holds another evaluation ({before.command}): other plans, data or weights; choose another --output"
            )
        if len(whole) < len(raw):
            path.write_bytes(whole)
        self.rows = {(row.plan, row.sample): row for row in scores}
        return before

    def add(self, rows: Sequence[Scored]) -> None:
        for row in rows:
            if (row.plan, row.sample) not in self.rows:
                self.rows[row.plan, row.sample] = row
                self._write(row)
        self._file.flush()

    def _write(self, line: Header | Scored) -> None:
        self._file.write(msgspec.json.encode(line) + b"\n")

    def close(self) -> None:
        self._file.close()


@torch.no_grad()
def evaluate(config: EvalConfig, output: Path, command: str, on_progress: Callable[[Progress], None]) -> Evaluation:
    """Run what `output` doesn't hold yet, and put the table together. Raises PrismError."""
    loaded = load_model(config.model, config.weights, config.seed)
    spec = adapter_for(loaded.model).spec
    data = Path(config.data) if config.data else None
    dataset = load_dataset(data, loaded, config.tokens, config.columns, config.limit)
    lengths = _lengths(config, dataset, spec)
    plans, misfits = config.plans(min(lengths))
    costs = _costs(config, plans)
    header = Header(
        config=config,
        weights=fingerprint(loaded.model),
        data=dataset.digest,
        plans=tuple(plans),
        command=command,
        created=now_text(),
        host=host.describe(config.threads or torch.get_num_threads()),
    )
    store = Store(output / "samples.jsonl", header)
    try:
        _run(config, plans, loaded, dataset, store, on_progress)
    finally:
        store.close()
    tokens = round(sum(lengths) / len(lengths))
    return Evaluation(table=_table(store, dataset, spec, config, tokens, costs), misfits=tuple(misfits))


def _lengths(config: EvalConfig, dataset: Dataset, spec: ModelSpec) -> list[int]:
    """Of each sample as it runs: texts are padded to `tokens`, or to the longest of their batch."""
    samples = dataset.inputs.samples
    fixed = spec.tokens if spec.patch_values else config.tokens
    if fixed:
        return [fixed] * len(samples)
    return [
        length
        for batch in _batches(config, dataset)
        for length in [max(_length(samples[k].content) for k in batch)] * len(batch)
    ]


def _batches(config: EvalConfig, dataset: Dataset) -> list[list[int]]:
    """Samples by number, alike in length: little padding."""
    samples, size = dataset.inputs.samples, config.batch
    order = sorted(range(len(samples)), key=lambda k: _length(samples[k].content))
    return [order[start : start + size] for start in range(0, len(samples), size)]


def _run(
    config: EvalConfig,
    plans: Sequence[ExecutionPlan],
    loaded: Loaded,
    dataset: Dataset,
    store: Store,
    on_progress: Callable[[Progress], None],
) -> None:
    forced = adapter_for(loaded.model).forced
    samples, batches = dataset.inputs.samples, _batches(config, dataset)
    for done, numbers in enumerate(batches):
        missing = [k for k in range(len(plans)) if any((k, number) not in store.rows for number in numbers)]
        if missing:
            chosen = [samples[number] for number in numbers]
            call = dataset.inputs.collate(chosen)
            _threads(config, 1)
            reference = loaded.model(**call, **forced)
            for k in missing:
                _threads(config, plans[k].ranks)
                output = reference if plans[k].ranks == 1 else together(loaded.model, plans[k], call)
                store.add(scored(k, numbers, output, reference, call, chosen, loaded.labels, dataset.task))
        on_progress(Progress(done=done + 1, total=len(batches)))


def _length(content: Any) -> int:
    return len(content) if isinstance(content, list) else 0


def _threads(config: EvalConfig, ranks: int) -> None:
    """Ranks are threads of this process: together they get its cores."""
    torch.set_num_threads(config.threads or max(1, (os.cpu_count() or 1) // ranks))


def together(model: torch.nn.Module, plan: ExecutionPlan, call: dict[str, Any]) -> Any:
    """A plan's output with every part in this process and one copy of the weights."""

    def body(exchange: Exchange) -> Any:
        part = distribute(model, plan, exchange)
        return part(**call) if exchange.rank == 0 else part.follow()

    return run_in_process(plan.ranks, body)[0]


# -- the table --------------------------------------------------------------------------------------------------------


def _table(
    store: Store, dataset: Dataset, spec: ModelSpec, config: EvalConfig, tokens: int, costs: Costs
) -> AccuracyTable:
    by_plan: dict[int, list[Scored]] = defaultdict(list)
    for key in sorted(store.rows):
        by_plan[key[0]].append(store.rows[key])
    metric: Metric = METRICS[dataset.task]
    if metric == "top1" and all(row.value is None for row in by_plan[0]):
        metric = "cosine"  # nothing has a label that the model knows
    rows = []
    for k, scores in by_plan.items():
        plan = store.header.plans[k]
        found = figures(scores, metric, dataset.pairs, by_plan[0], config.seed)
        ms, joules = costs.get(plan, (None, None))
        sent = _sent_bytes(plan, spec.width, tokens)
        whole = _sent_bytes(
            msgspec.structs.replace(plan, mode=Mode.FULL, segments=None, wire="fp32"), spec.width, tokens
        )
        flops = build(spec, plan, 1, tokens)
        rows.append(
            PlanAccuracy(
                plan=plan,
                cr=whole / sent if sent else 1.0,
                bytes_per_exchange=sent,
                ms=ms,
                joules=joules,
                gflops_per_device=max(flops.flops(rank) for rank in range(plan.ranks)) / 1e9,
                **msgspec.structs.asdict(found),
            )
        )
    header = store.header
    return AccuracyTable(
        created=header.created,
        command=header.command,
        model=config.model,
        weights=header.weights,
        data=f"{config.data or 'bundled images'} ({header.data})",
        n=len(by_plan[0]),
        unreadable=dataset.unreadable,
        metric=metric,
        tokens=tokens,
        config=msgspec.to_builtins(config),
        host=header.host,
        rows=tuple(rows),
    )


def _sent_bytes(plan: ExecutionPlan, width: int, tokens: int) -> int:
    """Of the terminal's part, in one block, for one sample."""
    return 0 if plan.ranks == 1 else payload_bytes(plan.wire, plan.sent_rows(tokens)[0] * width)


def _costs(config: EvalConfig, plans: Sequence[ExecutionPlan]) -> Costs:
    """Milliseconds and joules of a batch of one by the map, of the plans that it has; of cells that differ in what answers
    don't depend on, the quickest. Raises ConfigError without a rate to look at."""
    if config.map is None:
        return {}
    if config.bandwidth is None:
        raise ConfigError("a map has plans of several devices by rate: pass --bandwidth, as in 100Mbps")
    table = table_of([load_map(Path(config.map))], config.model)
    rate = parse_rate(config.bandwidth)
    found: Costs = {}
    for timed in table.plans:
        plan = answers_alike(timed)
        expected = table.at(Observation(batch=1, devices=plan.ranks, bandwidth_bps=rate, at_s=0.0), Objective()).of(
            timed
        )
        if expected is not None and plan in plans and (plan not in found or expected.ms < found[plan][0]):
            found[plan] = (expected.ms, expected.joules)
    return found
