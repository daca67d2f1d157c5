"""prism-hw evaluate: what compression costs in answers."""

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from hw.cli.flags import MODEL, TOKENS, WEIGHTS, Config, Json
from hw.evaluate.config import Columns, EvalConfig
from prism.cli import entry
from prism.cli.options import MEASURE_PANEL, MODEL_PANEL, OUTPUT_PANEL, PLAN_PANEL, numbers, option, takes
from prism.cli.progress import bar
from prism.codecs import WIRES
from prism.config import merged
from prism.files import write_file

app = typer.Typer()


def _words(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",")]


def _devices(text: str | None) -> list[int] | None:
    return numbers(text, int, "devices", "2,3,4")


def _segments(text: str | None) -> list[int] | None:
    return numbers(text, int, "segments", "2,3,4")


def _column(help_text: str) -> Any:
    return Annotated[str | None, option(help_text, "Columns")]


EVALUATE: dict[str, Any] = {
    **MODEL,
    "data": Annotated[str | None, option("Folder of LABEL/IMAGE, or a .csv, .jsonl or .txt file.", MODEL_PANEL)],
    "limit": Annotated[int | None, option("Items of the data at most.", MODEL_PANEL)],
    **TOKENS,
    **WEIGHTS,
    "seed": Annotated[int | None, option("Of random weights and of the bootstrap.", MODEL_PANEL)],
    "modes": Annotated[str | None, option("As in full,segment_means,first_and_means.", PLAN_PANEL, callback=_words)],
    "devices": Annotated[str | None, option("Numbers of devices, as in 2,3,4.", PLAN_PANEL, callback=_devices)],
    "segments": Annotated[
        str | None, option("Numbers of means a part sends, as in 1,4,10.", PLAN_PANEL, callback=_segments)
    ],
    "wires": Annotated[
        str | None, option(f"What crosses the link, of {', '.join(WIRES)}.", PLAN_PANEL, callback=_words)
    ],
    "batch": Annotated[int | None, option("Samples at once.", MEASURE_PANEL)],
    "threads": Annotated[int | None, option("Of each part; default: the parts share the cores.", MEASURE_PANEL)],
    "map": Annotated[str | None, option("Performance map: adds milliseconds and joules.", MEASURE_PANEL, "--map")],
    "bandwidth": Annotated[str | None, option("Of the medium, for --map, as in 100Mbps.", MEASURE_PANEL)],
    "path_column": _column("Of image files, in a .csv or .jsonl."),
    "text_column": _column("Of texts."),
    "label_column": _column("Of labels, by their names."),
    "pair_column": _column("Of second texts: asks for the correlation with a score."),
    "score_column": _column("How alike people found the two."),
}
DEFAULTS = {
    **msgspec.to_builtins(EvalConfig()),
    **{f"{field}_column": name for field, name in msgspec.to_builtins(Columns()).items()},
}


@app.command(
    epilog="Example: prism-hw evaluate fashion-vit --devices 2,3 --segments 2,5 --wires fp32,int4 --output out/accuracy"
)
@takes(EVALUATE, DEFAULTS)
def evaluate(
    flags: dict[str, Any],
    config: Config = None,
    output: Annotated[Path, option("Folder of the results; a killed run goes on there.", OUTPUT_PANEL)] = Path(
        "out/evaluate"
    ),
    as_json: Json = False,
) -> None:
    """Run every plan over labelled data, against the model as it is: accuracy, agreement, and what they cost."""
    columns = {field: flags.pop(f"{field}_column") for field in Columns.__struct_fields__}
    resolved = merged(config, {**flags, "columns": columns}, EvalConfig)
    resolved.check()
    from hw.evaluate.page import accuracy_page
    from hw.evaluate.run import evaluate as run
    from hw.evaluate.tables import console_table, write_parquet

    with bar(as_json) as on_progress:
        evaluation = run(resolved, output, entry.command_line(), on_progress)
    table = evaluation.table
    table.save(output / "accuracy.json")
    write_parquet(table, output / "accuracy.parquet")
    write_file(output / "index.html", accuracy_page(table, evaluation.misfits).encode())
    if as_json:
        print(msgspec.json.encode(table).decode())
        return
    from rich.console import Console

    console = Console()
    console.print(console_table(table))
    for line in (*table.unreadable, *evaluation.misfits):
        console.print(f"left out: {line}", style="yellow", soft_wrap=True)
    console.print(f"The table for policies: {output / 'accuracy.json'}; the page: {output / 'index.html'}")
