"""Options that several commands share, as structs: a command takes a whole group as one parameter.

class LinkOptions(OptionGroup, frozen=True, kw_only=True):
    bandwidth: Annotated[str, typer.Option(help="Rate of the link.")] = "400Mbps"

@app.command()
@grouped
def predict(link: LinkOptions) -> None: ...   # prism-sim predict --bandwidth 100Mbps
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

import msgspec


class OptionGroup(msgspec.Struct, frozen=True, kw_only=True):
    """The base of groups. Each field is an option or an argument, annotated as typer has it."""


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Show typer a command whose groups are spread out to their fields."""
    groups: dict[str, type[OptionGroup]] = {}
    spread: list[inspect.Parameter] = []
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        if isinstance(hints[name], type) and issubclass(hints[name], OptionGroup):
            groups[name] = hints[name]
            spread += _parameters(hints[name])
        else:
            spread.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name]))

    @functools.wraps(command)
    def run(**values: Any) -> None:
        filled = {
            name: kind(**{key: values.pop(key) for key in kind.__struct_fields__}) for name, kind in groups.items()
        }
        command(**values, **filled)

    run.__signature__ = inspect.Signature(spread)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in spread}
    return run


def _parameters(group: type[OptionGroup]) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is msgspec.NODEFAULT else field.default,
            annotation=hints[field.name],
        )
        for field in msgspec.structs.fields(group)
    ]
