"""prism-hw serve and join: a model behind an endpoint, on one device or several, whichever is quicker just now."""

import logging
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from hw.cli.flags import MODEL, WEIGHTS, Config
from hw.serving.config import JoinConfig, ServeConfig
from prism.cli import entry, logs
from prism.cli.options import MODEL_PANEL, OUTPUT_PANEL, option, takes
from prism.config import merged
from prism.errors import ConfigError
from prism.labels import plan_label
from prism.units import parse_seconds

if TYPE_CHECKING:
    from rich.table import Table

app = typer.Typer()
SERVE_PANEL, NET_PANEL = "Serving", "Addresses and keys"


def _seconds(text: str | None) -> float | None:
    return None if text is None else parse_seconds(text)


SERVE: dict[str, Any] = {
    **MODEL,
    **WEIGHTS,
    "map": Annotated[str | None, option("Performance map of the model (prism-hw map).", MODEL_PANEL, "--map")],
    "accuracy": Annotated[str | None, option("Accuracy table of the model (prism-hw evaluate).", MODEL_PANEL)],
    "least_agreement": Annotated[
        float | None, option("With the uncompressed model, by the accuracy table.", SERVE_PANEL, min=0, max=1)
    ],
    "devices": Annotated[int | None, option("That serve together at most.", SERVE_PANEL)],
    "max_batch": Annotated[int | None, option("Samples that go together at most.", SERVE_PANEL)],
    "max_wait_s": Annotated[
        str | None,
        option(
            "How long the first of a batch waits for others, as in 5ms.", SERVE_PANEL, "--max-wait", callback=_seconds
        ),
    ],
    "timeout_s": Annotated[
        str | None,
        option(
            "For the other devices, before a batch is answered here, as in 2s.",
            SERVE_PANEL,
            "--timeout",
            callback=_seconds,
        ),
    ],
    "learn": Annotated[bool | None, option("Correct the map by what is served.", SERVE_PANEL, "--learn/--no-learn")],
    "threads": Annotated[int | None, option("Threads to compute with.", SERVE_PANEL)],
    "memory": Annotated[str | None, option("Of each device, as in 8GB; refuses a model that needs more.", SERVE_PANEL)],
    "join_at": Annotated[str | None, option("ADDRESS:PORT where devices join.", NET_PANEL, "--join")],
    "key_file": Annotated[str | None, option("The key that devices share; without it, local only.", NET_PANEL)],
    "http": Annotated[str | None, option("ADDRESS:PORT of the v2 endpoint and /metrics.", NET_PANEL)],
    "token_file": Annotated[str | None, option("Token that requests must show.", NET_PANEL)],
    "decisions": Annotated[str | None, option("Log of decisions (JSON lines), for prism-sim replay.", OUTPUT_PANEL)],
}
DEFAULTS = {**msgspec.to_builtins(ServeConfig()), "http": f"{ServeConfig().http_address}:{ServeConfig().http_port}"}


@app.command(epilog="Example: prism-hw serve fashion-vit --map map.json --join 10.0.0.1:29500 --key-file key")
@takes(SERVE, DEFAULTS)
def serve(flags: dict[str, Any], config: Config = None, verbose: entry.Verbose = 0) -> None:
    """Serve a model: each batch runs on one device or on several, whichever is expected to be better."""
    logs.configure(verbose)
    places = {**_place("join_", flags.pop("join_at")), **_place("http_", flags.pop("http"))}
    objective = {"least_agreement": flags.pop("least_agreement")}
    resolved = merged(config, {**flags, **places, "objective": objective}, ServeConfig)
    from rich.console import Console
    from rich.live import Live

    from hw.serving.app import open_service

    stopped = _stopping()
    with open_service(resolved, entry.command_line()) as service:
        print(f"serving {resolved.model} at http://{resolved.http_address}:{service.server.port}/v2", flush=True)
        if service.leader is not None:
            print(f"devices join at {resolved.join_address}:{service.leader.port}", flush=True)
        console = Console(stderr=True)
        if not console.is_terminal:
            stopped.wait()
            return
        events = _LastEvent()
        with Live(console=console, auto_refresh=False) as live:
            while not stopped.wait(0.5):
                live.update(_view(service, events.text), refresh=True)


@app.command(epilog="Example: prism-hw join 10.0.0.1:29500 --model fashion-vit --key-file key")
def join(
    place: Annotated[str, typer.Argument(metavar="ADDRESS:PORT", help="Where the leader lets devices join.")],
    key_file: Annotated[str, typer.Option(help="The key that devices share.")],
    model: Annotated[str, typer.Option(help="The model that the leader serves.")] = "fashion-vit",
    weights: Annotated[str | None, typer.Option(help='"random", or a .safetensors or .pt file.')] = None,
    name: Annotated[str, typer.Option(help="This device's name.")] = socket.gethostname(),
    threads: Annotated[int, typer.Option(help="Threads to compute with.")] = 1,
    timeout: Annotated[str, typer.Option(help="For one message of a batch.")] = "2s",
    verbose: entry.Verbose = 0,
) -> None:
    """Serve with a leader: join it, follow, and join again after whatever went wrong."""
    logs.configure(verbose, quiet=logging.INFO)  # a command that joins and rejoins says so
    timeout_s = parse_seconds(timeout)
    from hw.serving.app import join as serve_with

    serve_with(
        JoinConfig(
            **_place("", place),
            name=name,
            key_file=key_file,
            model=model,
            weights=weights,
            threads=threads,
            timeout_s=timeout_s,
        ),
        _stopping(),
    )


def _stopping() -> threading.Event:
    """Make an event that is set when the process is asked to end."""
    stopped = threading.Event()

    def stop(*_: object) -> None:
        stopped.set()
        sys.exit(0)

    signal.signal(signal.SIGTERM, stop)
    return stopped


def _place(prefix: str, text: str | None) -> dict[str, Any]:
    """Read ADDRESS:PORT as two fields. Raises ConfigError."""
    if text is None:
        return {}
    address, _, port = text.rpartition(":")
    if not address or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"{text!r} is no ADDRESS:PORT; write it like 10.0.0.1:29500")
    return {f"{prefix}address": address, f"{prefix}port": int(port)}


class _LastEvent(logging.Handler):
    """Keeps the last log line of the service, for the live view."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        logger = logging.getLogger("hw.serving")
        logger.setLevel(min(logger.getEffectiveLevel(), logging.INFO))
        logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()


def _view(service: Any, event: str) -> "Table":
    """Show the state of serving to a person who looks on."""
    from rich.table import Table

    runtime, estimate = service.runtime, service.runtime.estimate
    group = service.leader.group() if service.leader else None
    table = Table(show_header=False, box=None)
    served = ", ".join(f"{mode} {count}" for mode, count in runtime.served.items()) or "none yet"
    table.add_row("batches", served)
    if (last := runtime.last) is not None:
        expected = "" if last.decision.expected is None else f" of {last.decision.expected.ms:.0f} expected"
        table.add_row("the last one", f"{plan_label(last.ran)}, {last.ms:.0f} ms{expected} ({last.decision.why})")
    table.add_row("answered locally after a failure", str(runtime.failures))
    table.add_row("devices", f"leader, {', '.join(group.names)} (epoch {group.epoch})" if group else "leader")
    rate = "not known" if estimate is None else f"{estimate.rate_bps / 1e6:.0f} Mbps (by {estimate.source})"
    table.add_row("medium", rate)
    table.add_row("waiting", str(service.batcher.waiting))
    table.add_row("corrections of the map", str(runtime.corrections))
    if event:
        table.add_row("last event", event)
    return table
