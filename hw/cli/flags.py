"""Options of prism-hw that several commands share, and those of `run` by the fields of RunConfig."""

from pathlib import Path
from typing import Annotated, Any

import typer

from prism.cli.options import LINK_PANEL, MEASURE_PANEL, MODEL_PANEL, OUTPUT_PANEL, PLAN, option
from prism.trace import MeterName

Config = Annotated[Path | None, option("TOML file; flags go over it.", MODEL_PANEL, "--config")]
Cluster = Annotated[Path | None, option("cluster.toml: run over several machines.", LINK_PANEL)]
PerfettoFile = Annotated[Path | None, option("Write Chrome/Perfetto JSON.", OUTPUT_PANEL, "--perfetto")]
Json = Annotated[bool, option("Print one JSON object instead of tables.", OUTPUT_PANEL, "--json")]

MODEL: dict[str, Any] = {
    "model": Annotated[str | None, typer.Argument(help="fashion-vit, a timm or transformers name, or a folder.")]
}
WEIGHTS: dict[str, Any] = {
    "weights": Annotated[str | None, option('"random", or a .safetensors or .pt file.', MODEL_PANEL)]
}
TOKENS: dict[str, Any] = {"tokens": Annotated[int | None, option("Pad or cut texts to this many tokens.", MODEL_PANEL)]}
RUN: dict[str, Any] = {
    **MODEL,
    "images": Annotated[str | None, option("Folder of images, labels in subfolder names.", MODEL_PANEL)],
    "text": Annotated[str | None, option("File with one text a line.", MODEL_PANEL)],
    "resize": Annotated[bool | None, option("Accept images of mixed sizes.", MODEL_PANEL, "--resize")],
    **TOKENS,
    **WEIGHTS,
    "seed": Annotated[int | None, option("Seed of random weights.", MODEL_PANEL)],
    **PLAN,
    "batch": Annotated[int | None, option("Samples per batch.", MEASURE_PANEL)],
    "batches": Annotated[int | None, option("Measured batches; 0 goes once over all inputs.", MEASURE_PANEL)],
    "warmups": Annotated[int | None, option("Batches before the measured ones.", MEASURE_PANEL)],
    "in_flight": Annotated[int | None, option("Batches under way together, as in a stream.", MEASURE_PANEL, min=1)],
    "link": Annotated[
        str | None, option("loopback, shaper:RATE[,LATENCY] or testbed:RATE[,LATENCY[,JITTER[,LOSS]]].", LINK_PANEL)
    ],
    "threads": Annotated[int | None, option("Cores and threads of each rank.", LINK_PANEL)],
    "memory": Annotated[str | None, option("Of each device, as in 8GB; refuses plans that need more.", LINK_PANEL)],
    "timeout_s": Annotated[float | None, option("Seconds to wait for a silent peer.", LINK_PANEL, "--timeout")],
    "interface": Annotated[str | None, option("Network interface; default: the route to the leader.", LINK_PANEL)],
    "port": Annotated[int | None, option("Port where the ranks meet; default: a free one.", LINK_PANEL)],
    "meter": Annotated[MeterName | None, option("Power sensor to read.", MEASURE_PANEL)],
    "power": Annotated[
        str | None, option("TOML of watts per state, for modelled energy where no sensor is.", MEASURE_PANEL)
    ],
    "trace": Annotated[str | None, option("Write the trace (JSON lines).", OUTPUT_PANEL)],
}
