"""Evaluate a model's plans over labelled data, each against the uncompressed model.

All parts of a plan run in this process, as threads that share one copy of the weights. What crosses a link goes through
the same codecs and masks as between devices. Results are appended to a file, from which a killed run goes on.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from hw.evaluate.config import EvalConfig
from hw.evaluate.datasets import Dataset, load_dataset
from hw.evaluate.in_process import together
from hw.evaluate.scores import METRICS, SampleScore, figures, scored
from hw.evaluate.store import EvalHeader, Store
from hw.machine import facts as host
from hw.machine.threads import even_share
from prism.cli.progress import Progress
from prism.decide.accuracy import AccuracyTable, Metric, PlanAccuracy, answers_alike
from prism.decide.table import Objective, Observation, table_of
from prism.nn.families import adapter_for
from prism.nn.zoo import Loaded, fingerprint, load_model
from prism.perfmap import load_map
from prism.plan import ExecutionPlan, Mode
from prism.spec import ModelSpec
from prism.trace import now_text
from prism.units import parse_rate
from prism.workload import build

Costs = dict[ExecutionPlan, tuple[float, float | None]]  # milliseconds and joules


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """The accuracy table, and the reasons why plans were left out of it."""

    table: AccuracyTable
    misfits: tuple[str, ...]


@torch.no_grad()
def evaluate(config: EvalConfig, output: Path, command: str, on_progress: Callable[[Progress], None]) -> Evaluation:
    """Run what `output` doesn't hold yet, and put the table together. Raises PrismError."""
    config.check()
    loaded = load_model(config.model, config.weights, config.seed)
    spec = adapter_for(loaded.model).spec
    data = Path(config.data) if config.data else None
    dataset = load_dataset(data, loaded, config.tokens, config.columns, config.limit)
    lengths = _lengths(config, dataset, spec)
    plans, misfits = config.plans(min(lengths))
    costs = _costs(config, plans)
    header = EvalHeader(
        config=config,
        weights=fingerprint(loaded.model),
        data=dataset.digest,
        plans=tuple(plans),
        command=command,
        created=now_text(),
        host=host.describe_machine(config.threads or torch.get_num_threads()),
    )
    store = Store(output / "samples.jsonl", header)
    try:
        _run(config, plans, loaded, dataset, store, on_progress)
    finally:
        store.close()
    tokens = round(sum(lengths) / len(lengths))
    return Evaluation(table=_table(store, dataset, spec, config, tokens, costs), misfits=tuple(misfits))


def _lengths(config: EvalConfig, dataset: Dataset, spec: ModelSpec) -> list[int]:
    """Count the tokens of each sample as it runs: texts are padded to `tokens`, or to the longest of their batch."""
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
    """Group samples of about the same length, by number, so that little is padded."""
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
    """Share the cores between the ranks, which are threads of this process."""
    torch.set_num_threads(config.threads or even_share(ranks))


# -- the table --------------------------------------------------------------------------------------------------------


def _table(
    store: Store, dataset: Dataset, spec: ModelSpec, config: EvalConfig, tokens: int, costs: Costs
) -> AccuracyTable:
    by_plan: dict[int, list[SampleScore]] = defaultdict(list)
    for key in sorted(store.rows):
        by_plan[key[0]].append(store.rows[key])
    metric: Metric = METRICS[dataset.task]
    if metric == "top1" and all(row.value is None for row in by_plan[0]):
        metric = "cosine"  # nothing has a label that the model knows
    rows = []
    for k, scores in by_plan.items():
        plan = store.header.plans[k]
        summary = figures(scores, metric, dataset.pairs, by_plan[0], config.seed)
        ms, joules = costs.get(plan, (None, None))
        full = msgspec.structs.replace(plan, mode=Mode.FULL, segments=None, wire="fp32")
        sent, whole = (form.message_bytes(1, tokens, spec.width) for form in (plan, full))
        graph = build(spec, plan, 1, tokens)
        rows.append(
            PlanAccuracy(
                plan=plan,
                cr=whole / sent if sent else 1.0,
                bytes_per_exchange=sent,
                ms=ms,
                joules=joules,
                gflops_per_device=max(graph.flops(rank) for rank in range(plan.ranks)) / 1e9,
                **msgspec.structs.asdict(summary),
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


def _costs(config: EvalConfig, plans: Sequence[ExecutionPlan]) -> Costs:
    """Look up milliseconds and joules of a batch of one for the plans that the map has.

    Of cells that differ in what answers don't depend on, the quickest counts. Raises ConfigError, TraceError.
    """
    if config.map is None or config.bandwidth is None:
        return {}
    table = table_of([load_map(Path(config.map))], config.model)
    rate = parse_rate(config.bandwidth)
    costs: Costs = {}
    for timed in table.plans:
        plan = answers_alike(timed)
        at = Observation(batch=1, devices=plan.ranks, bandwidth_bps=rate, at_s=0.0)
        expected = table.at(at, Objective()).of(timed)
        if expected is not None and plan in plans and (plan not in costs or expected.ms < costs[plan][0]):
            costs[plan] = (expected.ms, expected.joules)
    return costs
