"""What is kept from run to run: found again only for the same content, and never in the way."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import review_rows, tiny_recipe, write_jsonl

from tl_nlp import Run, baselines, checking, preparation, train
from tl_nlp.cache import made_of
from tl_nlp.findings import Finding

TASKS = ("classification", "multilabel", "grading", "highlights", "summarization")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TL_NLP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was computed and not found, as it happens."""
    happened: list[str] = []
    found = checking._found

    def looked(*inputs: object) -> list[Finding]:
        happened.append("findings")
        return found(*inputs)  # type: ignore[arg-type]

    monkeypatch.setattr(checking, "_found", looked)
    remembered = preparation.remembered_table
    monkeypatch.setattr(
        preparation,
        "remembered_table",
        lambda file, make: remembered(file, lambda: happened.append("tokens") or make()),
    )
    for makers in baselines._MAKERS.values():
        for name, maker in makers.items():
            monkeypatch.setitem(makers, name, lambda known, n=name, m=maker: happened.append(n) or m(known))
    return happened


def rows_of(task: str) -> list[dict[str, str]]:
    if task in ("classification", "multilabel"):
        return review_rows(120)
    texts = [f"The film was {n}. The plot is good. It was dull {n % 7}." for n in range(60)]
    return [{"text": text, "target": str(n % 5) if task == "grading" else "the plot"} for n, text in enumerate(texts)]


def told(run: Run) -> list[object]:
    """What a run says of its data and its baselines."""
    results = run.results()
    predictions = [run.predictions_file("test", name).read_bytes() for name in results["baselines"]]
    scores = {name: {**scores, "difference": None} for name, scores in results["baselines"].items()}
    return [run.data()["findings"], scores, results["baseline_rows"], predictions]


@pytest.mark.parametrize("task", TASKS)
def test_another_seed_on_the_same_rows_looks_at_nothing_again(
    task: str, tiny_bert: Path, tiny_t5: Path, tmp_path: Path, cache: Path, made: list[str]
) -> None:
    checkpoint = tiny_t5 if task == "summarization" else tiny_bert
    recipe = tiny_recipe(checkpoint, write_jsonl(tmp_path / "rows.jsonl", rows_of(task)), task)
    first = train(recipe)
    assert {"tokens", "findings", *first.results()["baselines"]} == set(made)
    kept = [file for file in cache.rglob("*") if file.is_file()]
    assert kept and not any(file.stat().st_mode & 0o077 for file in kept)  # for nobody else to read
    made.clear()
    again = train(recipe.override("training.seed=1", "training.lr=2e-3"))
    assert made == []
    assert told(again) == told(first)


def test_what_is_different_is_looked_at(tiny_bert: Path, tmp_path: Path, cache: Path, made: list[str]) -> None:
    rows = review_rows(120)
    recipe = tiny_recipe(tiny_bert, write_jsonl(tmp_path / "rows.jsonl", rows))
    first = train(recipe)
    for change in ("data.seed=1", "task.max_length=8", "checkpoint.blocks=1"):
        made.clear()
        train(recipe.override(change))
        assert "findings" in made and ("tfidf" in made or change == "task.max_length=8"), change
        assert ("tokens" in made) is (change != "checkpoint.blocks=1"), change
    made.clear()
    rows[0]["text"] += " and more"
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert told(train(recipe)) != told(first)
    assert {"tokens", "findings", "tfidf"} <= set(made)


def test_other_code_finds_nothing(
    tiny_bert: Path, reviews: Path, cache: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(tiny_bert, reviews)
    train(recipe)
    made.clear()
    monkeypatch.setattr("tl_nlp.cache._code", lambda: b"other code")
    train(recipe)
    assert {"tokens", "findings"} <= set(made)


def test_a_name_is_of_the_whole_content(cache: Path) -> None:
    numbers = np.arange(5000.0)
    other = numbers.copy()
    other[2500] += 1
    rows, changed = (pa.table({"text": ["a", text] * 1000}) for text in ("b", "c"))
    coded = [pa.table({"text": pa.array(texts).dictionary_encode()}) for texts in (["x", "y"], ["x", "z"])]
    inputs = [
        *((each,) for each in coded),
        (numbers,), (other,), (numbers.astype(np.float32),), (numbers.reshape(2, -1),), ({"a": (numbers, numbers)},),
        ({"a": (numbers, other)},), ({"b": (numbers, numbers)},), (rows,), (changed,), (rows.slice(1),), (None,),
        (numbers, None), ("", "a"), ("a", ""),
    ]  # fmt: skip
    names = [made_of("x", *each) for each in inputs]
    assert len(set(names)) == len(inputs)
    assert names == [made_of("x", *each) for each in inputs]


@pytest.mark.parametrize("content", [b"", b"{", b'{"tfidf": 3}', b"\xff\xfe", b"\xff\xff\xff\xff\x00\x01\x00\x00"])
def test_what_is_damaged_is_made_again(
    content: bytes, tiny_bert: Path, reviews: Path, cache: Path, made: list[str]
) -> None:
    recipe = tiny_recipe(tiny_bert, reviews)
    first = train(recipe)
    for file in cache.glob("made/*/*"):
        file.write_bytes(content)
    made.clear()
    assert told(train(recipe)) == told(first)
    assert {"tokens", "findings", "tfidf"} <= set(made)
    assert all(json.loads(file.read_bytes()) is not None for file in cache.glob("made/*/*.json"))


def test_nothing_is_kept_where_that_is_asked(
    tiny_bert: Path, reviews: Path, cache: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TL_NLP_CACHE", "")
    for _ in range(2):
        made.clear()
        train(tiny_recipe(tiny_bert, reviews))
        assert {"findings", "tfidf"} <= set(made)
    assert not cache.exists()


def test_files_of_others_are_left_alone(
    tiny_bert: Path, reviews: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where the cache is given a folder that holds more, only its own files make room."""
    cache.mkdir()
    own = [write_jsonl(cache / name, [{"a": 1}]) for name in ("notes.json", "model.safetensors")]
    for file in own:
        os.utime(file, (0, 0))
    monkeypatch.setattr("tl_nlp.cache.MAX_BYTES", 1)
    train(tiny_recipe(tiny_bert, reviews))
    assert all(file.is_file() for file in own)
    assert not list(cache.glob("made/*/*"))


def test_a_cache_that_cannot_be_written_is_told(
    tiny_bert: Path, reviews: Path, cache: Path, capsys: pytest.CaptureFixture, made: list[str]
) -> None:
    cache.write_text("a file in the way")
    train(tiny_recipe(tiny_bert, reviews))
    told = capsys.readouterr().err
    for what in ("tokens", "features", "findings", "baselines"):
        assert f"{what} are not kept for the next run" in told
