"""From tables of many shapes to a task and its columns; from a person's time to a method; from both to a recipe."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import FILLER, MINILM, write_jsonl

from tl_nlp import planning, train
from tl_nlp.errors import DataError, RecipeError
from tl_nlp.guessing import Guess, guess
from tl_nlp.planning import Choice, methods_for, recipe_for
from tl_nlp.recipe import Recipe
from tl_nlp.rows import resolved
from tl_nlp.tables import read_table

N = 120
DRAW = np.random.default_rng(0)
QUESTIONS = ("Why is the sky blue on a clear day?", "What makes iron rust?", "How does a seed grow in the dark?")


def texts(n_words: int, n_rows: int = N) -> list[str]:
    """Sentences of filler of about so many words, of which no two are equal."""
    rows = []
    for number in range(n_rows):
        words = DRAW.choice(FILLER, n_words + int(DRAW.integers(0, 3))).tolist()
        words[9::10] = [f"{word}." for word in words[9::10]]
        rows.append(" ".join([*words, f"w{number}"]))
    return rows


def cycle(*values: Any) -> list[Any]:
    return [values[number % len(values)] for number in range(N)]


TABLES: dict[str, tuple[dict[str, list[Any]], dict[str, Any]]] = {
    "reviews with stars": (
        {"id": [*range(N)], "date": ["2024-03-05"] * N, "review": texts(20), "stars": cycle("1", "2", "3", "4", "5")},
        {"task": "grading", "text": "review", "target": "stars", "settings": {"low": 1, "high": 5, "step": 1}},
    ),
    "sentiment": (
        {"sentence": texts(12), "label": cycle("negative", "positive"), "source": cycle("a", "b", "c")},
        {"task": "classification", "text": "sentence", "target": "label"},
    ),
    "labels as numbers": (
        {"text": texts(12), "label": cycle(0, 1, 2, 3)},
        {"task": "classification", "text": "text", "target": "label"},
    ),
    "many labels as numbers": (
        {"text": texts(12), "label": cycle(*range(40))},
        {"task": "classification", "text": "text", "target": "label"},
    ),
    "many grades": (
        {"text": texts(12), "target": cycle(*range(40))},
        {"task": "grading", "text": "text", "target": "target", "settings": {"low": 0, "high": 39, "step": 1}},
    ),
    "a binary score": (
        {"text": texts(12), "score": cycle("0", "1")},
        {"task": "classification", "text": "text", "target": "score"},
    ),
    "no name tells, dates and ids beside": (
        {
            "key_7": [f"a{n:05}" for n in range(N)],
            "when": [f"2024-{1 + n % 12:02}-{1 + n % 28:02}T10:00" for n in range(N)],
            "v": ["x"] * N,
            "q": texts(9),
            "c": cycle("sports", "politics", "science"),
        },
        {"task": "classification", "text": "q", "target": "c"},
    ),
    "essays with prompts and unlike scales": (
        {
            "essay_id": [*range(N)],
            "essay_set": cycle(1, 2),
            "essay": texts(150),
            "rater1_domain1": cycle(*range(2, 13)),
            "domain1_score": [(2 + n % 11) if n % 2 == 0 else n % 4 for n in range(N)],
        },
        {"task": "grading", "text": "essay", "target": "domain1_score", "group": "essay_set"},
    ),
    "short answers": (
        {"question": cycle(*QUESTIONS), "answer": texts(5), "points": cycle(0.0, 0.5, 1.0, 2.5)},
        {"task": "grading", "text": "answer", "target": "points", "pair": "question",
         "settings": {"low": 0, "high": 2.5, "step": 0.5}},
    ),
    "a long question that repeats": (
        {"given": cycle(*(one * 6 for one in QUESTIONS)), "written": texts(8), "grade": cycle(10, 20, 50)},
        {"task": "grading", "text": "written", "target": "grade", "pair": "given",
         "settings": {"low": 10, "high": 50, "step": 10}},
    ),
    "numbers without steps": (
        {"passage": texts(40), "readability": DRAW.normal(size=N).tolist()},
        {"task": "grading", "text": "passage", "target": "readability"},
    ),
    "grades of two people": (
        {"text": texts(30), "target": cycle(1, 2, 3), "Rater1": cycle(1, 2, 2), "Rater2": cycle(1, 3, 3)},
        {"task": "grading", "text": "text", "target": "target", "settings": {"low": 1, "high": 3, "step": 1}},
    ),
    "a scale in each row": (
        {"text": texts(30), "target": cycle(1, 2, 3), "low": [0] * N, "high": cycle(4, 5)},
        {"task": "grading", "text": "text", "target": "target", "settings": {}},
    ),
    "several traits": (
        {"text": texts(30), "target": [{"style": n % 4, "content": None if n % 7 else 2} for n in range(N)]},
        {"task": "grading", "text": "text", "target": "target", "settings": {"traits": ["style", "content"]}},
    ),
    "tags in a csv": (
        {"title": texts(4), "body": texts(25), "tags": cycle("a|b", "b", "a|c|d", "c")},
        {"task": "multilabel", "text": "body", "target": "tags"},
    ),
    "tags as lists": (
        {"text": texts(25), "topics": cycle(["a", "b"], [], ["c"])},
        {"task": "multilabel", "text": "text", "target": "topics"},
    ),
    "summaries": (
        {"id": [f"n{n}" for n in range(N)], "article": texts(100), "summary": texts(20)},
        {"task": "highlights", "text": "article", "target": "summary", "settings": {"n_sentences": 2}},
    ),
    "subjects of e-mails": (
        {"subject": texts(4), "body": texts(80), "sent_date": ["05/03/2024"] * N},
        {"task": "highlights", "text": "body", "target": "subject", "settings": {"n_sentences": 1}},
    ),
    "scores beside summaries": (
        {"UserId": [f"u{n % 90}" for n in range(N)], "Score": cycle(1, 2, 3, 4, 5), "Summary": texts(4),
         "Time": [1_300_000_000 + n for n in range(N)], "Text": texts(60)},
        {"task": "grading", "text": "Text", "target": "Score"},
    ),
    "premises and hypotheses": (
        {"premise": texts(20), "hypothesis": texts(8), "label": cycle("yes", "no", "perhaps")},
        {"task": "classification", "text": "hypothesis", "target": "label", "pair": "premise"},
    ),
    "words without spaces": (
        {"text": ["".join(map(chr, DRAW.integers(0x4E00, 0x9FA0, 14))) for _ in range(N)], "label": cycle("好", "坏")},
        {"task": "classification", "text": "text", "target": "label"},
    ),
}  # fmt: skip

NESTED = ("several traits", "tags as lists")


@pytest.mark.parametrize("name", TABLES)
def test_what_a_table_is_for(name: str) -> None:
    columns, expected = TABLES[name]
    table = pa.table(columns)
    found = guess(table)
    seen = {key: getattr(found, key) for key in expected}
    assert seen == expected, found.why
    assert found.pair == expected.get("pair") and found.group == expected.get("group")
    assert repr(found.text) in found.why and repr(found.target) in found.why
    assert found.n_rows == N and found.n_words > 1


@pytest.mark.parametrize(
    ("name", "suffix"),
    [(name, "jsonl") for name in TABLES] + [(name, "csv") for name in TABLES if name not in NESTED],
)
def test_the_recipe_of_a_guess_reads_its_table(name: str, suffix: str, tmp_path: Path) -> None:
    """As it is in a file, of which a csv knows text alone."""
    columns, expected = TABLES[name]
    rows = [{key: columns[key][n] for key in columns} for n in range(N)]
    path = write_jsonl(tmp_path / "table.jsonl", rows)
    if suffix == "csv":
        import pyarrow.csv

        path = tmp_path / "table.csv"
        pyarrow.csv.write_csv(pa.table(columns), path)
    found = guess(read_table(path))
    assert (found.task, found.text, found.target) == (expected["task"], expected["text"], expected["target"])
    for choice in methods_for(found.n_rows, found.n_words, task=found.task):
        recipe = recipe_for(path, found, choice)
        assert recipe.checkpoint.name == MINILM.name and recipe.method.kind == choice.method
        assert Recipe(**recipe.model_dump(mode="json")) == recipe
    task, splits = resolved(recipe)
    assert sum(map(len, splits.values())) >= 0.9 * N
    assert task.outputs()


def test_values_that_are_no_numbers_are_left_to_the_check() -> None:
    few = pa.table({"text": texts(20, 240), "rating": ["n/a", *cycle("1", "2", "3"), *cycle("2", "3")][:240]})
    assert (guess(few).task, guess(few).settings["high"]) == ("grading", 3)
    picture = pa.table({"image": pa.array([b"\xff\xd8"] * N), "text": texts(9), "label": cycle("a", "b")})
    assert guess(picture).target == "label"


def test_scales_are_of_groups_where_they_differ() -> None:
    found = guess(pa.table(TABLES["essays with prompts and unlike scales"][0]))
    assert found.settings == {"scales": {"1": (2.0, 12.0), "2": (1.0, 3.0)}, "step": 1.0}
    same = {**TABLES["essays with prompts and unlike scales"][0], "domain1_score": cycle(1, 2, 3, 1, 2, 3, 4)}
    assert guess(pa.table(same)).settings == {"low": 1, "high": 4, "step": 1}


def test_what_a_person_says_goes_first() -> None:
    table = pa.table(TABLES["reviews with stars"][0])
    found = guess(table, task="classification")
    assert (found.task, found.target, found.settings) == ("classification", "stars", {})
    assert "classification was asked for" in found.why
    both = pa.table({"text": texts(10), "label": cycle("a", "b"), "grade": cycle(1, 2, 3)})
    assert guess(both).target == "label"
    assert guess(both, target="grade").task == "grading"
    with pytest.raises(DataError, match="'label' holds 'a', which is no number; grading learns numbers"):
        guess(both, task="grading", target="label")
    with pytest.raises(DataError, match="has 120 different values; classification learns one of at most 100 labels"):
        guess(pa.table({"text": texts(20), "name": texts(3)}), task="classification")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": texts(5)}, "has one column, 'text'; a training needs texts and beside them"),
        ({"a": cycle(1, 2), "b": cycle("x", "y")}, "no column holds texts; that with the most words is 'a', with 1.0"),
        (
            {"id": [*range(N)], "date": ["2024-01-01"] * 60 + ["2024-01-02"] * 60, "k": ["v"] * N, "text": texts(9)},
            "no column can be the target of 'text': 'id' names rows; 'date' holds dates; 'k' has one value everywhere",
        ),
        ({"text": texts(9), "user": [f"u{n % 110}" for n in range(N)]}, "'user' has 110 different values, too many"),
        ({"text": texts(9), "note": ["good"] + [""] * (N - 1)}, "'note' is empty in most rows"),
        ({"text": [], "label": []}, "the table holds no rows"),
    ],
)
def test_where_nothing_fits_it_says_what_was_seen(columns: dict[str, list[Any]], message: str) -> None:
    with pytest.raises(DataError) as told:
        guess(pa.table(columns))
    assert message in str(told.value)


def test_columns_that_are_not_there_are_named() -> None:
    table = pa.table({"text": texts(5), "label": cycle("a", "b")})
    with pytest.raises(DataError, match="no column 'stars'; there are: text, label"):
        guess(table, target="stars")
    with pytest.raises(DataError, match="'text' cannot be the text and the target"):
        guess(table, target="text", text="text")


def test_estimates_are_those_that_were_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """On two cores with bfloat16: recipes sentiment (1.5 to 3 minutes) and classification (25 s for 1,000 rows)."""
    monkeypatch.setattr(planning, "_speed", lambda: 2**0.9)
    by_method = {one.method: one for one in methods_for(8530, 20)}
    assert 1.5 <= by_method["full"].minutes <= 3.5
    assert by_method["head"].minutes < by_method["lora"].minutes < by_method["full"].minutes
    assert methods_for(8530, 20)[0] == by_method["full"]
    monkeypatch.setattr(planning, "_speed", lambda: 2**0.9 / 2)  # AVX2 alone: 4 to 5 minutes; tldr 12
    assert 3 <= methods_for(8530, 20)[0].minutes <= 6.5
    assert 6 <= methods_for(2850, 160, task="highlights")[0].minutes <= 16
    assert planning._speed() > 0


@pytest.mark.parametrize("minutes", [1.0, 2.0, 5.0, 60.0])
@pytest.mark.parametrize(("n_rows", "n_words"), [(100, 20), (1000, 20), (8530, 20), (100_000, 50), (1000, 400)])
def test_the_first_choice_fits_the_time(
    n_rows: int, n_words: int, minutes: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "_speed", lambda: 2**0.9)
    choices = methods_for(n_rows, n_words, minutes)
    assert {one.method for one in choices} == {"full", "lora", "head"}
    assert choices[0].minutes <= 1.1 * minutes, choices
    assert all(one.reason for one in choices)
    if any(one.minutes <= minutes for one in choices if one.method != "head"):
        assert choices[0].method != "head"


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(DataError, match="9 rows cannot be split"):
        methods_for(9, 20)


def test_recipes_follow_the_documents() -> None:
    found = Guess("classification", "review", "stars", "", n_rows=1000, n_words=20)
    full = recipe_for(Path("t.csv"), found, Choice("full", 5, 1.0, ""))
    assert (full.checkpoint, full.training.lr, full.training.head_lr) == (MINILM, 1e-4, 1e-3)
    assert full.method.head_epochs == 1 and full.task.pooling == "mean"
    assert recipe_for(Path("t.csv"), found, Choice("lora", 5, 1.0, "")).training.lr == 1e-3
    head = recipe_for(Path("t.csv"), found, Choice("head", 20, 1.0, "", rows=500), name="mine")
    assert (head.data.rows, head.name, head.training.lr) == (500, "mine", 5e-3)
    with pytest.raises(RecipeError, match="name"):
        recipe_for(Path("t.csv"), found, Choice("head", 20, 1.0, ""), name="../mine")
    other = recipe_for(Path("t.csv"), found, Choice("full", 3, 1.0, ""), checkpoint="google-bert/bert-base-uncased")
    assert (other.checkpoint.name, other.training.lr) == ("google-bert/bert-base-uncased", 3e-5)
    writes = Guess("summarization", "text", "target", "", n_rows=1000, n_words=200)
    (choice, _) = methods_for(1000, 200, task="summarization")
    with pytest.raises(RecipeError, match="summarization writes, and the packaged checkpoint only reads; name one"):
        recipe_for(Path("t.csv"), writes, choice)
    assert recipe_for(Path("t.csv"), writes, choice, "google-t5/t5-small").task.prefix == "summarize: "
    essays = Guess("grading", "essay", "score", "", n_rows=5000, n_words=400)
    graded = recipe_for(Path("t.csv"), essays, methods_for(5000, 400, task="grading")[0])
    assert (graded.checkpoint.blocks, graded.method.head_epochs, graded.training.epochs) == (3, 15, 17)
    apart = Guess("grading", "answer", "score", "", "reference", n_rows=300, n_words=40)
    assert recipe_for(Path("t.csv"), apart, Choice("full", 5, 1.0, "")).task.reading == "apart"


@pytest.mark.parametrize(
    ("name", "method"),
    [("sentiment", "full"), ("essays with prompts and unlike scales", "full"), ("answers with references", "head"),
     ("tags in a csv", "lora"), ("summaries", "head")],
)  # fmt: skip
def test_recipes_train(name: str, method: str, tiny_bert: Path, tmp_path: Path) -> None:
    columns = TABLES["short answers" if name == "answers with references" else name][0]
    if name == "answers with references":
        columns = {("reference" if key == "question" else key): values for key, values in columns.items()}
    path = write_jsonl(tmp_path / "table.jsonl", [{key: columns[key][n] for key in columns} for n in range(N)])
    found = guess(read_table(path))
    (choice,) = [one for one in methods_for(N, found.n_words, task=found.task) if one.method == method]
    recipe = recipe_for(path, found, replace(choice, epochs=2), str(tiny_bert))
    run = train(recipe.override("task.max_length=64", "data.similarity=1"))
    assert run.is_finished


def test_guessing_needs_no_torch() -> None:
    program = "import sys, tl_nlp.planning, tl_nlp.jobs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
