"""The range test: a curve a part, rates inside them, and nothing left behind."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Answer, recipe_file, tiny_recipe
from PIL import Image

from tl_nlp.charts import Curve, as_text
from tl_nlp.lr_range import HIGHEST, LOWEST, find_lr


def test_the_command_draws_and_suggests(
    command: Callable[..., Answer], tiny_bert: Path, reviews: Path, tmp_path: Path, own_runs: Path
) -> None:
    file, output = recipe_file(tiny_recipe(tiny_bert, reviews), tmp_path), tmp_path / "rates.png"
    answer = command("find-lr", file, "--output", output)
    assert answer.status == 0
    assert not own_runs.exists()
    *drawn, words, path = answer.out.splitlines()
    assert path == str(output)
    assert "head" in drawn and "backbone" in drawn and sum("*" in line for line in drawn) >= 10
    with Image.open(output) as image:
        assert image.format == "PNG" and image.width > image.height > 300
        assert len(image.convert("RGB").getcolors(10**6)) > 20  # not an empty page
    found = dict(word.split("=") for word in words.split())
    assert found.keys() == {"training.lr", "training.head_lr"}
    assert all(LOWEST < float(rate) < HIGHEST for rate in found.values())
    assert command("show", file, *words.split()).status == 0  # as they are printed they are overrides


def test_rates_that_learn_are_told_from_rates_that_do_not(tiny_bert: Path, reviews: Path) -> None:
    found = find_lr(tiny_recipe(tiny_bert, reviews), n_steps=40)
    for curve in found.curves:
        assert curve.x == sorted(curve.x) and len(curve.x) == len(curve.y) > 10
        assert min(curve.y) < curve.y[0]
        assert curve.x[0] < curve.marked < curve.x[curve.y.index(min(curve.y))] * 1.001


@pytest.mark.parametrize(
    ("method", "task", "names", "keys"),
    [
        ("head", "classification", ["head"], {"training.lr"}),
        ("lora", "classification", ["head", "lora"], {"training.lr", "training.head_lr"}),
        ("full", "summarization", ["backbone"], {"training.lr"}),
        ("prompt", "summarization", ["prompt"], {"training.lr"}),
    ],
)
def test_what_does_not_learn_has_no_rate(
    method: str, task: str, names: list[str], keys: set[str], tiny_bert: Path, tiny_t5: Path, reviews: Path
) -> None:
    checkpoint = tiny_t5 if task == "summarization" else tiny_bert
    found = find_lr(tiny_recipe(checkpoint, reviews, task, method=method), n_steps=12)
    assert [curve.name for curve in found.curves] == names
    assert {word.split("=")[0] for word in found.overrides} == keys


def test_a_drawing_that_cannot_be_written_is_refused_first(
    command: Callable[..., Answer], tiny_bert: Path, reviews: Path, tmp_path: Path
) -> None:
    file = recipe_file(tiny_recipe(tiny_bert, reviews), tmp_path)
    for output in ("rates.pdf", "nosuch/rates.png"):
        answer = command("find-lr", file, "--output", output)
        assert answer.status == 2 and "the drawing is a .png file in a folder that is there" in answer.err


def test_a_curve_in_characters() -> None:
    drawn = as_text(Curve("body", [1e-3, 1e-2, 1e-1], [2.0, 1.0, 3.0], 1e-2), width=11, height=3)
    assert drawn.splitlines() == [
        "body",
        "   3.000      |    *",
        "         *    |",
        "   1.000      *",
        "         1e-03 1e-01",
    ]
