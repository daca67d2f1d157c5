"""prism-sim predict, trace and workload: one point, its trace, and the work that it is made of."""

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from prism.backend import Workload
from prism.cli.options import option
from prism.cost import CalibratedProfile, load_profile
from prism.errors import ConfigError
from prism.files import write_file
from prism.plan import LOCAL, ExecutionPlan, Mode
from prism.report.figures import drawn
from prism.spec import ModelSpec, load_model_spec
from prism.trace import perfetto, write_trace
from prism.workload import build
from sim.ask.memory_limit import memory_limit, that_fit
from sim.ask.point import Point, PointPrediction, outside_of, predict
from sim.cli import options
from sim.cli.answer_figures import prediction_bars
from sim.cli.answer_tables import extrapolated, prediction_rows, predictions_table
from sim.cli.options import PLAN
from sim.cli.presentation import Presentation
from sim.engine.backend import SimBackend, identical


def predict_command(
    model: options.ModelOptions,
    plan: options.ExchangeOptions,
    link: options.VaryingLinkOptions,
    output: options.OutputOptions,
    profile: options.Profile = "orin-nano",
    batch: options.BatchSize = 1,
    memory: options.Memory = None,
    draws: options.Draws = 48,
    seed: options.Seed = 0,
) -> None:
    """Predict latency, its split and energy of every mode at one point, with a 90 % interval."""
    costs, spec = load_profile(profile), model.spec()
    models = costs.draws(draws, seed) if draws else []
    place = Point(model=spec, plan=LOCAL, batch=batch, link=link.spec(), topology=link.topology, seed=seed)
    points = [msgspec.structs.replace(place, plan=each) for each in every_way(plan, costs, spec, batch)]
    fitting, too_large = that_fit(points, memory_limit(memory, costs))
    cells = [predict(costs, point, models, seed) for point in fitting]
    title = f"{spec.name}, {spec.tokens} tokens, batch {batch}, profile {costs.name}"
    _prediction_answer(cells, title, costs.name, too_large).show(output)


def _prediction_answer(cells: list[PointPrediction], title: str, profile: str, left_out: list[str]) -> Presentation:
    return Presentation(
        title="Prediction",
        profile=profile,
        whole=[cell.flat() for cell in cells],
        view=predictions_table(cells, title),
        lines=[
            *extrapolated(reason for cell in cells for reason in cell.outside),
            *(f"left out: {reason}" for reason in left_out),
        ],
        rows=prediction_rows(cells),
        figure=lambda: drawn(prediction_bars, cells),
    )


def every_way(
    plan: options.PlanOptions, profile: CalibratedProfile, model: ModelSpec, batch: int
) -> list[ExecutionPlan]:
    """Make the plans of local, full exchange, means, replicas and stages, as far as the batch and the blocks go.

    Local alone for one device; with replicas or stages given, the ways of their combination.
    """
    given = plan.replicas * plan.stages > 1
    if plan.count == 1 and not given:
        return [LOCAL]
    plans = [plan.plan(profile, model, mode) for mode in (Mode.FULL, Mode.SEGMENT_MEANS)]
    if not given and plan.count <= batch:
        plans.append(plan.way(profile, model, "replicas"))
    if not given and plan.count <= model.blocks:
        plans.append(plan.way(profile, model, "stages"))
    return [LOCAL, *dict.fromkeys(plans)]


def trace_command(
    model: options.ModelOptions,
    plan: options.ExchangeOptions,
    link: options.VaryingLinkOptions,
    mode: Annotated[Mode, option("The plan.", PLAN)] = Mode.SEGMENT_MEANS,
    file: Annotated[Path | None, typer.Option("--trace", help="The trace, as JSON lines.")] = None,
    perfetto_file: Annotated[Path | None, typer.Option("--perfetto", help="For ui.perfetto.dev.")] = None,
    batches: Annotated[int, typer.Option(min=1, help="Measured batches.")] = 2,
    profile: options.Profile = "orin-nano",
    batch: options.BatchSize = 1,
    seed: options.Seed = 0,
) -> None:
    """Simulate batches and write their trace: the file that prism-hw show and map read, or a Perfetto one."""
    if file is None and perfetto_file is None:
        raise ConfigError("nothing to write: give --trace FILE or --perfetto FILE")
    costs, spec = load_profile(profile), model.spec()
    chosen = plan.plan(costs, spec, mode)
    point = Point(model=spec, plan=chosen, batch=batch, link=link.spec(), topology=link.topology)
    for line in extrapolated(outside_of(costs, point)):
        print(line, file=sys.stderr)
    machines = identical(costs, costs.model(), plan.count, point.link, kind=link.topology)
    trace = SimBackend(machines).run(chosen, Workload(model=spec, batch=batch, batches=batches, warmups=1, seed=seed))
    if file is not None:
        write_trace(file, trace.header, trace.records)
    if perfetto_file is not None:
        write_file(perfetto_file, perfetto(trace))


def workload_command(
    spec: Annotated[Path, typer.Argument(help="A model specification (JSON).")],
    devices: options.Devices = 2,
    segments: Annotated[int | None, option("L, means per part; without it full exchange.", PLAN)] = None,
    batch: options.BatchSize = 1,
) -> None:
    """Print the work of each device, in GFLOPs, and the bytes that all of them exchange per block."""
    mode = Mode.LOCAL if devices == 1 else Mode.SEGMENT_MEANS if segments else Mode.FULL
    graph = build(load_model_spec(spec), ExecutionPlan(mode=mode, devices=devices, segments=segments), batch)
    gflops = [graph.flops(rank) / 1e9 for rank in range(devices)]
    print(msgspec.json.encode({"gflops": gflops, "block_bytes": graph.block_bytes()}).decode())
