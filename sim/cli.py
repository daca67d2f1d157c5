"""prism-sim: predict before owning the hardware."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from prism import command
from prism.plan import ExecutionPlan, Mode
from prism.spec import load_model_spec
from prism.workload import build

app = typer.Typer(
    name="prism-sim", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Predict where a Transformer should run, without the hardware.",
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


@app.callback()
def _group() -> None:
    """Predict where a Transformer should run, without the hardware."""


@app.command(epilog="Example: prism-sim workload vit-base.json --devices 2 --segments 10")
def workload(
    spec: Annotated[Path, typer.Argument(help="A model specification (JSON).")],
    devices: Annotated[int, typer.Option(help="P, the devices.")] = 2,
    segments: Annotated[int | None, typer.Option(help="L, means per part; without it full exchange.")] = None,
    batch: Annotated[int, typer.Option(help="Samples per batch.")] = 1,
) -> None:
    """The work of each device, in GFLOPs, and the bytes that all of them exchange per block."""
    model = load_model_spec(spec)
    mode = Mode.LOCAL if devices == 1 else Mode.SEGMENT_MEANS if segments else Mode.FULL
    graph = build(model, ExecutionPlan(mode=mode, devices=devices, segments=segments), batch)
    gflops = [graph.flops(rank) / 1e9 for rank in range(devices)]
    print(msgspec.json.encode({"gflops": gflops, "block_bytes": graph.block_bytes()}).decode())


def main() -> None:
    """The command's entry point."""
    command.run(app, "prism-sim")
