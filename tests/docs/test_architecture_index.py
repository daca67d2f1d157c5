"""The index of docs/architecture.md: every thing is named once, and every file is there."""

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEADING = "## Where is what"
ROW = re.compile(r"^\| ([^|]+?) \| (`[^|]+`) \|$")


def rows() -> list[tuple[str, list[str]]]:
    """The things of the index, each with its files."""
    section = (ROOT / "docs" / "architecture.md").read_text().partition(HEADING)[2].partition("\n## ")[0]
    found = [match for line in section.splitlines() if (match := ROW.match(line))]
    return [(match[1], re.findall(r"`([^`]+)`", match[2])) for match in found]


def test_the_index_is_long_enough_to_be_one():
    assert len(rows()) >= 50


def test_each_line_of_the_table_is_read():
    section = (ROOT / "docs" / "architecture.md").read_text().partition(HEADING)[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ") and "`" in line]
    assert len(lines) == len(rows())


def test_each_thing_is_named_once():
    assert not [thing for thing, count in Counter(thing.lower() for thing, _ in rows()).items() if count > 1]


@pytest.mark.parametrize(("thing", "paths"), rows())
def test_each_path_exists(thing, paths):
    assert paths, thing
    assert not [path for path in paths if not (ROOT / path).exists()]
