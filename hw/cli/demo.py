"""prism-hw demo: the main job on an embedded default."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from hw.run.config import RunConfig
from prism.cli import entry
from prism.cli.progress import bar
from prism.errors import InputError
from prism.labels import plan_label
from prism.plan import LOCAL, ExecutionPlan, Mode

if TYPE_CHECKING:
    from rich.table import Table

    from hw.run.messages import Outcome

app = typer.Typer()
LINK = "shaper:100Mbps"
FULL = ExecutionPlan(mode=Mode.FULL, devices=2)
INT8 = ExecutionPlan(mode=Mode.FULL, devices=2, wire="int8")


def _means(segments: int) -> ExecutionPlan:
    return ExecutionPlan(mode=Mode.SEGMENT_MEANS, devices=2, segments=segments)


SECTIONS = (
    (
        "A trained ViT on labelled images",
        "fashion-vit, 0.2 M parameters, 300 Fashion-MNIST test images, two processes",
        [RunConfig(plan=plan, batch=10, batches=0, link=LINK) for plan in (LOCAL, FULL, INT8, _means(5))],
    ),
    (
        "ViT-Base, for timing",
        "vit_base_patch16_224 with random weights: agreement says how far the means bend an untrained model",
        [
            RunConfig(model="vit_base_patch16_224", weights="random", plan=plan, batches=8, link=LINK)
            for plan in (LOCAL, FULL, INT8, _means(10))
        ],
    ),
)


@app.command(epilog="Example: prism-hw demo --output out/demo")
def demo(
    output: Annotated[Path, typer.Option(help="Folder of the page, the traces and the figures.")] = Path("out/demo"),
) -> None:
    """The main job on an embedded default: a trained ViT on labelled images, then a ViT-Base for timing."""
    from rich.console import Console

    from hw.cli.demo_page import Section, demo_page
    from hw.run.launch import run_local
    from prism.trace import now_text

    command, console = entry.command_line(), Console()
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{output} can't be made ({error}); choose another --output") from None
    sections = []
    for number, (title, about, configs) in enumerate(SECTIONS):
        outcomes = []
        for index, config in enumerate(configs):
            console.print(f"[dim]{config.model}, {plan_label(config.plan)} ...[/]")
            traced = msgspec.structs.replace(config, trace=str(output / f"trace-{number}-{index}.jsonl"))
            with bar(False) as on_progress:
                outcomes.append(run_local(traced, command, on_progress))
        console.print(outcomes_table(title, outcomes))
        sections.append(Section(title=title, about=about, outcomes=tuple(outcomes)))
    (output / "demo.json").write_bytes(msgspec.json.encode([section.flat() for section in sections]))
    page = output / "index.html"
    page.write_text(demo_page("Prism demo", now_text(), command, sections), encoding="utf-8")
    console.print(f"The page: {page}; the figures: {output / 'demo.json'}")


def outcomes_table(title: str, outcomes: "list[Outcome]") -> "Table":
    """Compare runs, one a row."""
    from rich.table import Table

    first = outcomes[0]
    columns = ("run", "p50 ms", "compute", "wait", "wire", "bytes", "top-1", "agreement")
    view = Table(*columns, title=title, caption=f"batch {first.batch}, {LINK}; the leader's medians in ms")
    for column in view.columns[1:]:
        column.justify = "right"
    view.columns[0].no_wrap = True
    for outcome in outcomes:
        view.add_row(
            plan_label(outcome.plan),
            f"{outcome.latency_ms['p50']:.1f}",
            *[f"{outcome.split_ms[kind]:.1f}" for kind in ("compute", "wait", "wire")],
            f"{outcome.bytes_per_exchange:,}" if outcome.plan.ranks > 1 else "-",
            "-" if outcome.top1 is None else f"{outcome.top1:.1%}",
            f"{outcome.agreement:.1%}",
        )
    if any(outcome.oversubscribed for outcome in outcomes):
        view.caption = f"{view.caption}\noversubscribed: ranks share cores here, so times are no device's"
    return view
