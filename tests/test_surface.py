"""What is counted on the surface of texts, and how it reaches a grade."""

from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_recipe, write_jsonl

from tl_nlp import Predictor, train
from tl_nlp.errors import RecipeError
from tl_nlp.scales import rows_by_group
from tl_nlp.surface import fit_standards, measured, names, standardized
from tl_nlp.tasks.grading import Grading

ALL = ("length", "vocabulary", "punctuation", "errors", "overlap")


def counted(text: str, *families: str, language: str = "en") -> dict[str, float]:
    chosen = families or ALL
    return dict(zip(names(chosen), measured([text], None, chosen, language)[0].tolist(), strict=True))


def test_what_is_counted() -> None:
    found = counted("Is it, then, realy so? i think think so,yes. and nobody in Oslo knows.")
    assert found["root of words"] ** 2 == pytest.approx(14)
    assert found["log sentences"] == pytest.approx(np.log1p(3))
    assert found["log different words"] == pytest.approx(np.log1p(13))
    assert found["unknown words"] == 1  # realy; Oslo is a name
    assert found["sentences begun in lower case"] == pytest.approx(2 / 3)
    per_100 = {name: (value**2) / 100 for name, value in found.items() if "in 100" in name}
    assert per_100[", in 100 words"] == pytest.approx(3 / 14)
    assert per_100["? in 100 words"] == pytest.approx(1 / 14)
    assert per_100["doubled in 100 words"] == pytest.approx(1 / 15)
    assert per_100["glued in 100 words"] == pytest.approx(1 / 15)
    assert per_100["lone i in 100 words"] == pytest.approx(1 / 15)


def test_nothing_is_counted_of_nothing_and_families_add_up() -> None:
    assert np.isfinite(measured(["", "...", "7 8 9"], None, ALL, "en")).all()
    parts = [measured(["One two. Three!"], None, (family,), "en")[0] for family in ALL]
    assert np.concatenate(parts).tolist() == measured(["One two. Three!"], None, ALL, "en")[0].tolist()


def test_overlap_is_with_the_pair() -> None:
    text, pair = ["A stack keeps the last item on top."], ["What do stacks keep? Reference: the last items come first"]
    found = dict(zip(names(["overlap"]), measured(text, pair, ["overlap"], "en")[0], strict=True))
    assert found["share of the pair's words"] == pytest.approx(2 / 10)  # the, last
    assert found["share that the pair has"] == pytest.approx(2 / 8)
    assert found["share of the pair's stems"] == pytest.approx(1 / 4)  # stack of stacks, refer, items, first
    assert measured(text, None, ["overlap"], "en").sum() == 0


def test_spelling_is_that_of_the_language() -> None:
    text = "das ist ein guter Satz über vieles"
    assert counted(text, "errors", language="de")["unknown words"] == 0
    assert counted(text, "errors")["unknown words"] > 1


def test_counts_are_told_against_what_is_usual_in_the_group() -> None:
    values = np.asarray([[n, 5.0] for n in range(40)] + [[100 + 2 * n, 5.0] for n in range(40)])
    groups = ["a"] * 40 + ["b"] * 40
    standards = fit_standards(values, rows_by_group(groups), 30)
    z = standardized(values, groups, standards)
    assert z[:40, 0].mean() == pytest.approx(0, abs=1e-6) and z[40:, 0].std() == pytest.approx(1, abs=1e-4)
    assert (z[:, 1] == 0).all()
    unknown = standardized(np.asarray([[1e6, 5.0]]), ["c"], standards)
    assert unknown[0, 0] == 4  # against all, and no further than that
    assert set(fit_standards(values, rows_by_group(groups), 41)) == {""}


def essays_told_by_commas(folder: Path) -> Path:
    """A grade is how many commas there are; the words say nothing, and the tiny tokenizer's model is random."""
    draw = np.random.default_rng(0)
    rows = []
    for number in range(200):
        n_commas = int(draw.integers(0, 5))
        words = draw.permutation(
            ["the", "film", "is", "very", "some", "plot", "was", "more", str(number % 97)]
        ).tolist()
        text = " ".join(f"{word}," if place < n_commas else word for place, word in enumerate(words))
        group = "pq"[number % 2]
        rows.append({"text": text, "target": n_commas if group == "p" else 4 - n_commas, "group": group})
    return write_jsonl(folder / "commas.jsonl", rows)


@pytest.mark.parametrize("method", ["lora", *(pytest.param(name, marks=pytest.mark.slow) for name in ("head", "ia3"))])
def test_joined_counts_are_learned_each_group_in_its_own_way(tiny_bert: Path, tmp_path: Path, method: str) -> None:
    """Commas raise grades in one group and lower them in the other."""
    recipe = tiny_recipe(tiny_bert, essays_told_by_commas(tmp_path), "grading").override(
        "task.low=0", "task.high=4", "task.pooling=mean", f"method={method}", "training.epochs=40", "training.lr=0.01"
    )
    plain, joined = (train(recipe.override(f"task.surface={chosen}")) for chosen in ("[]", '["punctuation"]'))
    without, with_them = (run.results()["splits"]["test"]["metrics"]["pearson"]["value"] for run in (plain, joined))
    assert with_them > 0.9 > without
    texts = ["the, film, is, very, some plot was", "the film is very some plot was"]
    many, none = Predictor.load(joined)(texts, group=["p", "p"])
    assert many.scores["score"] > none.scores["score"] + 1
    many, none = Predictor.load(joined)(texts, group=["q", "q"])
    assert many.scores["score"] < none.scores["score"] - 1
    assert "needs tl_nlp" in (joined.model_dir / "README.md").read_text()


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"surface": ("length",)}, r"surface: is joined to what is pooled here"),
        ({"surface": ("length", "length"), "pooling": "mean"}, "surface: names a family twice"),
        (
            {"surface": ("style",), "pooling": "mean"},
            r"surface.*'length', 'vocabulary', 'punctuation', 'errors' or 'overlap'",
        ),
        ({"language": "de"}, r"language: is that of task.surface"),
        ({"surface": ("errors",), "pooling": "mean", "language": "xx"}, "language: 'xx' does not fit"),
    ],
)
def test_choices_that_would_do_nothing_are_refused(choices: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Grading(**choices)


def test_overlap_needs_pairs(tiny_bert: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_bert, essays_told_by_commas(tmp_path), "grading")
    with pytest.raises(RecipeError, match=r"task.surface: overlap is with the pair, and the rows have none"):
        train(recipe.override("task.pooling=mean", 'task.surface=["overlap"]'))


def test_length_is_taken_out_of_scores(tiny_bert: Path, tmp_path: Path) -> None:
    """Grades are told by length and by a word; without length the word is left."""
    draw = np.random.default_rng(0)
    rows = []
    for number in range(300):
        n_words, is_good = int(draw.integers(4, 40)), bool(draw.integers(0, 2))
        words = ["good" if is_good else "bad", *draw.choice(["the", "film", "is", "very"], n_words), str(number % 97)]
        rows.append({"text": " ".join(words), "target": 2 * is_good + 4 * np.log(n_words / 4) / np.log(10)})
    recipe = tiny_recipe(tiny_bert, write_jsonl(tmp_path / "rows.jsonl", rows), "grading").override(
        "task.low=0",
        "task.high=7",
        "task.pooling=mean",
        'task.surface=["length"]',
        "training.epochs=8",
        "training.eval_every=8",
    )
    kept, taken = train(recipe), train(recipe.override("task.length=remove"))
    before, after = (run.results()["splits"]["test"] for run in (kept, taken))
    assert before["metrics"]["length_pearson"]["value"] > 0.7
    assert abs(after["metrics"]["length_pearson"]["value"]) < 0.25
    assert after["metrics"]["reference_length_pearson"] == before["metrics"]["reference_length_pearson"]
    assert "with_length" not in before
    for name in ("length_pearson", "pearson", "rmse"):
        assert after["with_length"][name]["value"] == pytest.approx(before["metrics"][name]["value"], abs=0.02)
    assert "Length has been taken out" in taken.report_file.read_text()
    medium, long = Predictor.load(taken)(["good " + "the film is very " * n for n in (3, 7)])
    usual, longer = Predictor.load(kept)(["good " + "the film is very " * n for n in (3, 7)])
    assert long.scores["score"] - medium.scores["score"] < longer.scores["score"] - usual.scores["score"] - 0.5
