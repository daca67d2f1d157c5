"""prism-sim crossover, sensitivity and what-if: where an answer flips, what it hangs on, and a whole grid."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import typer

from prism.cost import load_profile
from prism.errors import ConfigError
from prism.report.figures import drawn
from prism.spec import ModelSpec
from sim.ask import study as grid
from sim.ask.break_even import Influence, PlanBreakEven, find_break_even, sensitivity
from sim.ask.point import Point, PointAxis, outside_of
from sim.ask.study import Result
from sim.ask.study_file import Study, load_study
from sim.cli import options
from sim.cli.answer_figures import crossover_figure, front_figure
from sim.cli.answer_tables import (
    crossover_line,
    extrapolated,
    prediction_rows,
    predictions_table,
    sensitivity_table,
    study_lines,
)
from sim.cli.presentation import Presentation


def crossover_command(
    model: options.ModelOptions,
    over: Annotated[PointAxis, typer.Option(help="The quantity that varies.")],
    plan: options.ExchangeOptions,
    link: options.LinkOptions,
    output: options.OutputOptions,
    mode: options.DistributedMode = "segment_means",
    against: options.Against = "local",
    values: Annotated[str, typer.Option(help="Its values, as in 50,100,400; Mbps for bandwidth.")] = "",
    profile: options.Profile = "orin-nano",
    batch: options.BatchSize = 1,
    draws: options.Draws = 32,
    seed: options.Seed = 0,
) -> None:
    """Find where a distributed plan becomes as fast as another one: a value with its interval, always, or never."""
    costs, spec = load_profile(profile), model.spec()
    chosen, other = plan.way(costs, spec, mode), plan.way(costs, spec, against)
    point = Point(model=spec, plan=chosen, batch=batch, link=link.spec(), topology=link.topology, seed=seed)
    found = find_break_even(costs, point, over, _numbers(values, over), draws, seed, against=other)
    _crossover_answer(found, costs.name).show(output)


def _crossover_answer(flip: PlanBreakEven, profile: str) -> Presentation:
    latencies = zip(flip.values, flip.local_ms, flip.distributed_ms, strict=True)
    return Presentation(
        title=f"Crossover over {flip.over}",
        profile=profile,
        whole=_crossover_json(flip),
        view=crossover_line(flip),
        lines=extrapolated(flip.outside),
        rows=[{flip.over: value, "local_ms": local, "distributed_ms": ours} for value, local, ours in latencies],
        figure=lambda: drawn(crossover_figure, flip),
    )


def _crossover_json(flip: PlanBreakEven) -> dict[str, Any]:
    return {
        "over": flip.over,
        "class": flip.kind,
        "value": flip.value,
        "interval": flip.interval,
        "p_distributed_wins": flip.p_distributed_wins,
        "tag": flip.tag,
        "wins": flip.wins,
        "outside": flip.outside,
        "values": flip.values,
        "local_ms": flip.local_ms,
        "distributed_ms": flip.distributed_ms,
        "plan": flip.plan,
        "against": flip.against,
    }


def _numbers(text: str, over: str) -> tuple[float, ...]:
    """Parse the values of an axis. Raises ConfigError."""
    try:
        values = tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ConfigError(f"values {text!r} are no numbers; write them like 50,100,400") from None
    if values and (len(set(values)) < 2 or not all(0 < value < float("inf") for value in values)):
        raise ConfigError(
            f"values {text!r}: at least two different, finite ones above 0 are needed to cross over {over}"
        )
    if over != "bandwidth" and any(value != int(value) for value in values):
        raise ConfigError(f"values {text!r}: {over} takes whole numbers alone; write them like 1,2,4")
    return values


def sensitivity_command(
    model: options.ModelOptions,
    plan: options.PlanOptions,
    link: options.SteadyLinkOptions,
    output: options.OutputOptions,
    mode: options.DistributedMode = "segment_means",
    profile: options.Profile = "orin-nano",
    batch: options.BatchSize = 1,
) -> None:
    """Rank the profile's terms by what the answer hangs on: each is moved by its own standard deviation."""
    costs, spec = load_profile(profile), model.spec()
    point = Point(model=spec, plan=plan.way(costs, spec, mode), batch=batch, link=link.spec())
    influences = sensitivity(costs, point)
    _sensitivity_answer(influences, costs.name, outside_of(costs, point)).show(output)


def _sensitivity_answer(influences: Sequence[Influence], profile: str, outside: Sequence[str]) -> Presentation:
    flips = [influence.term for influence in influences if influence.flips]
    line = f"the winner hangs on {', '.join(flips)}" if flips else "no term alone changes the winner"
    return Presentation(
        title="Sensitivity",
        profile=profile,
        whole=influences,
        view=sensitivity_table(influences),
        lines=[line, *extrapolated(outside)],
        rows=[msgspec.structs.asdict(influence) for influence in influences],
    )


def what_if_command(
    study: Annotated[Path, typer.Argument(help="A study (TOML): grid, objective, constraints, inverse questions.")],
    output: options.OutputOptions,
    engine: Annotated[Literal["pool", "ray"], typer.Option(help="Processes here, or a Ray cluster.")] = "pool",
    address: Annotated[str | None, typer.Option(help="Of the Ray cluster.")] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Default: one a core.")] = None,
) -> None:
    """Predict a grid over everything: the best cell, the Pareto front, and questions backwards."""
    asked = load_study(study)
    run = grid.over_ray(address) if engine == "ray" else grid.over_processes(processes or os.cpu_count() or 1)
    result = grid.solve(asked, _models(asked, study.parent), run)
    _study_answer(result, asked, study.name).show(output)


def _study_answer(result: Result, asked: Study, name: str) -> Presentation:
    front = [result.cells[k] for k in result.front]
    return Presentation(
        title=f"Study {name}",
        profile=asked.profile,
        whole=result.flat(),
        view=predictions_table(front, "Pareto front: latency and energy per sample"),
        lines=study_lines(result),
        rows=prediction_rows(result.cells),
        figure=lambda: drawn(front_figure, result),
        config=msgspec.json.format(msgspec.json.encode(asked)).decode(),
    )


def _models(asked: Study, folder: Path) -> list[ModelSpec]:
    """Find the models of a study; a spec file may lie beside it."""
    names = (asked.model,) if isinstance(asked.model, str) else asked.model
    beside = [str(folder / n) if n.endswith(".json") and not Path(n).is_file() else n for n in names]
    return [options.model_of(name) for name in beside]
