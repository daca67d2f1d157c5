"""Read the data of `prism-hw evaluate`: labelled images, labelled texts, rated pairs of texts, plain texts.

An item that can't be read is listed, not dropped in silence.
"""

import csv
import functools
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from hw.evaluate.config import Columns
from hw.inputs.collate import collate_texts
from hw.inputs.samples import SAMPLE_IMAGES, ImageReader, Inputs, Sample, image_paths, label_of, tokenizer_of
from prism.errors import InputError
from prism.nn.families import adapter_for
from prism.nn.zoo import Loaded

Task = Literal["classify", "language", "embed", "pairs"]


class RatedPair(msgspec.Struct, frozen=True):
    """Two samples by number, and the likeness that people gave them."""

    a: int
    b: int
    score: float


class Dataset(msgspec.Struct, frozen=True, kw_only=True):
    """Samples with what makes batches of them.

    unreadable: name and reason of each item left out, and a line for each label that the model lacks.
    digest: hash of names, labels and contents.
    """

    inputs: Inputs
    task: Task
    unreadable: tuple[str, ...]
    digest: str
    pairs: tuple[RatedPair, ...] = ()


def load_dataset(data: Path | None, loaded: Loaded, tokens: int | None, columns: Columns, limit: int | None) -> Dataset:
    """Load a folder of images, or a CSV, JSONL or text file; without one, the bundled images. limit: samples at most.

    Raises InputError where nothing can be read, or a column is missing.
    """
    if loaded.kind == "image":
        if tokens is not None:
            raise InputError(f"tokens {tokens}: an image has as many as its model takes; leave --tokens out")
        dataset = _images(data or SAMPLE_IMAGES, loaded, columns, limit)
    elif data is None:
        raise InputError("a model of texts needs data: pass --data FILE.jsonl, .csv or .txt")
    else:
        dataset = _texts(data, loaded, tokens, columns, limit)
    lines = (*dataset.unreadable, *_unknown_labels(dataset, loaded.labels))
    return msgspec.structs.replace(dataset, unreadable=lines)


def _unknown_labels(dataset: Dataset, labels: Sequence[str]) -> Iterator[str]:
    """Report each label that the model lacks: such items are compared with the model, and not in top-1."""
    given = Counter(sample.label for sample in dataset.inputs.samples)
    if dataset.task != "classify" or set(given) == {None}:
        return
    for label, count in given.items():
        if label not in labels:
            what = "no label" if label is None else f"label {label!r}, which the model doesn't have"
            yield f"{count} items have {what}: not in top-1"


def _images(data: Path, loaded: Loaded, columns: Columns, limit: int | None) -> Dataset:
    root = data if data.is_dir() else data.parent
    bad: list[str] = []
    if data.is_file():
        rows, bad = _rows(data, columns, "path")
        named = [(root / str(row.get(columns.path)), row.get(columns.label)) for row in rows]
    else:
        if any(data.glob("data_batch_*")):
            raise InputError(
                f"{data}: holds CIFAR as Python pickles, which can run any code when read; save its images as "
                f"LABEL/NAME.png first"
            )
        named = [(path, label_of(path, data)) for path in image_paths(data)]
    task: Task = "classify" if adapter_for(loaded.model).spec.output_width else "embed"
    reader, good, digest = ImageReader(loaded), [], hashlib.blake2b(digest_size=8)
    for path, label in named[:limit]:
        try:
            image = reader.open(path)
        except InputError as error:
            bad.append(str(error))
            continue
        name = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
        digest.update(f"{name}{label}".encode() + image.tobytes())
        good.append(Sample(name=name, label=None if label is None else str(label), content=path))

    def collate(batch: Sequence[Sample]) -> dict[str, Any]:
        """Open the images again: many decoded photographs would fill a small board's memory."""
        replace = msgspec.structs.replace
        return reader.collate([replace(sample, content=reader.open(sample.content)) for sample in batch])

    return _whole(good, collate, bad, digest, data, task)


def _texts(data: Path, loaded: Loaded, tokens: int | None, columns: Columns, limit: int | None) -> Dataset:
    if data.suffix == ".txt":
        rows: list[dict[str, Any]] = [{columns.text: line} for _, line in _lines(data)]
        bad: list[str] = []
    else:
        rows, bad = _rows(data, columns, *(("text", "pair", "score") if columns.pair else ("text",)))
    most = loaded.model.config.max_position_embeddings
    if tokens is not None and tokens > most:
        raise InputError(f"tokens {tokens}: the model has {most} positions; use at most {most}")
    encode, _ = tokenizer_of(loaded, tokens)
    task = _task(loaded)
    if columns.pair:
        if task != "embed":
            raise InputError(f"pairs of texts need an encoder without a head, this is {type(loaded.model).__name__}")
        task = "pairs"
    least = 2 if task == "language" else 1  # the first token is predicted from nothing
    collate = functools.partial(collate_texts, tokens=tokens)
    numbers: dict[str, int] = {}
    samples: list[Sample] = []
    pairs: list[RatedPair] = []

    def number(text: str, label: str | None) -> int:
        """Number a text; one of pairs stands once, however many pairs have it. Raises InputError for an empty one."""
        if columns.pair and text in numbers:
            return numbers[text]
        content = encode(text)
        if len(content) < least:
            raise InputError(f"{len(content)} tokens, of at least {least}")
        numbers[text] = len(samples)
        samples.append(Sample(name=f"{len(samples)}: {text[:40]}", label=label, content=content))
        return numbers[text]

    for place, row in enumerate(rows[:limit]):
        try:
            text, label = _cell_text(row, columns.text), row.get(columns.label)
            if columns.pair:
                other, score = _cell_text(row, columns.pair), _cell_number(row, columns.score)
                pairs.append(RatedPair(number(text, None), number(other, None), score))
            else:
                number(text, None if label is None else str(label))
        except InputError as error:
            bad.append(f"{data}, item {place + 1}: {error}")
    digest = hashlib.blake2b(msgspec.json.encode([[s.label, s.content] for s in samples] + list(pairs)), digest_size=8)
    return _whole(samples, collate, bad, digest, data, task, tuple(pairs))


def _cell_text(row: dict[str, Any], column: str) -> str:
    text = row.get(column)
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"no text in column {column!r}")
    return text


def _cell_number(row: dict[str, Any], column: str) -> float:
    try:
        value = float(row[column])
    except (KeyError, TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"no number in column {column!r}")
    return value


def _task(loaded: Loaded) -> Task:
    """Tell a text model's task from its class name in transformers. Raises InputError for another head."""
    name = type(loaded.model).__name__
    if "ForSequenceClassification" in name:
        return "classify"
    if name.endswith(("LMHeadModel", "ForCausalLM")):
        return "language"
    if not name.endswith("Model"):
        raise InputError(
            f"{name}: its answers can't be judged; give a classifier, a causal model, or an encoder without a head"
        )
    return "embed"


def _whole(
    samples: Sequence[Sample],
    collate: Callable[[Sequence[Sample]], dict[str, Any]],
    bad: Sequence[str],
    digest: Any,
    data: Path,
    task: Task,
    pairs: tuple[RatedPair, ...] = (),
) -> Dataset:
    if not samples:
        first = f" ({bad[0]})" if bad else ""
        raise InputError(f"{data}: nothing in it can be read{first}; give images with labels, or texts")
    inputs = Inputs(samples=tuple(samples), collate=collate)
    return Dataset(inputs=inputs, task=task, unreadable=tuple(bad), digest=digest.hexdigest(), pairs=pairs)


def _lines(path: Path) -> list[tuple[int, str]]:
    """Read the lines that aren't empty, with their numbers. Raises InputError.

    A text may hold what str.splitlines takes for a line's end.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: can't be read as UTF-8 text ({error}); give a CSV, JSONL or text file") from None
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _rows(path: Path, columns: Columns, *needed: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Read the rows of a CSV or JSONL file, and list the lines that are none. needed: fields of Columns.

    Raises InputError for a column that no row has.
    """
    lines, bad = _lines(path), []
    rows: list[dict[str, Any]] = []
    if path.suffix == ".csv":
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = list(csv.DictReader(file))
        except csv.Error as error:
            raise InputError(f"{path}: is no CSV that can be read ({error}); give it as JSONL") from None
    else:
        for number, line in lines:
            try:
                rows.append(msgspec.json.decode(line, type=dict))
            except msgspec.DecodeError as error:
                bad.append(f"{path}, line {number}: no JSON object ({error})")
    named = (*needed, *(("label",) if columns.label != Columns().label else ()))
    for field in named:
        column = getattr(columns, field)
        if rows and not any(column in row for row in rows):
            there = ", ".join(map(str, rows[0]))
            raise InputError(f"{path}: has no column {column!r}, but {there}; name it with --{field}-column")
    return rows, bad
