"""prism-sim calibrate: from traces to a profile."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from prism.cli.entry import command_line
from prism.errors import ConfigError, InputError
from prism.files import write_file
from prism.perfmap.pooling import TraceSet, read_traces
from prism.spec import ModelSpec
from prism.trace import Probe, read_trace
from sim.cli import options

if TYPE_CHECKING:  # scipy takes half of the time that prism-sim needs to start
    from calibration.fit import Calibration

Traces = Annotated[list[Path], typer.Argument(help="Trace files, or folders of them.")]
Specs = Annotated[
    list[str] | None,
    typer.Option("--model", help="NAME=SPEC.json: the shape of a model that is not to be found by its name."),
]


def calibrate_command(
    traces: Traces,
    output: Annotated[Path, typer.Option("--output", "-o", help="The profile (JSON).")] = Path("profile.json"),
    probes: Annotated[list[Path] | None, typer.Option(help="Files of prism-hw probe, for shapes nobody ran.")] = None,
    model: Specs = None,
    html: Annotated[Path | None, typer.Option("--html", help="Also write the page.")] = None,
    json: options.Json = False,
) -> None:
    """Fit a profile to measured traces: terms with their errors, residuals, and each model from the others alone."""
    from calibration.fit import calibrate
    from calibration.report.fit import fit_page
    from sim.ask.for_calibration import simulator_of

    measured = read_traces(traces)
    models = models_of(measured, model)
    probed = [record for path in probes or [] for record in _probes(path)]
    fit = calibrate(measured, models, simulator_of(models), output.stem, probed, command_line())
    write_file(output, msgspec.json.format(msgspec.json.encode(fit.profile), indent=1) + b"\n")
    if html:
        write_file(html, fit_page(fit, command_line()).encode())
    if json:
        print(msgspec.json.encode(fit).decode())
    else:
        _print_fit(fit, output)


def _print_fit(fit: "Calibration", output: Path) -> None:
    from calibration.report.fit import REGIME_HEADS, TERM_HEADS, fit_line, regime_rows, term_rows

    console = Console()
    for heads, rows in ((TERM_HEADS, term_rows(fit)), (REGIME_HEADS, regime_rows(fit))):
        table = Table(*heads, box=None)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for name, error in fit.left_out_mape_pct.items():
        console.print(f"{name} from the other models alone: mean absolute error {error:.1f} %")
    for message in fit.messages:
        console.print(message, style="yellow", soft_wrap=True)
    console.print(f"{fit_line(fit)}; profile in {output}", soft_wrap=True)


def models_of(traces: TraceSet, given: list[str] | None) -> dict[str, ModelSpec]:
    """Find the shape of each model of some traces: by --model, else in their headers, else by its name.

    Raises ConfigError, InputError.
    """
    shapes = traces.shapes()
    for text in given or []:
        name, _, path = text.partition("=")
        if not path:
            raise ConfigError(f"model {text!r}: write NAME=SPEC.json")
        shapes[name] = options.model_of(path)
    for name in sorted(set(traces.models()) - set(shapes)):
        try:
            shapes[name] = options.model_of(name)
        except InputError as error:
            raise InputError(
                f"{error}; or give the shape of this model of the traces: --model {name}=SPEC.json"
            ) from None
    return shapes


def _probes(path: Path) -> tuple[Probe, ...]:
    """Read the probes of a file. Raises ConfigError where it holds none."""
    probes = tuple(read_trace(path).probes)
    if not probes:
        raise ConfigError(f"{path} holds no probes; give the file that prism-hw probe wrote")
    return probes
