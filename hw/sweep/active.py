"""Choose a sweep's visits one by one: calibration.next_visit over its cells and the traces in its folder."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from calibration.next_visit import candidate, pick
from hw.run.config import RunConfig
from hw.sweep.config import SweepConfig, Visit, cells, file_name
from hw.sweep.runner import Order
from prism.link import LinkSpec
from prism.perfmap.pooling import whole_batches
from prism.spec import ModelSpec
from prism.trace import read_trace

OnRegret = Callable[[str, float], None]  # takes a model and the regret, in per cent, that its decisions should cost


def chosen(
    sweep: SweepConfig, folder: Path, specs: Mapping[str, ModelSpec], target_pct: float, on_regret: OnRegret
) -> Order:
    """Make an order that goes from model to model (loading one takes long).

    It stays with a model until its decisions are expected to cost at most `target_pct` of latency, or every cell has
    its repeats.
    """

    def order(todo: Sequence[Visit]) -> Iterator[Visit]:
        ranks = {visit.ranks for visit in todo}
        for model in sweep.models:
            mine = [config for config, needs in cells(sweep) if config.model == model and needs in ranks]
            if mine:
                yield from _of_model(sweep, folder, specs[model], mine, next(iter(ranks)), target_pct, on_regret)

    return order


def _of_model(
    sweep: SweepConfig,
    folder: Path,
    spec: ModelSpec,
    configs: Sequence[RunConfig],
    ranks: int,
    target_pct: float,
    on_regret: OnRegret,
) -> Iterator[Visit]:
    candidates = [candidate(spec, config.plan, config.batch, _link(config), config.tokens) for config in configs]
    times: dict[str, list[float]] = defaultdict(list)
    files = [[file_name(config, repeat) for repeat in range(sweep.repeats)] for config in configs]
    while True:
        for name in (name for of_cell in files for name in of_cell if name not in times and (folder / name).exists()):
            times[name] = [(b.end_ns - b.start_ns) / 1e6 for b in whole_batches(read_trace(folder / name))]
        visits = [[float(np.median(times[name])) for name in of_cell if times.get(name)] for of_cell in files]
        choice = pick(candidates, visits, sweep.repeats)
        on_regret(configs[0].model, choice.regret_pct)
        if choice.place is None or choice.regret_pct <= target_pct:
            return
        place = choice.place
        repeat = next(k for k, name in enumerate(files[place]) if not times.get(name))
        yield Visit(config=configs[place], repeat=repeat, ranks=ranks, file=files[place][repeat])


def _link(config: RunConfig) -> LinkSpec:
    return LinkSpec() if config.plan.ranks == 1 else config.link_spec()
