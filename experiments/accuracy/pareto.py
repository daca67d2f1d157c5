"""Find which plans are Pareto-optimal in accuracy against bytes, work, time or energy.

    python -m experiments.accuracy.pareto

Each plan of the measured accuracy tables (experiments/results/accuracy/MODEL.json) gets its milliseconds and joules
from the simulator with the profile orin-nano: batch 8, joules of all devices, 100 and 400 Mbps. `best_in` names the
costs (bytes, GFLOPs of a device, milliseconds, joules) in which no other distributed plan of the model both loses and
costs less. Local, which loses nothing, is listed beside them. No weights are needed. The profile comes from published
rows of ViT-Base alone, so other widths, depths, rates and codecs are extrapolations, and `outside` marks them.

The results are experiments/results/accuracy/pareto.json and pareto.png.
"""

import json
from pathlib import Path
from typing import Any

import msgspec

from experiments.accuracy.run import KINDS, RESULTS, SUBJECTS, lost
from prism.cost import CalibratedProfile, load_profile
from prism.decide.accuracy import AccuracyTable, PlanAccuracy, load_accuracy
from prism.link import LinkSpec
from prism.nn.zoo import describe
from prism.plan import Mode
from prism.spec import ModelSpec
from sim.ask.point import Point, plan_of, predict, with_tokens

BATCH, MBPS = 8, (100, 400)
Line = dict[str, Any]


def specs() -> dict[str, ModelSpec]:
    """Describe the models of the tables without their weights (experiments/assets/weights.py)."""
    replace = msgspec.structs.replace
    dinov2 = replace(describe("vit_small_patch14_dinov2"), output_width=10)
    minilm = replace(describe("bert-base-uncased"), blocks=6, width=384, heads=12, mlp_width=1536, output_width=0)
    return {
        "dinov2-fashion": dinov2,
        "minilm": minilm,
        "minilm-bbc": replace(minilm, output_width=5),
        "smollm2-135m": describe("HuggingFaceTB/SmolLM2-135M"),
        "gpt2-brown": replace(describe("gpt2"), blocks=4, width=256, heads=4, mlp_width=1024, output_width=4096),
    }


def costs(profile: CalibratedProfile, spec: ModelSpec, row: PlanAccuracy) -> Line:
    """Predict milliseconds and joules of a batch at each rate; `outside` names what the profile extrapolates."""
    plan, found = row.plan, Line(outside=[])
    if plan.ranks > 1:
        collective = "mesh" if spec.causal else None
        plan = plan_of(profile, plan.mode, plan.ranks, segments=plan.segments, wire=plan.wire, collective=collective)
    for mbps in MBPS:
        link = LinkSpec(kind="testbed", rate_bps=mbps * 1e6)
        said = predict(profile, Point(model=spec, plan=plan, batch=BATCH, link=link))
        found[f"ms_{mbps}mbps"], found[f"joules_{mbps}mbps"] = said.latency_ms, said.energy_j
        found["outside"] = sorted({*found["outside"], *said.outside})
    return found


def lines_of(profile: CalibratedProfile, table: AccuracyTable, spec: ModelSpec) -> list[Line]:
    """Make a line for each plan of a table."""
    spec = with_tokens(spec, table.tokens)
    lines = []
    for row in table.rows:
        line: Line = {
            "model": table.model,
            "devices": row.plan.ranks,
            "variant": row.plan.mode.value,
            "segments": row.plan.segments,
            "wire": row.plan.wire,
            "cr": round(row.cr, 3),
            "loss": max(lost(row), 0.0),
            "agreement": row.agreement,
            "bytes": row.bytes_per_exchange,
            "gflops": row.gflops_per_device,
        }
        lines.append({**line, **costs(profile, spec, row)})
    apart = [line for line in lines if line["devices"] > 1]
    for line in apart:
        line["best_in"] = [cost for cost in cost_names() if not any(beats(other, line, cost) for other in apart)]
    return lines


def cost_names() -> list[str]:
    """List the costs that plans are compared by."""
    return ["bytes", "gflops", *(f"{kind}_{mbps}mbps" for kind in ("ms", "joules") for mbps in MBPS)]


def beats(one: Line, other: Line, cost: str) -> bool:
    """Say whether one plan loses and costs no more than the other, and less of either."""
    mine, its = (one["loss"], one[cost]), (other["loss"], other[cost])
    return mine != its and mine[0] <= its[0] and mine[1] <= its[1]


def place(line: Line, cost: str, least: float) -> tuple[float, float]:
    """Locate a plan in a plot of loss over cost; no loss is drawn below `least`."""
    return line[cost], max(line["loss"], least)


def plot(lines: list[Line], path: Path) -> None:
    """Plot loss over milliseconds above and over joules below, at the lower rate, a column per model, fronts joined."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    models = list(dict.fromkeys(line["model"] for line in lines))
    figure, grid = plt.subplots(2, len(models), figsize=(3.2 * len(models), 6.4), layout="constrained", squeeze=False)
    for model, column in zip(models, grid.T, strict=True):
        mine = [line for line in lines if line["model"] == model]
        least = min(line["loss"] for line in mine if line["loss"] > 1e-6) / 3  # where lossless plans are drawn
        for axes, cost in zip(column, (f"ms_{MBPS[0]}mbps", f"joules_{MBPS[0]}mbps"), strict=True):
            for mode, wires, name, colour, marker in KINDS:
                some = [
                    place(line, cost, least) for line in mine if line["variant"] == mode.value and line["wire"] in wires
                ]
                axes.plot(*zip(*some, strict=True), marker, color=colour, ms=4, label=name)
            local = next(line for line in mine if line["variant"] == Mode.LOCAL.value)
            axes.plot(*place(local, cost, least), "k*", ms=11, label="local")
            front = sorted(place(line, cost, least) for line in mine if cost in line.get("best_in", ()))
            axes.plot(*zip(*front, strict=True), color="0.6", lw=1, zorder=0)
            axes.set(xscale="log", yscale="log", xlabel=f"{cost.partition('_')[0]} of {BATCH}, {MBPS[0]} Mbps")
            axes.xaxis.set_minor_formatter(NullFormatter())  # over less than a decade they would run into each other
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.spines[["top", "right"]].set_visible(False)
        column[0].set(title=model)
    grid[0, 0].set(ylabel="loss (lowest: none)")
    grid[1, 0].set(ylabel="loss (lowest: none)")
    grid[0, 0].legend(frameon=False, fontsize=7)
    figure.savefig(path, dpi=100)


def main() -> None:
    profile, shapes = load_profile("orin-nano"), specs()
    lines: list[Line] = []
    for subject in SUBJECTS:
        lines += lines_of(profile, load_accuracy(RESULTS / f"{subject.model}.json"), shapes[subject.model])
    header = {
        "command": "python -m experiments.accuracy.pareto",
        "profile": profile.name,
        "batch": BATCH,
        "rates_mbps": MBPS,
    }
    rows = ",\n".join(json.dumps(line) for line in lines)
    (RESULTS / "pareto.json").write_text(json.dumps(header)[:-1] + ', "plans": [\n' + rows + "\n]}\n")
    plot(lines, RESULTS / "pareto.png")
    for line in lines:
        if line["devices"] == 1 or f"ms_{MBPS[0]}mbps" in line["best_in"]:
            print(
                f"{line['model']:15} P={line['devices']} {line['variant']:15} "
                f"L={line['segments'] or '-':<4} {line['wire']:7}"
                f" loss {line['loss']:.4g}  {line[f'ms_{MBPS[0]}mbps']:.1f} ms  {line[f'joules_{MBPS[0]}mbps']:.2f} J"
            )


if __name__ == "__main__":
    main()
