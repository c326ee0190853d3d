"""What a run says of itself: intervals, baselines, verdict, calibration, slices, mistakes; leaks found afterwards."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Answer, review_rows, tiny_recipe, write_jsonl

from tl_nlp import Predictor, Run, evaluate, train
from tl_nlp.data.files import Files
from tl_nlp.evaluation import judged, read_predictions, references, score
from tl_nlp.rows import resolved
from tl_nlp.statistics import best_threshold
from tl_nlp.tasks.classification import Classification
from tl_nlp.tasks.grading import Grading
from tl_nlp.types import Label


@pytest.fixture(scope="module")
def run(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("evaluation")
    rows = [{**row, "place": f"shop {n % 3}"} for n, row in enumerate(review_rows(400))]
    data = {"kind": "files", "path": write_jsonl(folder / "rows.jsonl", rows), "group": "place"}
    recipe = tiny_recipe(tiny_bert, rows and folder / "rows.jsonl").model_copy(update={"name": "shops"})
    return train(
        recipe.override(f"data={json.dumps({**data, 'path': str(data['path'])})}", "training.epochs=4"),
        root=folder / "runs",
    )


def test_every_metric_and_every_baseline_has_an_interval(run: Run) -> None:
    results = run.results()
    assert set(results["baselines"]) == {"majority", "tfidf", "frozen"}
    for scores in (results["splits"]["test"]["metrics"], *results["baselines"].values()):
        for name in ("accuracy", "macro_f1"):
            assert scores[name]["low"] <= scores[name]["value"] <= scores[name]["high"]
    majority = results["baselines"]["majority"]
    own = results["splits"]["test"]["metrics"]["accuracy"]["value"]
    assert majority["difference"]["value"] == pytest.approx(own - majority["accuracy"]["value"])
    assert majority["difference"]["verdict"] == "better"


def test_the_verdict_is_against_the_best_baseline(run: Run) -> None:
    results = run.results()
    best = max(results["baselines"].items(), key=lambda one: one[1]["accuracy"]["value"])
    relation = {"better": "better than", "worse": "worse than", "undecided": "undecided against"}
    gap = best[1]["difference"]
    assert results["verdict"].startswith(
        f"{relation[gap['verdict']]} the best baseline ({best[0]}): {gap['value']:+.3g}"
    )
    expected = [name for name in ("tfidf", "frozen") if results["baselines"][name]["difference"]["low"] <= 0]
    assert all(name in (results["negative_transfer"] or "") for name in expected)
    assert bool(results["negative_transfer"]) == bool(expected)


def test_a_training_on_shuffled_labels_is_not_better(tiny_bert: Path, tmp_path: Path) -> None:
    rows = review_rows(300)
    targets = [row["target"] for row in rows]
    random.Random(0).shuffle(targets)
    shuffled = [{**row, "target": target} for row, target in zip(rows, targets, strict=True)]
    results = train(tiny_recipe(tiny_bert, write_jsonl(tmp_path / "rows.jsonl", shuffled))).results()
    assert results["verdict"].split()[0] in ("undecided", "worse")
    assert "not shown to be better" in results["negative_transfer"]


def test_a_verdict_is_better_only_where_the_interval_says_so() -> None:
    task = Classification(labels=("a", "b"))
    rows = {"id": [str(n) for n in range(200)], "text": ["x"] * 200, "target": ["a", "b"] * 100}

    def right(n: int) -> list[Label]:
        answers = [t if place < n else "ab"[t == "a"] for place, t in enumerate(rows["target"])]
        return [
            Label(answer, {"a": 0.9 if answer == "a" else 0.1, "b": 0.1 if answer == "a" else 0.9})
            for answer in answers
        ]

    verdict = judged(task, right(160), {"tfidf": right(120), "frozen": right(158)}, rows)
    assert verdict["verdict"].startswith("undecided against the best baseline (frozen): +0.01 [")
    assert verdict["negative_transfer"].startswith("fine-tuning is not shown to be better than frozen (+0.01")
    assert judged(task, right(160), {"tfidf": right(120)}, rows)["verdict"].startswith("better than")
    assert judged(task, right(120), {"tfidf": right(160)}, rows)["verdict"].startswith("worse than")
    assert judged(task, right(160), {"tfidf": right(120)}, rows)["negative_transfer"] is None


def test_what_lies_behind_the_score(run: Run) -> None:
    test = run.results()["splits"]["test"]
    predictions, rows = read_predictions(run.predictions_file("test"), run.recipe().task)
    confusion = np.asarray(test["confusion"])
    assert confusion.sum() == test["rows"] == len(predictions)
    assert np.trace(confusion) / confusion.sum() == pytest.approx(test["metrics"]["accuracy"]["value"])
    from sklearn.metrics import precision_recall_fscore_support

    given = [one.label for one in predictions]
    columns = precision_recall_fscore_support(rows["target"], given, labels=list(test["classes"]), zero_division=0)
    for name, values in zip(("precision", "recall", "f1"), columns, strict=False):
        assert [one[name] for one in test["classes"].values()] == pytest.approx(values.tolist())
    assert {one["name"].split()[0] for one in test["slices"]} >= {"group"}
    values = [one["value"] for one in test["slices"]]
    assert values == sorted(values)
    wrong = [row for row, one, t in zip(rows["id"], given, rows["target"], strict=True) if one != t]
    assert {one["id"] for one in test["mistakes"]} <= set(wrong)
    assert len(test["mistakes"]) == min(20, len(wrong))
    assert test["calibration"]["risk_coverage"][-1]["accuracy"] == pytest.approx(test["metrics"]["accuracy"]["value"])


def test_the_temperature_is_fitted_on_validation_and_kept(run: Run) -> None:
    task = run.trained_recipe().task
    assert run.recipe().task.temperature is None
    assert task.temperature > 0
    plain = Predictor.load(run)
    plain.task = task.model_copy(update={"temperature": None})
    warm = Predictor.load(run)
    rows = resolved(run.recipe())[1]["validation"]
    truth = references(task, rows)

    def loss(predictor: Predictor) -> float:
        shares = [one.probabilities[t] for one, t in zip(predictor.predict(rows), truth["target"], strict=True)]
        return float(-np.mean(np.log(shares)))

    assert loss(warm) <= loss(plain) + 1e-6
    assert [one.label for one in warm.predict(rows)] == [one.label for one in plain.predict(rows)]


def test_thresholds_of_several_labels_are_fitted_on_validation(tiny_bert: Path, tmp_path: Path) -> None:
    rows = [{**row, "target": "film|good" if row["target"] == "positive" else "film"} for row in review_rows(120)]
    run = train(tiny_recipe(tiny_bert, write_jsonl(tmp_path / "rows.jsonl", rows), "multilabel"))
    task = run.trained_recipe().task
    assert set(task.thresholds) == {"film", "good"}
    test = run.results()["splits"]["test"]
    assert set(test["classes"]) == {"film", "good"}
    predictions, rows = read_predictions(run.predictions_file("test"), task)
    for one in predictions:
        assert one.labels == [name for name, share in one.probabilities.items() if share >= task.thresholds[name]]
    assert score(task, predictions, rows)["metrics"] == test["metrics"]


def test_a_threshold_has_the_highest_f1() -> None:
    draw = np.random.default_rng(0)
    truth = draw.integers(0, 2, 80)
    shares = np.clip(0.3 * truth + 0.6 * draw.random(80), 0, 1)

    def f1(edge: float) -> float:
        said = shares >= edge
        return 2 * (said & (truth == 1)).sum() / (said.sum() + truth.sum())

    assert f1(best_threshold(truth, shares)) == pytest.approx(max(f1(edge) for edge in shares))
    assert best_threshold(np.zeros(5), np.linspace(0, 1, 5)) == 0.5
    assert best_threshold(np.array([0, 1]), np.array([0.1, 0.9])) == 0.5


@pytest.mark.parametrize("task", ["grading", "highlights"])
def test_other_tasks_have_their_baselines(task: str, tiny_bert: Path, tmp_path: Path) -> None:
    rows = [
        {"text": f"The film was {n}. The plot is good. It was dull {n % 7}.", "target": str(n % 5), "g": f"p{n % 2}"}
        for n in range(60)
    ]
    if task == "highlights":
        rows = [{**row, "target": "the plot"} for row in rows]
    recipe = tiny_recipe(tiny_bert, write_jsonl(tmp_path / "rows.jsonl", rows), task).override("data.group=g")
    results = train(recipe).results()
    expected = {"mean", "length", "tfidf", "frozen"} if task == "grading" else {"lead", "textrank", "tfidf", "frozen"}
    assert set(results["baselines"]) == expected
    assert results["verdict"].split()[0] in ("better", "worse", "undecided")


def test_rows_that_were_trained_on_are_told(run: Run, tmp_path: Path, command: Callable[..., Answer]) -> None:
    splits = resolved(run.recipe())[1]
    seen = [
        {"text": text.upper() + " !", "target": t}
        for text, t in zip(*(splits["train"][:5][c] for c in ("text", "target")), strict=True)
    ]
    new = [
        {"text": text, "target": t}
        for text, t in zip(*(splits["test"][:15][c] for c in ("text", "target")), strict=True)
    ]
    found = evaluate(run, file=write_jsonl(tmp_path / "both.jsonl", [*seen, *new]))
    assert found["seen_in_training"] == {"rows": 5, "share": 0.25, "examples": ["0", "1", "2", "3", "4"]}
    answer = command("evaluate", run.folder, "--file", tmp_path / "both.jsonl")
    assert "warning: 5 of 20 rows (25.0 %) were trained on" in answer.err
    assert "seen_in_training" not in evaluate(run, file=write_jsonl(tmp_path / "new.jsonl", new))


def test_evaluate_says_what_training_said(run: Run) -> None:
    assert evaluate(run) == run.results()["splits"]["test"]


def test_baselines_get_thresholds_of_validation_as_the_model_does(tiny_bert: Path, tmp_path: Path) -> None:
    """A rare label that no probability above one half is given to: at a threshold of one half all would score 0."""
    rows = [{**row, "target": "rare" if n % 12 == 0 else ""} for n, row in enumerate(review_rows(240))]
    results = train(tiny_recipe(tiny_bert, write_jsonl(tmp_path / "rows.jsonl", rows), "multilabel")).results()
    assert results["baselines"]["majority"]["micro_f1"]["value"] > 0.1
    values = [line["values"]["micro_f1"] for line in Run.open(newest(tmp_path)).history() if line["split"] != "train"]
    assert min(values) > 0


def newest(tmp_path: Path) -> Path:
    return sorted((tmp_path / "runs" / "tiny").iterdir())[-1]


def test_a_training_split_of_one_label_is_scored_all_the_same(tiny_bert: Path, tmp_path: Path) -> None:
    rows = review_rows(120)
    paths = {
        "train": write_jsonl(tmp_path / "a.jsonl", [row for row in rows[:80] if row["target"] == "positive"]),
        "validation": write_jsonl(tmp_path / "b.jsonl", rows[80:100]),
        "test": write_jsonl(tmp_path / "c.jsonl", rows[100:]),
    }
    run = train(tiny_recipe(tiny_bert, Files(**paths, overlap="drop")))
    assert set(run.results()["baselines"]) == {"majority", "tfidf", "frozen"}
    assert "one_class" in {finding["name"] for finding in run.data()["findings"]}


def test_texts_without_words_have_baselines(tiny_bert: Path, tmp_path: Path) -> None:
    marks = "👍👎!?😀😡"
    rows = [{"text": marks[n % 2] + marks[2 + n % 4] * (n % 9 + 1), "target": "xy"[n % 2]} for n in range(90)]
    data = Files(path=write_jsonl(tmp_path / "rows.jsonl", rows), similarity=1, overlap="keep")
    assert set(train(tiny_recipe(tiny_bert, data)).results()["baselines"]) == {"majority", "tfidf", "frozen"}


@pytest.mark.parametrize("ends", [(0, 1.1), (1, 5.3), (0.1, 0.8)])
def test_a_grade_at_the_end_of_its_scale_is_inside(ends: tuple[float, float]) -> None:
    task = Grading(low=ends[0], high=ends[1], step=0.1)
    rows = {"id": ["a", "b"], "text": ["x", "y"], "target": [str(ends[0]), str(ends[1])]}
    predictions = task.decode([np.float32([1.2]), np.float32([-0.1])], rows, None)
    assert [one.scores["score"] for one in predictions] == [ends[1], ends[0]]
    found = score(task, predictions, rows)
    assert [one["id"] for one in found["mistakes"]] == ["a", "b"]


def test_a_slice_draws_whole_groups() -> None:
    """One author of ten equal rows tells no more than one row does, in a slice as in the whole."""
    task = Classification(labels=("a", "b"))
    draw = np.random.default_rng(0)
    right = np.repeat(draw.random(30) < 0.7, 10)
    truth = ["ab"[n % 2] for n in range(300)]
    predictions = [
        Label(answer := t if good else "ab"[t == "a"], {"a": float(answer == "a"), "b": float(answer == "b")})
        for t, good in zip(truth, right, strict=True)
    ]
    rows = {"id": [str(n) for n in range(300)], "text": ["x y"] * 290 + ["x y z z z"] * 10, "target": truth}
    together = {**rows, "keep_together": [f"author {n // 10}" for n in range(300)]}

    def width(columns: dict) -> float:
        (one,) = [part for part in score(task, predictions, columns)["slices"] if part["name"] == "label a"]
        return one["high"] - one["low"]

    assert width(together) > 2 * width(rows)


def test_a_file_with_a_broken_line_is_evaluated_without_it(run: Run, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "more.jsonl", review_rows(200, seed=5))
    with path.open("a") as file:
        file.write('{"text": "cut\n')
    found = evaluate(run, file=path)
    assert found["rows"] == 200
    assert len(found["rejects"]) == 1 and "line 201" in found["rejects"][0]
