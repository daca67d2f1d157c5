"""Options of both command lines: one for each field of a plan, and how a command takes a table of options."""

import copy
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, TypeVar, get_args

import typer

from prism.codecs import Wire
from prism.errors import ConfigError
from prism.plan import Collective, Embed, Mode

MODEL_PANEL, PLAN_PANEL, LINK_PANEL = "Model and inputs", "Plan", "Link and devices"
MEASURE_PANEL, OUTPUT_PANEL = "Measurement", "Output"

N = TypeVar("N", int, float)


def option(text: str, panel: str | None = None, *names: str, **fields: Any) -> Any:
    """Make an option with its help text, in a panel of --help."""
    return typer.Option(*names, help=text, rich_help_panel=panel, **fields)


def numbers(text: str | None, kind: Callable[[str], N], flag: str, example: str) -> list[N] | None:
    """Read numbers between commas; None for no text. Raises ConfigError."""
    try:
        return None if text is None else [kind(part) for part in text.split(",")]
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise ConfigError(f"{flag} {text!r} are no {what}; write them like {example}") from None


def _boundaries(text: str | None) -> list[int] | None:
    return numbers(text, int, "boundaries", "4,8, one for each stage but the first")


def _weights(text: str | None) -> list[float] | None:
    return numbers(text, float, "device weights", "2,1, one a device")


MODE = option("What crosses in each block.", PLAN_PANEL)
DEVICES = option("P, the devices: replicas x stages x parts.", PLAN_PANEL, min=1, max=64)
REPLICAS = option("Groups of devices that share the batch.", PLAN_PANEL, min=1, max=64)
STAGES = option("Groups of devices that share the blocks.", PLAN_PANEL, min=1, max=64)
PARTS = option("Devices that share the tokens.", PLAN_PANEL, min=1, max=64)
MICROBATCH = option("Samples that are computed together before their answer leaves.", PLAN_PANEL, min=1)
BOUNDARIES = option("First block of each stage but the first, as in 4,8.", PLAN_PANEL, callback=_boundaries)
SEGMENTS = option("L, means per part, in the modes that average.", PLAN_PANEL, min=1)
WIRE = option("What a value is sent as.", PLAN_PANEL)
WEIGHTS = option("Relative speeds, as in 2,1.", PLAN_PANEL, "--device-weights", callback=_weights)
EMBED = option("Who embeds the input: the first device, or each.", PLAN_PANEL)
COLLECTIVE = option("How a block's rows go round.", PLAN_PANEL)
OVERLAP = option("Project the own part while the exchange is under way.", PLAN_PANEL)

# by the flag that names a plan's field (device_weights: weights); parts, which follow from the others, beside them
PLAN: dict[str, Any] = {
    "mode": Annotated[Mode | None, MODE],
    "devices": Annotated[int | None, DEVICES],
    "segments": Annotated[int | None, SEGMENTS],
    "wire": Annotated[Wire | None, WIRE],
    "device_weights": Annotated[str | None, WEIGHTS],
    "embed": Annotated[Embed | None, EMBED],
    "collective": Annotated[Collective | None, COLLECTIVE],
    "overlap": Annotated[bool | None, OVERLAP],
    "replicas": Annotated[int | None, REPLICAS],
    "stages": Annotated[int | None, STAGES],
    "parts": Annotated[int | None, PARTS],
    "microbatch": Annotated[int | None, MICROBATCH],
    "boundaries": Annotated[str | None, BOUNDARIES],
}

Command = Callable[..., None]


def takes(table: Mapping[str, Any], defaults: Mapping[str, Any]) -> Callable[[Command], Command]:
    """Give a command the options of a table. Its parameter `flags` gets them by name; None was not given.

    defaults: of the configuration that the flags go over, by the same names; the help shows them.
    """

    def decorate(command: Command) -> Command:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "flags"]
        added = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_shown(option, default))
            for name, option in table.items()
            for default in [defaults.get(name)]
        ]

        @functools.wraps(command)
        def with_flags(**values: Any) -> None:
            command(flags={name: values.pop(name) for name in table}, **values)

        keyword_only = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        with_flags.__signature__ = inspect.Signature([*added, *keyword_only])  # type: ignore[attr-defined]
        return with_flags

    return decorate


def _shown(option: Any, default: Any) -> Any:
    """The option with the default in its help, where there is one that says something."""
    kind, info = get_args(option)
    if default in (None, "", False, ()) or default == []:
        return option
    info = copy.copy(info)
    info.show_default = _text(default)
    return Annotated[kind, info]


def _text(default: Any) -> str:
    if default is True:
        return "on"
    values: Iterable[Any] = default if isinstance(default, list | tuple) else [default]
    return ",".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
