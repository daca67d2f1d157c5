"""The frame of pages, what their cells show, and the figures in them."""

import sys
from subprocess import run

import pytest

from prism.report.figures import drawn, panels, split_bars
from prism.report.page import cell_text, facts_table, frame, html_table


def bars():
    return split_bars([("a & b", {"compute": 3.0, "wait": 0.0}), ("c", {"compute": 1.0, "wait": 2.0})], "ms", COLOURS)


COLOURS = {"compute": "#0072b2", "wait": "#c9ced6"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        ("", "-"),
        (0.123456, "0.1235"),
        (123456.7, "123457"),
        ({"p50": 1.5, "p95": 20.25}, "p50 1.5, p95 20.25"),
        (("a", 2), "a, 2"),
        ([], "-"),
        (True, "True"),
    ],
)
def test_a_cell_shows_what_people_read(value, text):
    assert cell_text(value) == text


def test_text_is_escaped_and_html_is_not():
    page = frame("<t>", html_table(["<h>"], [["<v>"]]) + facts_table({"a": {"b": 1}}), "<c>", "a < b", {"python": "3"})
    assert "<title>&lt;t&gt;</title>" in page and "<th>&lt;h&gt;</th>" in page and "<td>&lt;v&gt;</td>" in page
    assert "a &lt; b" in page and "<td>b 1</td>" in page and "{" not in page.split("</style>")[1]


def test_a_figure_is_text_and_the_same_every_time():
    first = drawn(bars)
    assert first == drawn(bars) and first.startswith("<svg") and ">a &amp; b<" in first
    assert "<dc:date>" not in first
    assert drawn(lambda: None) == ""


def test_a_split_names_only_what_takes_time():
    figure = split_bars([("local", {"compute": 1.0, "wait": 0.0})], "ms", COLOURS, [(0.5, 1.5)])
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["compute"]
    assert list(figure.axes[0].lines[0].get_xdata()) == [0.5, 1.5]


def test_panels_that_are_left_over_are_hidden():
    figure, axes = panels(4, 1.0, abreast=3)
    assert len(axes) == 4 and [one.get_visible() for one in figure.axes] == [True] * 4 + [False] * 2


def test_a_page_leaves_matplotlib_as_it_was():
    """Whoever draws with pyplot in the same process keeps backend and settings."""
    code = (
        "import sys\n"
        "from prism.report.figures import STYLE, drawn, panels\n"
        "from matplotlib import rcParams\n"
        "before = [rcParams[name] for name in STYLE]\n"
        "drawn(lambda: panels(1, 1.0)[0])\n"
        "sys.exit('matplotlib.pyplot' in sys.modules or before != [rcParams[name] for name in STYLE])"
    )
    assert run([sys.executable, "-c", code], check=False).returncode == 0
