"""The options of tasks and data act: each changes what is trained, predicted or kept. Others: see test_fields."""

from pathlib import Path

import pytest
import torch
from conftest import artifact, review_rows, tiny_recipe, write_jsonl

from tl_nlp import Predictor, train
from tl_nlp.data.files import Files
from tl_nlp.tasks.highlights import Highlights


@pytest.mark.parametrize(
    ("task", "override"),
    [
        ("classification", "task.pooling=mean"),
        ("classification", "task.max_length=8"),
        ("classification", "data.seed=1"),
        ("classification", "data.rows=20"),
        ("highlights", "task.temperature=1"),
    ],
)
def test_an_option_changes_what_is_trained(
    task: str, override: str, tiny_bert: Path, reviews: Path, tmp_path: Path
) -> None:
    if task == "highlights":
        rows = [{"text": f"The film was {n}. The plot is good. It was dull.", "target": "the plot"} for n in range(40)]
        reviews = write_jsonl(tmp_path / "papers.jsonl", rows)
    recipe = tiny_recipe(tiny_bert, reviews, task)
    plain, changed = artifact(train(recipe)), artifact(train(recipe.override(override)))
    same = plain.keys() == changed.keys() and all(torch.equal(plain[name], changed[name]) for name in plain)
    assert not same


def test_evaluations_come_as_often_as_asked(tiny_bert: Path, reviews: Path) -> None:
    run = train(tiny_recipe(tiny_bert, reviews).override("training.eval_every=0.5", "training.epochs=1.5"))
    assert [line["epoch"] for line in run.history() if line["split"] == "validation"] == [0.5, 1.0, 1.5]


def test_shares_set_the_sizes_of_the_splits(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", review_rows(100))
    splits = Files(path=path, validation_share=0.1, test_share=0.3).load()
    assert {name: len(split) for name, split in splits.items()} == {"train": 60, "validation": 10, "test": 30}


def test_generation_keeps_to_its_lengths_and_beams(tiny_t5: Path, tmp_path: Path) -> None:
    rows = [{**row, "target": " ".join(row["text"].split()[:3])} for row in review_rows(60)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    recipe = tiny_recipe(tiny_t5, path, {"kind": "summarization", "max_length": 64, "max_new_tokens": 6})
    predictor = Predictor.load(train(recipe.override("training.epochs=4", "training.lr=1e-2")))
    texts = [row["text"] for row in rows[:20]]

    def lengths(**choices: int) -> list[int]:
        task = predictor.task.model_copy(update=choices)
        ours = Predictor(predictor.model, predictor.tokenizer, task, "float32")
        return [len(prediction.text.split()) for prediction in ours(texts)]

    assert max(lengths()) <= 6
    assert min(lengths(max_new_tokens=12, min_new_tokens=10)) > max(lengths(max_new_tokens=3))
    one, four = (
        [p.text for p in Predictor(predictor.model, predictor.tokenizer, task, "float32")(texts)]
        for task in (predictor.task, predictor.task.model_copy(update={"beams": 4}))
    )
    assert one != four


def test_the_language_finds_the_ends_of_sentences() -> None:
    text = "Das kostet 3 Euro bzw. 4 Mark. Gut."
    assert Highlights(language="de").sentences(text) != Highlights(language="en").sentences(text)
