"""Predictions: in order, the same in any company, from texts and from files; and scores of what was saved."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from conftest import Answer, review_rows, tiny_recipe, write_jsonl

from tl_nlp import Predictor, Run, evaluate, train
from tl_nlp.errors import DataError, NoRunError, RunError
from tl_nlp.tables import read_table
from tl_nlp.writing import rows_file, write_rows


@pytest.fixture(scope="module")
def run(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    path = write_jsonl(folder / "reviews.jsonl", review_rows(240))
    recipe = tiny_recipe(tiny_bert, path).override("training.epochs=8", "training.lr=3e-3", "task.max_length=16")
    return train(recipe, root=folder)


def test_a_tiny_model_learns_what_the_words_say(run: Run) -> None:
    results = run.results()
    assert results["splits"]["test"]["metrics"]["accuracy"]["value"] > 0.9
    assert results["format"] == 1
    assert results["main_metric"] == "accuracy"
    assert results["train"]["seconds"] > 0
    assert results["train"]["peak_rss_mb"] > 100
    names = [prediction.label for prediction in Predictor.load(run)(["the film was lovely", "the film was awful"])]
    assert names == ["positive", "negative"]


@pytest.mark.parametrize(("precision", "close"), [("float32", 1e-5), ("bfloat16", 2e-3)])
def test_predictions_do_not_depend_on_their_company(precision: str, close: float, run: Run) -> None:
    texts = [row["text"] * (1 + number % 4) for number, row in enumerate(review_rows(50, seed=5))]
    predictor = Predictor.load(run.model_dir, precision)
    together = predictor(texts)
    for text, prediction in zip(texts[:10], together[:10], strict=True):
        (alone,) = predictor([text])
        assert alone.probabilities == pytest.approx(prediction.probabilities, abs=close)


def test_weights_in_bfloat16_answer_as_weights_that_are_cast(run: Run) -> None:
    texts = [row["text"] for row in review_rows(50, seed=5)]
    halved, cast = Predictor.load(run, "bfloat16"), Predictor.load(run, "float32")
    assert halved.model.get_input_embeddings().weight.dtype == cast.model.classifier.weight.dtype == torch.float32
    assert halved.model.classifier.weight.dtype == torch.bfloat16
    exact, cast.precision = cast(texts), "bfloat16"
    assert halved(texts) == cast(texts) != exact


def test_predictor_refuses_what_it_cannot_read(run: Run) -> None:
    predictor = Predictor.load(run)
    assert predictor([]) == []
    with pytest.raises(DataError, match="row 1: the text is empty"):
        predictor(["fine", " \n"])
    with pytest.raises(DataError, match="a list of texts"):
        predictor("fine")


def test_the_run_directory_holds_its_contract(run: Run) -> None:
    names = {path.name for path in run.folder.iterdir()}
    assert names == {
        "recipe.json", "environment.json", "data.json", "metrics.jsonl", "checkpoints", "model", "predictions",
        "results.json", "rejects.jsonl", "row_hashes.parquet", "report.html",
    }  # fmt: skip
    assert {"recipe.json", "config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in run.model_dir.iterdir()
    }
    assert run.recipe().task.labels == ("negative", "positive")
    data = run.data()
    assert {name: split["rows"] for name, split in data["splits"].items()} == {
        "train": 168,
        "validation": 36,
        "test": 36,
    }
    table = pyarrow.parquet.read_table(run.predictions_file("test"))
    assert table.column_names == ["id", "text", "reference", "prediction", "probabilities"]
    right = [r == p for r, p in zip(table["reference"].to_pylist(), table["prediction"].to_pylist(), strict=True)]
    assert sum(right) / len(right) == run.results()["splits"]["test"]["metrics"]["accuracy"]["value"]
    lines = run.history()
    assert [line["epoch"] for line in lines if line["split"] == "validation"] == list(range(1, 9))
    environment = json.loads((run.folder / "environment.json").read_text())
    assert environment["seeds"] == {"training": 0, "data": 0}
    assert environment["versions"]["torch"]


def test_evaluate_is_what_training_reported(run: Run, tmp_path: Path) -> None:
    assert evaluate(run) == run.results()["splits"]["test"]
    assert evaluate(run.folder, "validation")["rows"] == 36
    file = tmp_path / "more.csv"
    file.write_text("text,target\nthe film was lovely,positive\nthe plot was awful,negative\n")
    assert evaluate(run, file=file)["metrics"]["accuracy"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    with pytest.raises(DataError, match="no split 'dev'; there are: train, validation, test"):
        evaluate(run, "dev")
    file.write_text("text\nthe film\n")
    with pytest.raises(DataError, match="no column 'target'"):
        evaluate(run, file=file)


def test_scores_need_the_labels_the_model_knows(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "numbers.csv"
    file.write_text("text,target\nthe film was lovely,1\n")
    with pytest.raises(DataError, match="row 0: '1' is none of the labels negative, positive"):
        evaluate(run, file=file)


def test_a_split_that_has_changed_is_not_scored(tiny_bert: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", review_rows(60))
    changing = train(tiny_recipe(tiny_bert, path))
    write_jsonl(path, review_rows(66))
    with pytest.raises(
        DataError, match=r"the test rows are not those .* was made with, and some may have been trained on"
    ):
        evaluate(changing)


def test_a_file_names_its_columns_as_we_do_or_as_the_recipe_does(run: Run, tiny_bert: Path, tmp_path: Path) -> None:
    import pyarrow as pa

    predictor = Predictor.load(run)
    rows = predictor.predict_table(pa.table({"id": ["a", "b"], "text": ["good film", "bad film"]}))
    assert [(row["id"], row["label"]) for row in rows] == [("a", "positive"), ("b", "negative")]
    predictor.recipe = run.recipe().override("data.text=review")
    assert predictor.predict_table(pa.table({"review": ["good film"]}))[0]["label"] == "positive"
    with pytest.raises(DataError, match="no column 'text' or 'review'; there are: x"):
        predictor.predict_table(pa.table({"x": ["good film"]}))


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_file_is_read_answered_and_written_in_pieces(
    suffix: str, run: Run, tmp_path: Path, command: Callable[..., Answer]
) -> None:
    rows = [{"text": row["text"]} for row in review_rows(12_500)]  # of pieces of 10,000
    read, written = tmp_path / f"texts.{suffix}", tmp_path / f"answers.{suffix}"
    write_rows(read, rows)
    assert command("predict", run.folder, "--input", read, "--output", written).status == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [written.name, read.name]
    answers = read_table(written)
    assert answers["id"].to_pylist() == [str(number) for number in range(len(rows))]
    wanted = Predictor.load(run)([row["text"] for row in rows])
    assert answers["label"].to_pylist() == [answer.label for answer in wanted]


def test_a_fault_in_the_last_row_is_told_before_the_first_is_answered(
    run: Run, tmp_path: Path, command: Callable[..., Answer]
) -> None:
    texts, written = tmp_path / "texts.jsonl", tmp_path / "answers.jsonl"
    write_rows(texts, [*({"text": f"the film {number}"} for number in range(10_100)), {"text": " "}])
    told = command("predict", run.folder, "--input", texts, "--output", written)
    assert told.status == 2
    assert "row 10100: the text is empty" in told.err
    assert list(tmp_path.iterdir()) == [texts]


def test_what_was_written_before_a_fault_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": "0", "text": "a plot", "invented": []}, {"id": "1", "text": "film 42", "invented": [[5, 7]]}]
    for suffix in ("csv", "jsonl", "parquet"):
        path = tmp_path / f"rows.{suffix}"
        with pytest.raises(KeyboardInterrupt), rows_file(path) as file:
            file.write(rows[:1])
            file.write(rows[1:])
            raise KeyboardInterrupt
        partial = path.with_name(f"{path.name}.partial")
        assert f"the 2 rows that were ready are in {partial}" in capsys.readouterr().err
        assert not path.exists()
        partial.rename(path)
        assert read_table(path)["text"].to_pylist() == ["a plot", "film 42"]
        if suffix != "csv":
            assert read_table(path)["invented"].to_pylist() == [[], [[5, 7]]]
    with pytest.raises(KeyboardInterrupt), rows_file(tmp_path / "none.csv"):
        raise KeyboardInterrupt
    assert not list(tmp_path.glob("none*"))


def test_a_path_that_is_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(NoRunError, match="there is no such directory"):
        Predictor.load(tmp_path / "nosuch")
    with pytest.raises(NoRunError, match=r"is no run: it holds no recipe\.json"):
        Predictor.load(tmp_path)


def test_an_unfinished_run_says_how_to_go_on(tiny_bert: Path, reviews: Path) -> None:
    run = Run.create(tiny_recipe(tiny_bert, reviews))
    assert run.status == "started"
    with pytest.raises(RunError, match="has no trained model yet; tl-nlp train"):
        Predictor.load(run)
    with pytest.raises(RunError, match="is not finished"):
        run.results()
