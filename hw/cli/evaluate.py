"""prism-hw evaluate: what compression costs in answers."""

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console

from hw.cli.progress import bar
from prism.cli.entry import command_line
from prism.codecs import WIRES
from prism.config import convert, load_toml
from prism.errors import ConfigError
from prism.files import write_file

app = typer.Typer()


@app.command(
    epilog="Example: prism-hw evaluate fashion-vit --devices 2,3 --segments 2,5 --wires fp32,int4 --output out/accuracy"
)
def evaluate(
    model: Annotated[str | None, typer.Argument(help="fashion-vit, a timm or transformers name, or a folder.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file; flags go over it.")] = None,
    data: Annotated[str | None, typer.Option(help="Folder of LABEL/IMAGE, or a .csv, .jsonl or .txt file.")] = None,
    modes: Annotated[str | None, typer.Option(help="As in full,segment_means,first_and_means.")] = None,
    devices: Annotated[str | None, typer.Option(help="Numbers of devices, as in 2,3,4.")] = None,
    segments: Annotated[str | None, typer.Option(help="Numbers of means a part sends, as in 1,4,10.")] = None,
    wires: Annotated[str | None, typer.Option(help=f"What crosses the link, of {', '.join(WIRES)}.")] = None,
    limit: Annotated[int | None, typer.Option(help="Items of the data at most.")] = None,
    batch: Annotated[int | None, typer.Option(help="Samples at once.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Pad or cut texts to this many tokens.")] = None,
    weights: Annotated[str | None, typer.Option(help='"random", or a .safetensors or .pt file.')] = None,
    seed: Annotated[int | None, typer.Option(help="Of random weights and of the bootstrap.")] = None,
    threads: Annotated[int | None, typer.Option(help="Of each part; default: the parts share the cores.")] = None,
    path_column: Annotated[str | None, typer.Option(help="Of image files, in a .csv or .jsonl.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Of texts.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Of labels, by their names.")] = None,
    pair_column: Annotated[
        str | None, typer.Option(help="Of second texts: asks for the correlation with a score.")
    ] = None,
    score_column: Annotated[str | None, typer.Option(help="How alike people found the two.")] = None,
    map_file: Annotated[
        str | None, typer.Option("--map", help="Performance map: adds milliseconds and joules.")
    ] = None,
    bandwidth: Annotated[str | None, typer.Option(help="Of the medium, for --map, as in 100Mbps.")] = None,
    output: Annotated[Path, typer.Option(help="Folder of the results; a killed run goes on there.")] = Path(
        "out/evaluate"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Run every plan over labelled data, against the model as it is: accuracy, agreement, and what they cost."""
    from hw.evaluate.page import accuracy_page
    from hw.evaluate.run import EvalConfig
    from hw.evaluate.run import evaluate as run
    from hw.evaluate.tables import console_table, write_parquet

    columns = {
        "path": path_column,
        "text": text_column,
        "label": label_column,
        "pair": pair_column,
        "score": score_column,
    }
    flags: dict[str, Any] = {
        "model": model,
        "data": data,
        "modes": _names(modes),
        "devices": _numbers("devices", devices),
        "segments": _numbers("segments", segments),
        "wires": _names(wires),
        "limit": limit,
        "batch": batch,
        "tokens": tokens,
        "weights": weights,
        "seed": seed,
        "threads": threads,
        "map": map_file,
        "bandwidth": bandwidth,
    }
    base = msgspec.to_builtins(load_toml(config, EvalConfig)) if config else {}
    given = {key: value for key, value in flags.items() if value is not None}
    named = {key: value for key, value in columns.items() if value is not None}
    merged = {**base, **given, "columns": {**base.get("columns", {}), **named}}
    resolved = convert(merged, EvalConfig, str(config) if config else "the flags")
    with bar(as_json) as on_progress:
        found = run(resolved, output, command_line(), on_progress)
    found.table.save(output / "accuracy.json")
    write_parquet(found.table, output / "accuracy.parquet")
    write_file(output / "index.html", accuracy_page(found.table, found.misfits).encode())
    if as_json:
        print(msgspec.json.encode(found.table).decode())
        return
    console = Console()
    console.print(console_table(found.table))
    for line in (*found.table.unreadable, *found.misfits):
        console.print(f"left out: {line}", style="yellow", soft_wrap=True)
    console.print(f"The table for policies: {output / 'accuracy.json'}; the page: {output / 'index.html'}")


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",")]


def _numbers(flag: str, text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{flag} {text!r} are no whole numbers; write them like 2,3,4") from None
