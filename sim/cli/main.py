"""prism-sim: predict before owning the hardware."""

import gc

import typer

from prism.cli.entry import Version, run
from prism.cli.option_groups import grouped
from sim.cli.calibrate import calibrate_command
from sim.cli.compare import compare_command
from sim.cli.map import map_command
from sim.cli.predict import predict_command, trace_command, workload_command
from sim.cli.questions import crossover_command, sensitivity_command, what_if_command
from sim.cli.replay import replay_command
from sim.cli.serve import serve_command

COMMANDS = (  # name, function, and the arguments of its example
    ("predict", predict_command, "vit_base_patch16_224 --batch 8 --bandwidth 400Mbps"),
    ("crossover", crossover_command, "vit_base_patch16_224 --over bandwidth --batch 8"),
    ("what-if", what_if_command, "study.toml --output study.html"),
    ("serve-sim", serve_command, "vit_base_patch16_224 --arrivals poisson:10 --max-batch 8 --mode best"),
    ("map", map_command, "vit_base_patch16_224 --profile x86-core --segments 5,10 --output map.json --html map.html"),
    ("sensitivity", sensitivity_command, "vit_base_patch16_224 --batch 8"),
    ("trace", trace_command, "vit_base_patch16_224 --mode full --perfetto run.json"),
    ("calibrate", calibrate_command, "out/calibration --probes probe.jsonl --output pair.json --html pair.html"),
    ("compare", compare_command, "out/held_out --profile pair.json --output report.html"),
    ("replay", replay_command, "decisions.jsonl --profile x86-core"),
    ("workload", workload_command, "vit-base.json --devices 2 --segments 10"),
)

app = typer.Typer(
    name="prism-sim",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Predict where a Transformer should run, without the hardware.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _group(version: Version = False) -> None:
    """Predict where a Transformer should run, without the hardware."""


for name, command, arguments in COMMANDS:
    app.command(name, epilog=f"Example: prism-sim {name} {arguments}")(grouped(command))


def main() -> None:
    """Run the command line."""
    gc.freeze()  # what was imported is never garbage: collections need not look at it
    run(app, "prism-sim")
