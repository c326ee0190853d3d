"""Tasks: targets to labels, outputs to predictions, predictions to scores, and clear words for what does not fit."""

from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from transformers import AutoTokenizer

from tl_nlp.errors import DataError, RecipeError
from tl_nlp.tasks.classification import Classification
from tl_nlp.tasks.grading import Grading
from tl_nlp.tasks.highlights import Highlights
from tl_nlp.tasks.multilabel import Multilabel
from tl_nlp.tasks.summarization import Summarization
from tl_nlp.types import Label, Labels, Scores, Text, as_json


@pytest.fixture(scope="module")
def bert(tiny_bert: Path):
    return AutoTokenizer.from_pretrained(tiny_bert)


def rows(**columns: list) -> dict[str, list]:
    n_rows = len(next(iter(columns.values())))
    return {"id": [f"r{n}" for n in range(n_rows)], "text": ["the film"] * n_rows, **columns}


def splits(**columns: list) -> DatasetDict:
    return DatasetDict(train=Dataset.from_dict(rows(**columns)))


def test_classification(bert) -> None:
    task = Classification().resolve(splits(target=["10", "9", "9", "ok"]))
    assert task.outputs() == ["9", "10", "ok"]
    assert Classification(labels=("b", "a")).resolve(splits(target=["a"])).labels == ("b", "a")
    assert task.encode(rows(target=["10", "ok"]), bert)["labels"] == [1, 2]
    (prediction,) = task.decode([np.array([0.2, 0.5, 0.3])], rows(target=["9"]), bert)
    assert prediction == Label("10", {"9": 0.2, "10": 0.5, "ok": 0.3})
    assert as_json(prediction, "r0") == {"id": "r0", "label": "10", "probabilities": {"9": 0.2, "10": 0.5, "ok": 0.3}}
    assert task.score([prediction, prediction], rows(target=["10", "9"]))["accuracy"] == 0.5
    with pytest.raises(DataError, match=r"row r0: 'bad' is none of the labels 9, 10, ok; add it to task\.labels"):
        task.encode(rows(target=["bad"]), bert)
    assert Classification().resolve(splits(target=["x", "", "y"])).labels == ("x", "y")
    assert task.faults(rows(target=["9", "", "bad"])).keys() == {1, 2}
    with pytest.raises(DataError, match="the targets are all 'x'"):
        Classification().resolve(splits(target=["x", "x"]))
    with pytest.raises(RecipeError, match="two or more different names"):
        Classification(labels=("a", "a"))


def test_multilabel(bert) -> None:
    task = Multilabel().resolve(splits(target=["b|a", "", "c"]))
    assert task.outputs() == ["a", "b", "c"]
    assert task.encode(rows(target=[["c", "a"], []]), bert)["labels"] == [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    outputs = [np.array([0.9, 0.2, 0.5])]
    assert task.decode(outputs, rows(target=["a"]), bert) == [Labels(["a", "c"], {"a": 0.9, "b": 0.2, "c": 0.5})]
    strict = task.model_copy(update={"threshold": 0.8})
    (prediction,) = strict.decode(outputs, rows(target=["a"]), bert)
    assert prediction.labels == ["a"]
    assert strict.score([prediction], rows(target=["a"]))["exact_match"] == 1
    assert Multilabel().resolve(splits(target=[[2, 1], None])).labels == ("1", "2")
    with pytest.raises(DataError, match="row r0: 'd' is none of the labels a, b, c"):
        task.encode(rows(target=["a|d"]), bert)


def test_grading_on_one_scale(bert) -> None:
    task = Grading().resolve(splits(target=["1", "5", "2.5"]))
    assert (task.low, task.high) == (1, 5)
    assert task.encode(rows(target=["1", "3", "5"]), bert)["labels"] == [[0.0], [0.5], [1.0]]
    predictions = task.decode([np.array([0.5]), np.array([7.0])], rows(target=["1", "1"]), bert)
    assert predictions == [Scores({"score": 3.0}, {"score": 3.0}), Scores({"score": 5.0}, {"score": 5.0})]
    scores = task.score(predictions, rows(target=["3", "4"]))
    assert scores["rmse"] == pytest.approx(0.5**0.5)
    assert set(scores) == {
        "qwk", "qwk_pooled", "pearson", "mean_pearson", "spearman", "rmse", "smd",
        "exact_agreement", "adjacent_agreement", "length_pearson", "reference_length_pearson",
    }  # fmt: skip
    with pytest.raises(DataError, match="row r0: the grade 9 is outside the scale 1 to 5"):
        task.encode(rows(target=["9"]), bert)
    with pytest.raises(DataError, match="row r0: the grade 'B' is no number"):
        task.encode(rows(target=["B"]), bert)
    with pytest.raises(DataError, match="row r0: it has no grade"):
        task.encode(rows(target=[""]), bert)
    with pytest.raises(DataError, match="every grade in the training rows is 2"):
        Grading().resolve(splits(target=["2", "2"]))
    with pytest.raises(RecipeError, match="high: the scale ends at 1, not above its low 3"):
        Grading(low=3, high=1)


def test_grading_with_a_scale_in_each_row_and_several_traits(bert) -> None:
    task = Grading(traits=("style", "content"))
    targets = [{"style": 1, "content": 4}, {"style": None, "content": 10}]
    given = rows(target=targets, low=[0, 0], high=[4, 10], group=["p", "q"])
    assert task.resolve(DatasetDict(train=Dataset.from_dict(given))).scales == {"p": (0, 4), "q": (0, 10)}
    labels = task.encode(given, bert)["labels"]
    assert labels[0] == [0.25, 1.0]
    assert np.isnan(labels[1][0])
    assert labels[1][1] == 1.0
    predictions = task.decode([np.array([0.25, 1.0]), np.array([0.0, 0.9])], given, bert)
    assert predictions[1] == Scores({"style": 0.0, "content": 9.0}, {"style": 0.0, "content": 9.0})
    scores = task.score(predictions, given)
    assert scores["rmse_style"] == 0
    assert scores["rmse"] == pytest.approx(scores["rmse_content"] / 2)
    with pytest.raises(DataError, match="no trait 'content' in its target; there are: style"):
        task.encode(rows(target=[{"style": 1}], low=[0], high=[4]), bert)
    with pytest.raises(DataError, match="give the columns low and high"):
        task.decode([np.array([0.1, 0.1])], rows(pair=["p"]), bert)


def test_the_tasks_scale_goes_before_the_rows(bert) -> None:
    given = rows(target=["3"], low=[0], high=[4])
    assert Grading(low=1, high=5).encode(given, bert)["labels"] == [[0.5]]
    assert Grading().encode(given, bert)["labels"] == [[0.75]]
    with pytest.raises(DataError, match="row r0: its scale is n/a to 4"):
        Grading().encode(rows(target=["3"], low=["n/a"], high=[4]), bert)


def test_steps_count_from_the_low_end_of_the_scale(bert) -> None:
    given = rows(target=["1", "3", "5", "7"])
    predictions = [Scores({"score": value}) for value in (1.0, 5.0, 3.0, 7.0)]
    assert Grading(low=1, high=7, step=2).score(predictions, given)["qwk"] == pytest.approx(0.8)


def test_the_step_of_grades_sets_what_qwk_compares(bert) -> None:
    given = rows(target=["1", "2", "3.5"])
    predictions = [Scores({"score": value}) for value in (1.2, 2.2, 3.6)]
    whole, halves = (Grading(low=1, high=5, step=step).score(predictions, given)["qwk"] for step in (1.0, 0.5))
    assert whole < halves == 1


def test_summarization(tiny_t5: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_t5)
    task = Summarization(prefix="summarize: ", max_length=10, max_new_tokens=4)
    encoded = task.encode(rows(text=["the film is good and very fine . it was dull"], target=["good film"]), tokenizer)
    assert tokenizer.decode(encoded["input_ids"][0][0]) == "summarize : the film is good and very fine </s>"
    assert encoded["cut"] == [4]
    assert tokenizer.decode(encoded["labels"][0][0]) == "good film </s>"
    assert (
        task.encode(rows(text=["the film"], pair=["plot ?"]), tokenizer)["input_ids"][0][0]
        == (tokenizer("summarize: plot ? the film")["input_ids"])
    )
    (prediction,) = task.decode([np.array(encoded["labels"][0])], rows(target=["x"]), tokenizer)
    assert prediction == Text("good film", invented=[], unfinished=False)
    assert as_json(prediction) == {"text": "good film", "invented": [], "unfinished": False}
    assert task.score([prediction], rows(target=["bad plot"], others=[["good film"]]))["rouge1"] == 100
    assert task.score([prediction], rows(target=["bad plot"], others=["good film"]))["rouge1"] == 100
    long = task.encode(rows(target=["good film and very fine plot"]), tokenizer)
    assert (tokenizer.decode(long["labels"][0][0]), long["cut"]) == ("good film and </s>", [3])
    with pytest.raises(DataError, match="row r0: its target '' is no text"):
        task.encode(rows(target=[""]), tokenizer)
    with pytest.raises(RecipeError, match="min_new_tokens: 9 is above max_new_tokens 4"):
        Summarization(max_new_tokens=4, min_new_tokens=9)


def test_highlights(bert) -> None:
    task = Highlights(max_length=32, n_sentences=2)
    text = "The film is good. The plot was dull! It was fine?"
    sentences = ["The film is good.", "The plot was dull!", "It was fine?"]
    assert task.sentences(text) == sentences
    encoded = task.encode(rows(text=[text], target=["the plot was dull"]), bert)
    assert encoded["labels"][0][1] == 1
    assert (
        encoded["labels"][0]
        == task.encode(rows(sentences=[sentences], target=["the plot was dull"]), bert)["labels"][0]
    )
    outputs = [np.array([0.1, -1.0, 2.0, -np.inf])]
    assert task.decode(outputs, rows(text=[text]), bert) == [Text("The film is good. It was fine?", [0, 2])]
    marks = task.model_copy(update={"learn_from": "highlights"})
    assert marks.encode(rows(text=[text], target=["x"], highlights=[[0, 1, 1]]), bert)["labels"] == [[0.0, 1.0, 1.0]]
    with pytest.raises(DataError, match="row r0: 2 highlights for 3 sentences"):
        marks.encode(rows(text=[text], target=["x"], highlights=[[0, 1]]), bert)
    with pytest.raises(DataError, match="row r0: the column sentences holds 'one text', not a list"):
        task.encode(rows(sentences=["one text"], target=["x"]), bert)
    with pytest.raises(DataError, match="needs the columns sentences and highlights"):
        marks.encode(rows(text=[text], target=["x"]), bert)


def test_highlights_keep_to_their_budget() -> None:
    sentences = ["The plot was very dull.", "The plot was dull.", "It was fine.", "The plot was very, very dull."]
    outputs = [np.array([3.0, 2.0, 1.0, 2.5])]

    def picked(**choices: object) -> list[int] | None:
        task = Highlights(**{"n_sentences": 3, **choices})
        (prediction,) = task.decode(outputs, {"sentences": [sentences], "id": ["r0"]}, None)
        assert isinstance(prediction, Text)
        return prediction.sentences

    assert picked() == [0, 1, 3]
    assert picked(repeats=False) == [0, 2]
    assert picked(n_words=9) == [0]
    assert picked(n_words=11) == [0, 3]
    assert picked(n_words=1) == [0]


def test_a_budget_of_words_is_found_on_validation() -> None:
    sentences = ["The plot was very dull.", "It was fine and the actors were good.", "Some scenes were long too."]
    outputs = [np.array([2.0, 1.0, 0.0])] * 2
    rows = {"id": ["a", "b"], "sentences": [sentences] * 2, "text": ["x", "x"]}
    task = Highlights(n_sentences=3)

    def n_picked(target: str, **choices: object) -> int:
        fitted = task.model_copy(update={"budget": "fitted", **choices}).calibrated(
            outputs, {**rows, "target": [target] * 2}
        )
        return len(fitted.decode(outputs, rows, None)[0].sentences)  # type: ignore[union-attr]

    assert n_picked("The plot was dull.") == 1
    assert n_picked("The plot was dull, it was fine, actors good.") == 2
    assert task.calibrated(outputs, {**rows, "target": ["The plot."] * 2}) == task
