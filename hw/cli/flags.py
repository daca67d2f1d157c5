"""Options of prism-hw that several commands share, and those of `run` by the fields of RunConfig."""

from pathlib import Path
from typing import Annotated, Any

import typer

from prism.cli.options import LINK_PANEL, MEASURE_PANEL, MODEL_PANEL, OUTPUT_PANEL, PLAN
from prism.trace import MeterName

Config = Annotated[
    Path | None, typer.Option("--config", help="TOML file; flags go over it.", rich_help_panel=MODEL_PANEL)
]
Cluster = Annotated[
    Path | None, typer.Option(help="cluster.toml: run over several machines.", rich_help_panel=LINK_PANEL)
]
PerfettoFile = Annotated[
    Path | None, typer.Option("--perfetto", help="Write Chrome/Perfetto JSON.", rich_help_panel=OUTPUT_PANEL)
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object instead of tables.", rich_help_panel=OUTPUT_PANEL)
]

MODEL: dict[str, Any] = {
    "model": Annotated[str | None, typer.Argument(help="fashion-vit, a timm or transformers name, or a folder.")]
}
WEIGHTS: dict[str, Any] = {
    "weights": Annotated[
        str | None, typer.Option(help='"random", or a .safetensors or .pt file.', rich_help_panel=MODEL_PANEL)
    ]
}
TOKENS: dict[str, Any] = {
    "tokens": Annotated[
        int | None, typer.Option(help="Pad or cut texts to this many tokens.", rich_help_panel=MODEL_PANEL)
    ]
}
RUN: dict[str, Any] = {
    **MODEL,
    "images": Annotated[
        str | None, typer.Option(help="Folder of images, labels in subfolder names.", rich_help_panel=MODEL_PANEL)
    ],
    "text": Annotated[str | None, typer.Option(help="File with one text a line.", rich_help_panel=MODEL_PANEL)],
    "resize": Annotated[
        bool | None, typer.Option("--resize", help="Accept images of mixed sizes.", rich_help_panel=MODEL_PANEL)
    ],
    **TOKENS,
    **WEIGHTS,
    "seed": Annotated[int | None, typer.Option(help="Seed of random weights.", rich_help_panel=MODEL_PANEL)],
    **PLAN,
    "batch": Annotated[int | None, typer.Option(help="Samples per batch.", rich_help_panel=MEASURE_PANEL)],
    "batches": Annotated[
        int | None, typer.Option(help="Measured batches; 0 goes once over all inputs.", rich_help_panel=MEASURE_PANEL)
    ],
    "warmups": Annotated[
        int | None, typer.Option(help="Batches before the measured ones.", rich_help_panel=MEASURE_PANEL)
    ],
    "link": Annotated[
        str | None,
        typer.Option(
            help="loopback, shaper:RATE[,LATENCY] or testbed:RATE[,LATENCY[,JITTER[,LOSS]]].",
            rich_help_panel=LINK_PANEL,
        ),
    ],
    "threads": Annotated[int | None, typer.Option(help="Cores and threads of each rank.", rich_help_panel=LINK_PANEL)],
    "timeout_s": Annotated[
        float | None, typer.Option("--timeout", help="Seconds to wait for a silent peer.", rich_help_panel=LINK_PANEL)
    ],
    "interface": Annotated[
        str | None,
        typer.Option(help="Network interface; default: the route to the leader.", rich_help_panel=LINK_PANEL),
    ],
    "port": Annotated[
        int | None, typer.Option(help="Port where the ranks meet; default: a free one.", rich_help_panel=LINK_PANEL)
    ],
    "meter": Annotated[MeterName | None, typer.Option(help="Power sensor to read.", rich_help_panel=MEASURE_PANEL)],
    "power": Annotated[
        str | None,
        typer.Option(
            help="TOML of watts per state, for modelled energy where no sensor is.", rich_help_panel=MEASURE_PANEL
        ),
    ],
    "trace": Annotated[str | None, typer.Option(help="Write the trace (JSON lines).", rich_help_panel=OUTPUT_PANEL)],
}
