"""prism-hw doctor: the state of this machine."""

from typing import Annotated

import msgspec
import typer

from hw.cli.flags import Json
from prism.cli import entry

app = typer.Typer()


@app.command(epilog="Example: prism-hw doctor --secure 10.8.0.1")
def doctor(
    secure: Annotated[
        str | None, typer.Option(help="An address: ask instead whether what goes there is hidden from others.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what this machine has and lacks, each with the remedy."""
    from hw.machine import doctor, wireguard

    checks = doctor.examine() if secure is None else wireguard.examine(secure)
    if as_json:
        print(msgspec.json.encode(checks).decode())
        return
    from hw.cli import run_tables

    entry.show(run_tables.doctor_table(checks))
