"""Which sentences moved a score."""

from pathlib import Path

import pytest
from conftest import review_rows, tiny_recipe, write_jsonl

from tl_nlp import Predictor, train
from tl_nlp.attribution import MOST_SENTENCES, sentence_effects
from tl_nlp.errors import DataError


@pytest.fixture(scope="module")
def grader(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """Five points for a good word, one for a bad one, in texts of two prompts."""
    folder = tmp_path_factory.mktemp("attribution")
    rows = [
        {**row, "target": "5" if row["target"] == "positive" else "1", "group": "pq"[number % 2], "pair": "is it ?"}
        for number, row in enumerate(review_rows(240))
    ]
    recipe = tiny_recipe(tiny_bert, write_jsonl(folder / "rows.jsonl", rows), "grading").override(
        "training.epochs=6", "training.lr=3e-3", "task.pooling=mean", 'task.surface=["length"]'
    )
    return Predictor.load(train(recipe, root=folder))


def test_an_effect_is_the_score_less_the_score_without(grader: Predictor) -> None:
    text = "The film was lovely.  It is the plot. \n\nWith some scenes more."
    parts = sentence_effects(grader, text, "is it ?", group="p")
    assert "".join(part.text for part in parts) == text
    told = {part.text: part.effect["score"] for part in parts if part.effect is not None}
    assert list(told) == ["The film was lovely.", "It is the plot.", "With some scenes more."]
    assert max(told, key=lambda sentence: told[sentence]) == "The film was lovely."
    whole, without = grader([text, text.replace("It is the plot.", "")], ["is it ?"] * 2, group=["p", "p"])
    assert told["It is the plot."] == pytest.approx(whole.scores["score"] - without.scores["score"], abs=1e-4)


def test_one_sentence_moved_everything_and_many_are_joined(grader: Predictor) -> None:
    assert [(part.text, part.effect) for part in sentence_effects(grader, "The film was lovely.")] == [
        ("The film was lovely.", None)
    ]
    text = "It was the plot. " * (3 * MOST_SENTENCES)
    parts = [part for part in sentence_effects(grader, text) if part.effect is not None]
    assert len(parts) <= MOST_SENTENCES
    assert {part.text.count("plot") for part in parts} == {3}
    with pytest.raises(DataError, match="the text is empty"):
        sentence_effects(grader, "  ")
