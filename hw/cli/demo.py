"""The main job on an embedded default: what `make demo` runs."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from hw.cli.demo_page import Section, demo_page, run_label
from hw.run.config import Outcome, Progress, RunConfig
from hw.run.launch import run_local
from prism.errors import InputError
from prism.plan import Mode
from prism.trace import now_text

Bar = Callable[[bool], AbstractContextManager[Callable[[Progress], None]]]
LINK = "shaper:100Mbps"
SECTIONS = (
    (
        "A trained ViT on labelled images",
        "fashion-vit, 0.2 M parameters, 300 Fashion-MNIST test images, two processes",
        (
            RunConfig(mode=Mode.LOCAL, batch=10, batches=0, link=LINK),
            RunConfig(mode=Mode.FULL, batch=10, batches=0, link=LINK),
            RunConfig(mode=Mode.FULL, batch=10, batches=0, link=LINK, wire="int8"),
            RunConfig(mode=Mode.SEGMENT_MEANS, segments=5, batch=10, batches=0, link=LINK),
        ),
    ),
    (
        "ViT-Base, for timing",
        "vit_base_patch16_224 with random weights: agreement says how far the means bend an untrained model",
        tuple(
            RunConfig(model="vit_base_patch16_224", weights="random", batches=8, link=LINK, **fields)
            for fields in (
                dict(mode=Mode.LOCAL),
                dict(mode=Mode.FULL),
                dict(mode=Mode.FULL, wire="int8"),
                dict(mode=Mode.SEGMENT_MEANS, segments=10),
            )
        ),
    ),
)


def run_demo(output: Path, command: str, console: Console, bar: Bar) -> None:
    """Run every section, print a table each, and leave a page, the traces and the figures in `output`."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{output} can't be made ({error}); choose another --output") from None
    sections = []
    for number, (title, about, configs) in enumerate(SECTIONS):
        outcomes = []
        for index, config in enumerate(configs):
            console.print(f"[dim]{config.model}, {config.mode.value}, wire {config.wire} ...[/]")
            traced = msgspec.structs.replace(config, trace=str(output / f"trace-{number}-{index}.jsonl"))
            with bar(False) as on_progress:
                outcomes.append(run_local(traced, command, on_progress))
        console.print(outcomes_table(title, outcomes))
        sections.append(Section(title=title, about=about, outcomes=tuple(outcomes)))
    (output / "demo.json").write_bytes(msgspec.json.encode(sections))
    page = output / "index.html"
    page.write_text(demo_page("Prism demo", now_text(), command, sections), encoding="utf-8")
    console.print(f"The page: {page}; the figures: {output / 'demo.json'}")


def outcomes_table(title: str, outcomes: list[Outcome]) -> Table:
    """Tabulate the runs of a section, a row each."""
    first = outcomes[0]
    columns = ("run", "p50 ms", "compute", "wait", "wire", "bytes", "top-1", "agreement")
    view = Table(*columns, title=title, caption=f"batch {first.batch}, {LINK}; the leader's medians in ms")
    for column in view.columns[1:]:
        column.justify = "right"
    view.columns[0].no_wrap = True
    for outcome in outcomes:
        view.add_row(
            run_label(outcome),
            f"{outcome.latency_ms['p50']:.1f}",
            *[f"{outcome.split_ms[kind]:.1f}" for kind in ("compute", "wait", "wire")],
            f"{outcome.bytes_per_exchange:,}" if outcome.devices > 1 else "-",
            "-" if outcome.top1 is None else f"{outcome.top1:.1%}",
            f"{outcome.agreement:.1%}",
        )
    if any(outcome.oversubscribed for outcome in outcomes):
        view.caption = f"{view.caption}\noversubscribed: ranks share cores here, so times are no device's"
    return view
