"""What the documents point at exists: files, folders and headings."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("benchmarks", "calibration", "docs", "experiments", "hw", "prism", "sim", "tests")
DOCUMENTS = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("**/*.md")]
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
# A path begins in a folder of this repository. "NAME" and "<study>" stand for what a reader puts there.
PATH = re.compile(rf"(?<![\w/.~<-])(?:{'|'.join(FOLDERS)})/[\w./-]*[\w/]")
MODULE = re.compile(r"python -m (experiments(?:\.\w+)+)")


def anchors(document: Path) -> set[str]:
    """The anchors that a Markdown renderer gives to the headings."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def name(document: Path) -> str:
    return str(document.relative_to(ROOT))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_lead_somewhere(document):
    broken = []
    for link in LINK.findall(document.read_text()):
        if "://" in link or link.startswith("mailto:"):
            continue
        file, _, anchor = link.partition("#")
        target = (document.parent / file).resolve() if file else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_named_paths_exist(document):
    paths = set(PATH.findall(LINK.sub("]", document.read_text())))
    assert not sorted(path for path in paths if not (ROOT / path).exists())


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_named_studies_exist(document):
    modules = set(MODULE.findall(document.read_text()))
    assert not sorted(module for module in modules if not (ROOT / f"{module.replace('.', '/')}.py").exists())
