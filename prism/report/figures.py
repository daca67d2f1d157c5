"""The house style of every figure: one palette, one font, panels, stacked bars of a split, SVG text for a page.

Figures are made without pyplot: nothing global is switched, and no window system is looked for.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ParamSpec

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind eyes tell apart
BLUE, VERMILION, GREEN, PINK, ORANGE, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"
YELLOW = "#f0e442"
SERIES = (BLUE, VERMILION, GREEN, PINK, ORANGE, SKY)
DASHES = ("-", "--", "-.", ":")
INK, SLATE, GREY, PALE = "#1d2430", "#5a6472", "#c9ced6", "#e3e6ea"
KIND_COLOURS = {"compute": BLUE, "stage_d2h": PINK, "wait": GREY, "wire": VERMILION, "stage_h2d": GREEN}
WAY_COLOURS = {  # by prism.labels.way
    "local": GREY,
    "replicas": GREEN,
    "stages": ORANGE,
    "parts": BLUE,
    "replicas x stages": YELLOW,
    "replicas x parts": SKY,
    "stages x parts": PINK,
    "replicas x stages x parts": VERMILION,
}
MODE_COLOURS = {"local": BLUE, "full": VERMILION, "segment_means": GREEN, "first_and_means": PINK}

WIDTH = 10.4  # inches; at 72 points an inch the page's column
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: it can be searched and copied
    "svg.hashsalt": "prism",  # the same figure gives the same bytes
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
Drawing = ParamSpec("Drawing")


@contextmanager
def style() -> Iterator[None]:
    """Apply the house style to figures that are made or written inside."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        yield


def drawn(draw: Callable[Drawing, "Figure | None"], *values: Drawing.args, **named: Drawing.kwargs) -> Markup:
    """Call `draw` in the house style; return its figure as an SVG element, or nothing where it has none to draw."""
    with style():
        figure = draw(*values, **named)
        return Markup("") if figure is None else Markup(svg_text(figure))


def svg_text(figure: "Figure") -> str:
    """Write a figure as an SVG element that stands in a page."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = out.getvalue()
    return text[text.index("<svg") :]


def panels(count: int, height: float, abreast: int | None = None) -> tuple["Figure", list["Axes"]]:
    """Make `count` panels of `height` inches, `abreast` of them in a row; all in one row where it isn't given."""
    from matplotlib.figure import Figure

    abreast = abreast or count
    rows = -(-count // abreast)
    figure = Figure(figsize=(WIDTH, height * rows), layout="constrained")
    axes = list(figure.subplots(rows, abreast, squeeze=False).flat)
    for unused in axes[count:]:
        unused.set_visible(False)
    return figure, axes[:count]


def split_bars(
    parts: Sequence[tuple[str, Mapping[str, float]]],
    xlabel: str,
    colours: Mapping[str, str] = KIND_COLOURS,
    spans: Sequence[tuple[float, float] | None] = (),
) -> "Figure":
    """Stack the parts of each latency to a bar: a name and milliseconds by the keys of `colours`.

    `spans` are intervals of the whole latency, drawn as a line over each bar.
    """
    figure, (axes,) = panels(1, 0.4 * len(parts) + 1.1)
    places = range(len(parts))
    left = [0.0] * len(parts)
    for kind, colour in colours.items():
        widths = [split[kind] for _, split in parts]
        if any(widths):
            axes.barh(places, widths, left=left, color=colour, label=kind)
            left = [begin + width for begin, width in zip(left, widths, strict=True)]
    for place, span in enumerate(spans):
        if span is not None:
            axes.plot(span, [place, place], color=INK, linewidth=1.2)
    axes.set_yticks(places, [name for name, _ in parts])
    axes.invert_yaxis()
    axes.set_xlabel(xlabel)
    axes.legend(ncols=len(colours), loc="lower right", bbox_to_anchor=(1, 1))
    return figure


def legend_above(figure: "Figure", abreast: int = 3) -> None:
    """Set one legend above all panels; a label that several panels share stands there once."""
    named: dict[str, Any] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        named |= dict(zip(labels, handles, strict=True))
    if named:
        figure.legend(named.values(), named.keys(), loc="outside upper left", ncols=min(len(named), abreast))


def line_style(number: int) -> dict[str, Any]:
    """Give the line of this number a colour and a dash of its own."""
    return {"color": SERIES[number % len(SERIES)], "linestyle": DASHES[number % len(DASHES)]}
