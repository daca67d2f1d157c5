"""An answer of the simulator as it leaves the command: on the console, as JSON, and in a file by its suffix."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from markupsafe import Markup
from rich.console import Console

from prism.cli.entry import command_line
from prism.errors import ConfigError
from prism.files import write_file
from prism.report.page import cell_text, facts_table, frame, html_table, installed, rendered
from prism.trace import now_text
from sim.cli.options import OutputOptions

PACKAGES = ("prism-edge", "simpy", "numpy", "networkx")
UNITS = {"mbps": "Mbps", "j": "J"}
SUFFIXES = (".json", ".csv", ".parquet", ".html")
OF_PLAN = ("mode", "segments", "wire", "devices", "replicas", "stages", "microbatch", "weights")  # its label has them
BODY = """{% for line in lines %}<p>{{ line }}</p>{% endfor %}
{{ figure }}{{ facts }}{{ table }}
{% if same %}<p class="about">In every row: {{ same }}.</p>{% endif %}
{% if config %}<p>The study as it was resolved:</p><pre>{{ config }}</pre>{% endif %}"""
ABOUT = (
    "simulated with profile {}: nothing here was measured. Rows tagged extrapolated lie outside of what the profile "
    "was calibrated on."
)


class Presentation(msgspec.Struct, kw_only=True):
    """An answer in every form that a command may be asked for.

    `whole` is the JSON, `view` the console's table or line, `lines` stand below it. `rows` are the rows of a CSV or
    Parquet file, and the page's table unless there are `facts`. `figure` draws the page's figure as SVG.
    """

    title: str
    profile: str
    whole: Any
    view: Any
    lines: Sequence[str] = ()
    rows: Sequence[dict[str, Any]] = ()
    facts: dict[str, str] = {}
    figure: Callable[[], Markup] = Markup
    config: str = ""

    def show(self, options: OutputOptions) -> None:
        """Print the answer, and write the file of --output, if there is one. Raises ConfigError."""
        if options.json:
            print(msgspec.json.encode(self.whole).decode())
        else:
            console = Console()
            console.print(self.view, soft_wrap=isinstance(self.view, str))
            for line in self.lines:
                console.print(line, style="yellow" if line.startswith("extrapolated") else "", soft_wrap=True)
        if options.output is not None:
            self.write(options.output)

    def write(self, path: Path) -> None:
        """Write a file by its suffix. Raises ConfigError."""
        if path.suffix == ".json":
            data = msgspec.json.format(msgspec.json.encode(self.whole), indent=1) + b"\n"
        elif path.suffix == ".html":
            data = self.page().encode()
        elif path.suffix in (".csv", ".parquet"):
            data = _data_frame(path, self.rows)
        else:
            raise ConfigError(f"{path}: suffix {path.suffix!r} is unknown; use {', '.join(SUFFIXES)}")
        write_file(path, data)

    def page(self) -> str:
        """Make one HTML page that needs no other file."""
        names, same = _columns(self.rows)
        body = rendered(
            BODY,
            lines=[*([self.view] if isinstance(self.view, str) else []), *self.lines],
            figure=self.figure(),
            facts=facts_table(self.facts) if self.facts else "",
            table=html_table([_head(name) for name in names], [[row[name] for name in names] for row in self.rows])
            if self.rows and not self.facts
            else "",
            same="" if self.facts else ", ".join(f"{_head(name)} {cell_text(value)}" for name, value in same.items()),
            config=self.config,
        )
        about = f"{now_text()}, {ABOUT.format(self.profile)}"
        return frame(self.title, body, about, command_line(), installed(PACKAGES))


def _columns(rows: Sequence[dict[str, Any]]) -> tuple[list[str], dict[str, Any]]:
    """Tell the columns that differ between rows from those that hold one value; columns of nothing are left out."""
    if not rows:
        return [], {}
    shown = [name for name in rows[0] if "plan" not in rows[0] or name not in OF_PLAN]
    values = {name: {str(row[name]) for row in rows} for name in shown}
    names = [name for name, texts in values.items() if len(texts) > 1 or len(rows) == 1]
    same = {name: rows[0][name] for name in values if name not in names and rows[0][name] not in (None, "")}
    return names, same


def _head(name: str) -> str:
    """Write a field's name as a head, with its unit as people write it."""
    return " ".join(UNITS.get(word, word) for word in name.split("_"))


def _data_frame(path: Path, rows: Sequence[dict[str, Any]]) -> bytes:
    import pandas as pd

    frame = pd.DataFrame(list(rows))
    if path.suffix == ".csv":
        return frame.to_csv(index=False).encode()
    try:
        packed: bytes = frame.to_parquet(index=False)
    except ImportError:
        raise ConfigError(f"{path}: Parquet needs pyarrow; pip install pyarrow, or write .csv") from None
    return packed
