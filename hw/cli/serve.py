"""prism-hw serve and join: a model behind an endpoint, on one device or several, whichever is quicker just now."""

import logging
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from prism.cli import logs
from prism.cli.entry import Verbose, command_line
from prism.config import convert, load_toml
from prism.errors import ConfigError
from prism.units import parse_seconds

app = typer.Typer()


@app.command(epilog="Example: prism-hw serve fashion-vit --map map.json --join 10.0.0.1:29500 --key-file key")
def serve(
    model: Annotated[str | None, typer.Argument(help="fashion-vit, a timm or transformers name, or a folder.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file; flags go over it.")] = None,
    map_file: Annotated[str | None, typer.Option("--map", help="Performance map of the model (prism-hw map).")] = None,
    accuracy: Annotated[str | None, typer.Option(help="Accuracy table of the model (prism-hw evaluate).")] = None,
    least_agreement: Annotated[
        float | None, typer.Option(min=0, max=1, help="With the uncompressed model, by the accuracy table.")
    ] = None,
    join_at: Annotated[str | None, typer.Option("--join", help="ADDRESS:PORT where devices join.")] = None,
    key_file: Annotated[str | None, typer.Option(help="The key that devices share; without it, local only.")] = None,
    devices: Annotated[int | None, typer.Option(help="That serve together at most.")] = None,
    http: Annotated[str | None, typer.Option(help="ADDRESS:PORT of the v2 endpoint and /metrics.")] = None,
    token_file: Annotated[str | None, typer.Option(help="Token that requests must show.")] = None,
    weights: Annotated[str | None, typer.Option(help='"random", or a .safetensors or .pt file.')] = None,
    max_batch: Annotated[int | None, typer.Option(help="Samples that go together at most.")] = None,
    max_wait: Annotated[str | None, typer.Option(help="How long the first of a batch waits for others.")] = None,
    timeout: Annotated[str | None, typer.Option(help="For the other devices, before a batch is answered here.")] = None,
    learn: Annotated[bool | None, typer.Option("--learn/--no-learn", help="Correct the map by what is served.")] = None,
    decisions: Annotated[str | None, typer.Option(help="Log of decisions (JSON lines), for prism-sim replay.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads to compute with.")] = None,
    verbose: Verbose = 0,
) -> None:
    """Serve a model: each batch runs on one device or on several, whichever is expected to be better."""
    from hw.serving.app import ServeConfig, open_service

    logs.configure(verbose)
    flags: dict[str, Any] = {
        "model": model,
        "map": map_file,
        "accuracy": accuracy,
        "key_file": key_file,
        "devices": devices,
        "token_file": token_file,
        "weights": weights,
        "max_batch": max_batch,
        "learn": learn,
        "decisions": decisions,
        "threads": threads,
        "max_wait_s": None if max_wait is None else parse_seconds(max_wait),
        "timeout_s": None if timeout is None else parse_seconds(timeout),
        **_place("join_", join_at),
        **_place("http_", http),
    }
    base = msgspec.to_builtins(load_toml(config, ServeConfig)) if config else {}
    given = {key: value for key, value in flags.items() if value is not None}
    if least_agreement is not None:
        given["objective"] = {**base.get("objective", {}), "least_agreement": least_agreement}
    resolved = convert({**base, **given}, ServeConfig, str(config) if config else "the flags")
    stopped = _stopping()
    with open_service(resolved, command_line()) as service:
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
    verbose: Verbose = 0,
) -> None:
    """Serve under a leader: join it, follow, and join again after whatever went wrong."""
    from hw.serving.app import JoinConfig
    from hw.serving.app import join as serve_with

    logs.configure(verbose, quiet=logging.INFO)  # a command that joins and rejoins says so
    serve_with(
        JoinConfig(
            **_place("", place),
            name=name,
            key_file=key_file,
            model=model,
            weights=weights,
            threads=threads,
            timeout_s=parse_seconds(timeout),
        ),
        _stopping(),
    )


def _stopping() -> threading.Event:
    """Set when the process is asked to end."""
    stopped = threading.Event()

    def stop(*_: object) -> None:
        stopped.set()
        sys.exit(0)

    signal.signal(signal.SIGTERM, stop)
    return stopped


def _place(prefix: str, text: str | None) -> dict[str, Any]:
    """From ADDRESS:PORT. Raises ConfigError."""
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


def _view(service: Any, event: str) -> Table:
    """Show the present state of a service."""
    runtime, estimate = service.runtime, service.runtime.estimate
    group = service.leader.group() if service.leader else None
    table = Table(show_header=False, box=None)
    served = ", ".join(f"{mode} {count}" for mode, count in runtime.served.items()) or "none yet"
    table.add_row("batches", served)
    if (last := runtime.last) is not None:
        expected = "" if last.decision.expected is None else f" of {last.decision.expected.ms:.0f} expected"
        table.add_row("the last one", f"{last.ran.mode.value}, {last.ms:.0f} ms{expected} ({last.decision.why})")
    table.add_row("answered locally after a failure", str(runtime.failures))
    table.add_row("devices", f"leader, {', '.join(group.names)} (epoch {group.epoch})" if group else "leader")
    rate = "not known" if estimate is None else f"{estimate.rate_bps / 1e6:.0f} Mbps (by {estimate.source})"
    table.add_row("medium", rate)
    table.add_row("waiting", str(service.batcher.waiting))
    table.add_row("corrections of the map", str(runtime.corrections))
    if event:
        table.add_row("last event", event)
    return table
