"""The data check finds what was planted, and says nothing where nothing is."""

import json
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Answer, recipe_file, review_rows, tiny_recipe, write_jsonl
from datasets import Dataset, DatasetDict

from tl_nlp import Run
from tl_nlp.checking import check, spellings
from tl_nlp.cleaning import write_cleaned
from tl_nlp.data.files import Files
from tl_nlp.doubts import doubtful_grades, doubtful_labels
from tl_nlp.findings import Finding
from tl_nlp.personal import masked, personal_data
from tl_nlp.rejects import Rejects
from tl_nlp.tasks.classification import Classification
from tl_nlp.tasks.multilabel import Multilabel
from tl_nlp.tasks.summarization import Summarization

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("l", "n", "r", "st")]


def texts(n: int, seed: int = 0, n_words: int = 20) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=n_words)) for _ in range(n)]


def splits(**rows: list[dict]) -> DatasetDict:
    return DatasetDict(
        {
            name: Dataset.from_list([{"id": f"{name}-{n}", **row} for n, row in enumerate(theirs)])
            for name, theirs in rows.items()
        }
    )


def plain_splits(n: int = 120) -> dict[str, list[dict]]:
    made = [{"text": text, "target": "xy"[number % 2]} for number, text in enumerate(texts(n))]
    return {"train": made[: n // 2], "validation": made[n // 2 : 3 * n // 4], "test": made[3 * n // 4 :]}


def found(rows: dict[str, list[dict]], **more: object) -> dict[str, Finding]:
    ready = splits(**rows)
    task = Classification().resolve(ready)
    return {finding.name: finding for finding in check(ready, task, Rejects(), **more)}  # type: ignore[arg-type]


def test_nothing_is_found_in_sound_rows() -> None:
    rows = plain_splits()
    tokens = {name: (np.full(len(theirs), 20), np.zeros(len(theirs), int)) for name, theirs in rows.items()}
    assert set(found(rows, tokens=tokens)) <= {"languages"}


@pytest.mark.parametrize("changed", [False, True])
def test_a_text_in_two_splits(changed: bool) -> None:
    rows = plain_splits()
    for n in range(3):
        words = rows["train"][n]["text"].split()
        rows["test"][n]["text"] = " ".join([*words[:9], "another", *words[10:]] if changed else words)
    finding = found(rows)["overlap"]
    assert (finding.severity, finding.count, finding.examples) == ("error", 3, ["test-0", "test-1", "test-2"])


def test_a_text_twice_in_training_with_two_labels() -> None:
    rows = plain_splits()
    rows["train"][10] = {**rows["train"][1], "target": "x"}
    findings = found(rows)
    assert findings["duplicates"].examples == ["train-10"]
    assert findings["contradictions"].examples == ["train-1", "train-10"]


def test_fault_16_one_author_on_both_sides() -> None:
    rows = plain_splits()
    for split, theirs in rows.items():
        for n, row in enumerate(theirs):
            row["keep_together"] = f"{split} {n // 5}"
    assert "shared_group" not in found(rows)
    rows["test"][4]["keep_together"] = "train 2"
    assert found(rows)["shared_group"].examples == ["test-4"]


def test_labels_that_are_spelt_in_two_ways() -> None:
    rows = plain_splits()
    for n, row in enumerate(rows["train"]):
        row["target"] = "positive" if n % 2 else "negative"
    for row in (*rows["validation"], *rows["test"]):
        row["target"] = "positive"
    rows["train"][1]["target"], rows["train"][2]["target"] = "Positive ", "negatve"
    messages = [str(finding) for finding in check(splits(**rows), Classification(), Rejects())]
    assert any("'Positive ' (1 rows) may be 'positive'" in message for message in messages)
    assert any("'negatve' (1 rows) may be 'negative'" in message for message in messages)


def test_fault_16_a_split_of_one_class_a_rare_label_and_an_unseen_one() -> None:
    rows = plain_splits()
    for row in rows["test"]:
        row["target"] = "x"
    rows["train"][0]["target"] = "rare"
    rows["validation"][0]["target"] = "new"
    findings = found(rows)
    assert findings["one_class"].severity == "error"
    assert "'rare' has 1 training rows" in findings["rare_label"].message
    assert findings["rare_label"].examples == ["train-0"]
    assert findings["unseen_label"].examples == ["validation-0"]
    assert "'new'" in findings["unseen_label"].message


def test_tokens_that_no_window_holds() -> None:
    rows = plain_splits()
    tokens = {"train": (np.full(60, 100), np.full(60, 40))}
    finding = found(rows, tokens=tokens)["cut"]
    assert finding.severity == "warning"
    assert finding.message.startswith("40.0 % of the tokens of train, in 100.0 % of its rows")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to jane.doe+shop@example.co.uk soon", "e-mail address"),
        ("call +44 20 7946 0958 now", "phone number"),
        ("paid with 4111 1111 1111 1111 today", "card number"),
        ("to GB82 WEST 1234 5698 7654 32 please", "bank account"),
        ("mine is 078-05-1120 as ever", "social security number"),
        ("the 1999-2003 edition of 4111 1111 1111 1112 pages", None),
        ("GB82 WEST 1234 5698 7654 33 and room 12-34-5678", None),
    ],
)
def test_personal_data(text: str, kind: str | None) -> None:
    assert [found[0] for found in personal_data(text)] == ([kind] if kind else [])


def test_another_language() -> None:
    german = "das ist ein wirklich schöner Film mit einer guten Geschichte und noch besseren Schauspielern"
    english = "this is a really lovely film with a good story and even better actors in every scene"
    rows = plain_splits()
    for theirs in rows.values():
        for n, row in enumerate(theirs):
            row["text"] = f"{german if n % 4 == 0 else english} {row['text'].split()[0]} {n}"
    assert "26 % of the texts looked at are in 'de', most in 'en'" in found(rows)["languages"].message


def test_flipped_labels_are_among_the_doubtful() -> None:
    """10 % of the labels of overlapping classes are flipped; most of them are found, and first of all."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 3, 1500)
    features = draw.normal(size=(1500, 20))
    features[np.arange(1500), labels] += 5
    flipped = draw.permutation(1500)[:150]
    labels[flipped] = (labels[flipped] + draw.integers(1, 3, 150)) % 3
    doubtful = doubtful_labels(features, labels)
    assert np.isin(flipped, doubtful[:200]).mean() > 0.85
    assert np.isin(doubtful[:100], flipped).mean() > 0.9


def test_check_and_its_cleaned_copy(tiny_bert: Path, tmp_path: Path, command: Callable[..., Answer]) -> None:
    rows = [{"text": text, "target": "xy"[n % 2]} for n, text in enumerate(texts(200))]
    test = [{"text": text, "target": "xy"[n % 2]} for n, text in enumerate(texts(40, seed=1))]
    test[:10] = rows[:10]  # the test set is a quarter inside the training set
    rows[20]["text"] += " jane@example.com"
    train_file = write_jsonl(tmp_path / "train.jsonl", rows)
    with train_file.open("a") as file:
        file.write('{"text": "cut off\n{"text": "NA", "target": "x"}\n')
    data = Files(train=train_file, test=write_jsonl(tmp_path / "test.jsonl", test))
    path = recipe_file(tiny_recipe(tiny_bert, data), tmp_path)
    answer = command("check", path, "--fix", tmp_path / "clean")
    assert answer.status == 0, answer.err
    for message in (
        "rows of test are equal or nearly equal to rows of train",
        "1 rows were left out: ",
        "train.jsonl, line 201, column ",
        "hold what looks like a e-mail address",
    ):
        assert message in answer.out
    names = {finding["name"] for finding in json.loads(command("check", path, "--json").out)}
    assert {"overlap", "rejects", "personal_data", "near_empty"} <= names
    assert "10 of 40 rows of test have a row of train" in command("train", path).err
    again = Files(**{split: tmp_path / "clean" / f"{split}.jsonl" for split in ("train", "validation", "test")}).load()
    assert [len(split) for split in again.values()] == [len(again["train"]), len(again["validation"]), 40]
    assert len(again["train"]) + len(again["validation"]) == 191
    assert "NA" in [*again["train"]["text"], *again["validation"]["text"]]
    assert any("[e-mail address]" in text for split in again.values() for text in split["text"])


def test_fault_15_a_broken_line_is_a_counted_reject_of_the_run(tiny_bert: Path, tmp_path: Path) -> None:
    from tl_nlp import train

    path = write_jsonl(tmp_path / "rows.jsonl", review_rows(200))
    with path.open("a") as file:
        file.write('{"text": "cut off\n')
        file.write('{"text": "no label", "target": ""}\n')
    run = train(tiny_recipe(tiny_bert, path))
    data = run.data()
    assert data["rejects"] == 2
    lines = (run.folder / "rejects.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["reason"].split(":")[0] for line in lines] == [
        "no JSON object",
        "its target is empty",
    ]
    assert [finding["name"] for finding in data["findings"] if finding["name"] == "rejects"] == ["rejects"] * 2


def test_labels_that_mean_something_else_are_not_one(tmp_path: Path) -> None:
    for labels in (("-1", "0", "1"), ("C", "C++", "C#"), ("A", "A-", "A+")):
        assert spellings(Counter(dict.fromkeys(labels, 30))) == {}
    assert spellings(Counter({"positive": 90, " Positive": 60})) == {" Positive": "positive"}
    rare = Counter({"likely": 200, "unlikely": 5})
    assert spellings(rare) == {"unlikely": "likely"}  # told, for a person to decide
    assert spellings(rare, 0.0) == {}  # and not merged in a cleaned copy


def test_many_labels_are_looked_at_too() -> None:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, (400, 2))
    rows = [
        {"text": text, "target": [name for name, there in zip("xy", line, strict=True) if there] + ["rare"] * (n == 0)}
        for n, (text, line) in enumerate(zip(texts(400), labels, strict=True))
    ]
    ready = splits(train=rows[:300], validation=rows[300:350], test=rows[350:])
    features = draw.normal(size=(300, 8)).astype(np.float32)
    features[:, :2] += 6 * labels[:300]
    features[7, 0] += 12 - 24 * labels[7, 0]  # as if its label x were the other one
    task = Multilabel().resolve(ready)
    findings = {one.name: one for one in check(ready, task, Rejects(), features=features)}
    assert findings["doubtful_labels"].examples[0] == "train-7"
    assert "'rare' has 1 training rows" in findings["rare_label"].message


def test_grades_far_from_their_features_are_doubtful() -> None:
    draw = np.random.default_rng(0)
    features = draw.normal(size=(300, 10))
    grades = features @ draw.normal(size=(10, 2)) + 0.1 * draw.normal(size=(300, 2))
    grades[5, 0] += 4
    grades[9, 1] -= 3
    grades[11, 0] = np.nan
    assert doubtful_grades(features, grades)[:2].tolist() == [5, 9]


def test_a_label_of_few_rows_does_not_hide_doubtful_ones() -> None:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, 300)
    features = draw.normal(size=(300, 5)) + 6 * labels[:, None]
    features[3] += 12 - 24 * labels[3]
    labels[4] = 2
    assert doubtful_labels(features, labels).tolist() == [3]


def test_validation_rows_in_the_test_are_told() -> None:
    rows = plain_splits()
    rows["validation"][3]["text"] = rows["test"][5]["text"]
    finding = found(rows)["overlap"]
    assert (finding.examples, finding.severity) == (["test-5"], "error")
    assert "rows of validation" in finding.message


def test_personal_data_that_overlaps_is_masked_once() -> None:
    assert masked("4111111111111111@example.com now") == "[e-mail address] now"
    assert masked("078-05-1120@x.com end") == "[e-mail address] end"
    assert masked("a" * 200_000) == "a" * 200_000  # in no time


def test_pairs_hold_personal_data_too(tmp_path: Path) -> None:
    rows = plain_splits()
    for theirs in rows.values():
        for row in theirs:
            row["pair"] = "ask jane.doe@example.com"
    assert found(rows)["personal_data"].count == 120
    write_cleaned(splits(**rows), Classification(labels=("x", "y")), tmp_path)
    assert set(Files(path=tmp_path / "train.jsonl").load()["train"]["pair"]) == {"ask [e-mail address]"}


def test_a_cleaned_copy_leaks_no_author_and_is_trained_on(
    tiny_bert: Path, tmp_path: Path, command: Callable[..., Answer]
) -> None:
    rows = [{"review": text, "stars": "xy"[n % 2], "by": f"a{n % 60}"} for n, text in enumerate(texts(240))]
    test = [{"review": text, "stars": "xy"[n % 2], "by": f"a{50 + n}"} for n, text in enumerate(texts(40, seed=1))]
    files = {"train": write_jsonl(tmp_path / "a.jsonl", rows), "test": write_jsonl(tmp_path / "b.jsonl", test)}
    data = Files(**files, text="review", target="stars", keep_together="by")
    path = recipe_file(tiny_recipe(tiny_bert, data), tmp_path)
    answer = command("check", path, "--fix", tmp_path / "clean")
    (told,) = [line for line in answer.out.splitlines() if line.startswith("train on them with: ")]
    assert command("train", path).status == 2
    trained = command("train", path, *told.split(": ", 1)[1].split())
    assert trained.status == 0, trained.err
    cleaned = Run.open(trained.out.splitlines()[-1]).recipe().data.load()
    authors = {split: set(theirs["keep_together"]) for split, theirs in cleaned.items()}
    assert not authors["train"] & authors["test"] and not authors["validation"] & authors["test"]
    assert len(cleaned["test"]) == 40


def test_fault_16_long_texts_that_are_cut_are_told_from_end_to_end(
    tiny_bert: Path, tmp_path: Path, command: Callable[..., Answer]
) -> None:
    rows = [{"text": " ".join(["film"] * 102 + [str(n % 97), "good"]), "target": "xy"[n % 2]} for n in range(90)]
    task = {"kind": "classification", "max_length": 64, "max_windows": 1}
    data = Files(path=write_jsonl(tmp_path / "rows.jsonl", rows), similarity=1)
    out = command("check", recipe_file(tiny_recipe(tiny_bert, data, task), tmp_path)).out
    assert re.search(r"warning: 4\d\.\d % of the tokens of train, in 100\.0 % of its rows, are in no window", out), out


def test_a_summary_longer_than_its_text() -> None:
    rows = plain_splits()
    rows["train"][3]["target"] = rows["train"][3]["text"] + " and more"
    ready = splits(**rows)
    findings = {finding.name: finding for finding in check(ready, Summarization(), Rejects())}
    assert findings["longer_targets"].count == 1
    assert findings["longer_targets"].examples == ["train-3"]
    assert "longer_targets" not in found(rows)
