"""Grading: scales of groups, people's grades, cuts between grades, and the losses a recipe can choose."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FILLER, GOOD, Answer, tiny_recipe, write_jsonl
from datasets import Dataset, DatasetDict
from sklearn.metrics import cohen_kappa_score
from torch.nn import functional

from tl_nlp import Predictor, Run, metrics, train
from tl_nlp.errors import DataError, RecipeError
from tl_nlp.evaluation import read_predictions
from tl_nlp.grades import at, fit_cuts, fit_errors, most_error
from tl_nlp.heads import Ordinal, Regress
from tl_nlp.objective import Objective
from tl_nlp.tasks.grading import Grading
from tl_nlp.types import Scores


def graded_rows(n: int = 160) -> list[dict]:
    """Two prompts with scales of their own and two raters; a grade is told by how often `good` is said."""
    draw = np.random.default_rng(1)
    rows = []
    for number in range(n):
        prompt, high = (("p", 3), ("q", 10))[number % 2]
        share = draw.integers(0, 4) / 3
        words = draw.permutation(["good"] * round(6 * share) + ["dull"] * (6 - round(6 * share))).tolist()
        grade = round(share * high)
        people = [int(np.clip(grade + draw.integers(-1, 2), 0, high)) for _ in range(2)]
        text = " ".join(["the film", *words, str(number % 97)])
        rows.append(
            {"text": text, "group": prompt, "target": grade, "low": 0, "high": high}
            | dict(zip(("rater1", "rater2"), people, strict=True))
        )
    return rows


@pytest.fixture(scope="module")
def essays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("grading") / "essays.jsonl", graded_rows())


def test_a_scale_for_each_group() -> None:
    task = Grading(scales={"p": (0, 3), "q": (1, 11)})
    rows = {"id": ["a", "b"], "text": ["x", "y"], "target": ["3", "6"], "group": ["p", "q"]}
    assert task.labels_of(rows) == [[1.0], [0.5]]
    one, other = task.decode([np.array([0.4]), np.array([0.4])], rows, None)
    assert (one, other) == (
        Scores({"score": pytest.approx(1.2)}, {"score": 1}),
        Scores({"score": 5.0}, {"score": 5}),
    )
    assert task.faults({**rows, "group": ["p", "r"]}) == {1: "its group 'r' has no scale; task.scales has: p, q"}
    assert Grading(scales={"p": (0, 3), "": (0, 6)}).labels_of({**rows, "target": ["3", "3"]}) == [[1.0], [0.5]]
    assert Grading(low=0, high=6, scales={"p": (0, 3)}).labels_of({**rows, "target": ["3", "3"]}) == [[0.5], [0.5]]
    with pytest.raises(RecipeError, match=r"scales: the scale of 'p' ends at 3, not above its low 3"):
        Grading(scales={"p": (3, 3)})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"target": 4}, "the grade 4 is outside the scale 0 to 3"),
        ({"target": "B"}, "the grade 'B' is no number"),
        ({"target": None}, "it has no grade"),
        ({"high": None}, "its scale is 0 to None"),
        ({"rater2": "two"}, "the grades of its raters, .*, are not all numbers"),
        ({"text": "  "}, "the text is empty"),
    ],
)
def test_a_row_that_cannot_be_graded_is_counted(tiny_bert: Path, tmp_path: Path, change: dict, reason: str) -> None:
    rows = graded_rows(200)
    rows[8] |= change
    if "rater2" in change:
        rows = [{**row, "rater2": str(row["rater2"])} for row in rows]
    recipe = tiny_recipe(tiny_bert, write_jsonl(tmp_path / "rows.jsonl", rows), "grading").override("data.rows=120")
    run = train(recipe)
    (reject,) = [json.loads(line) for line in (run.folder / "rejects.jsonl").read_text().splitlines()]
    assert np.char.find(reject["reason"], reason.split(".*")[0]) >= 0
    assert "9" in reject["place"]  # its line


def test_scales_of_rows_are_written_down_for_texts_without_rows(
    tiny_bert: Path, essays: Path, command: Callable[..., Answer]
) -> None:
    run = train(tiny_recipe(tiny_bert, essays, "grading"))
    assert run.recipe().task.scales == {"p": (0, 3), "q": (0, 10)}
    for group, high in (("p", 3), ("q", 10)):
        answer = command("predict", run.folder, "the film was good", "--group", group)
        assert 0 <= json.loads(answer.out)["scores"]["score"] <= high
    assert "its group '' has no scale; task.scales has: p, q" in command("predict", run.folder, "a film").err
    row = {"text": "x", "target": 1, "low": 0, "high": 4}
    one = Dataset.from_list([{**row, "id": name, "group": name} for name in "pq"])
    several = Dataset.from_list([{**row, "id": str(high), "high": high, "group": "p"} for high in (4, 5)])
    assert Grading().resolve(DatasetDict(train=one)).scales == {"": (0, 4)}
    assert Grading().resolve(DatasetDict(train=one, test=several)).scales == {}


def test_essays_without_end_are_read_in_windows_and_the_cut_is_told(tiny_bert: Path, tmp_path: Path) -> None:
    rows = graded_rows(60)
    rows[0]["text"] = "good film " * 10_000
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    run = train(tiny_recipe(tiny_bert, path, {"kind": "grading", "max_length": 64, "max_windows": 2}))
    assert sum(run.data()["tokens_cut"].values()) > 19_000
    assert "cut" in {finding["name"] for finding in run.data()["findings"]}


def test_a_constant_grade_is_an_error_of_the_data(tiny_bert: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{**row, "target": 2} for row in graded_rows(60)])
    findings = train(tiny_recipe(tiny_bert, path, "grading")).data()["findings"]
    assert "one_class" in {finding["name"] for finding in findings}


def test_a_trait_that_the_data_has_not_is_named(tiny_bert: Path, essays: Path) -> None:
    task = {"kind": "grading", "traits": ["style"], "max_length": 64}
    with pytest.raises(DataError, match="no trait 'style' in its target; there are: "):
        train(tiny_recipe(tiny_bert, essays, {**task, "traits": ["score", "style"]}))


# ---- what people agree on


def test_agreement_of_people_and_what_is_left_of_errors_without_theirs(draw: np.random.Generator) -> None:
    n = 400
    true = draw.normal(3, 1, n)
    people = true[:, None] + draw.normal(0, 0.6, (n, 2))
    given = true + draw.normal(0, 0.5, n)
    # by hand, as in section 3 of the paper
    noise = np.mean((people[:, 0] - people[:, 1]) ** 2) / 2
    own = people.mean(axis=1)
    error = np.mean((own - given) ** 2) - noise / 2
    expected = 1 - error / (own.var(ddof=1) - noise / 2)
    found = metrics.prmse(people, given)
    assert found == pytest.approx(expected)
    assert found == pytest.approx(1 - 0.25 / 1, abs=0.08)  # the truth
    r, p = np.array([1, 2, 3, 4.0]), np.array([1, 3, 3, 2.0])
    assert metrics.agreement(r, p) == 0.5
    assert metrics.agreement(r, p, 1) == 0.75
    assert metrics.smd(r, p) == pytest.approx((p.mean() - r.mean()) / r.std())
    assert metrics.smd(np.ones(3), np.arange(3.0)) == 0


def test_scores_beside_two_raters(essays: Path) -> None:
    rows = graded_rows(100)
    columns = {name: [row[name] for row in rows] for name in rows[0]} | {"id": [str(n) for n in range(100)]}
    columns["rater2"][5] = None  # one of them missing: the row counts for the model alone
    task = Grading()
    made = task.decode([np.array([row["target"] / row["high"]]) for row in rows], columns, None)
    scores = task.score(made, columns)
    assert (scores["qwk"], scores["exact_agreement"], scores["smd"]) == (1, 1, 0)
    both = [n for n in range(100) if n != 5]
    kappas = [
        cohen_kappa_score(
            *([columns[rater][n] for n in both if columns["group"][n] == group] for rater in ("rater1", "rater2")),
            labels=range(11),
            weights="quadratic",
        )
        for group in ("p", "q")
    ]
    assert scores["human_qwk"] == pytest.approx(np.mean(kappas))
    assert 0.5 < scores["human_adjacent_agreement"] <= 1
    assert scores["prmse"] > 0.9
    assert "human_qwk" not in task.score(made, {name: columns[name] for name in columns if name != "rater2"})


# ---- cuts


def test_differences_between_groups_and_raters_who_gave_nothing(tiny_bert: Path, tmp_path: Path) -> None:
    rows = [{**row, "rater2": None} if n % 4 == 0 else row for n, row in enumerate(graded_rows(320))]
    run = train(tiny_recipe(tiny_bert, write_jsonl(tmp_path / "rows.jsonl", rows), "grading"))
    test = run.results()["splits"]["test"]
    assert sum(test["raters"].values()) == test["rows"]
    assert 0 < test["raters"]["one"] < test["raters"]["two"] and test["raters"]["none"] == 0
    assert {one["name"]: one["metric"] for one in test["groups"]} == {"p": "smd", "q": "smd"}
    assert all(one["low"] <= one["value"] <= one["high"] and one["rows"] >= 20 for one in test["groups"])
    predictions, truth = read_predictions(run.predictions_file("test"), run.recipe().task)
    mine = [n for n, group in enumerate(truth["group"]) if group == "q"]
    gap = np.asarray([predictions[n].scores["score"] - float(truth["target"][n]) for n in mine])
    spread = np.std([float(truth["target"][n]) for n in mine])
    told = next(one["value"] for one in test["groups"] if one["name"] == "q")
    assert told == pytest.approx(gap.mean() / spread, abs=1e-3)
    report = run.report_file.read_text()
    assert "Differences between groups" in report and "were graded by two people" in report


def test_cuts_undo_what_least_squares_does_to_the_spread(draw: np.random.Generator) -> None:
    truth = draw.integers(0, 5, 600).astype(float)
    drawn_in = 2 + 0.5 * (truth - 2) + draw.normal(0, 0.25, 600)
    cuts = fit_cuts(truth, drawn_in, 5)
    assert np.all(np.diff(cuts) > 0)
    grades, nearest = np.searchsorted(cuts, drawn_in), np.rint(drawn_in)
    kappas = [cohen_kappa_score(truth, np.clip(one, 0, 4), weights="quadratic") for one in (grades, nearest)]
    assert kappas[0] > kappas[1] + 0.1
    assert fit_cuts(truth, truth, 5).tolist() == [0.5, 1.5, 2.5, 3.5]


def test_cuts_are_fitted_on_validation_and_kept_in_the_artifact(tiny_bert: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", graded_rows(500))
    recipe = tiny_recipe(tiny_bert, path, "grading").override("training.epochs=2")
    run = train(recipe)
    task = run.trained_recipe().task
    assert {group: len(cuts) for group, cuts in task.cuts["score"].items()} == {"p": 3, "q": 10}
    assert run.recipe().task.cuts == {}
    scores = Predictor.load(run)(["the film good good dull"], low=[0], high=[3], group=["p"])[0]
    steps = sum(cut <= scores.scores["score"] for cut in task.cuts["score"]["p"])
    assert scores.grades == {"score": steps}
    plain = train(recipe.override("task.rounding=nearest"))
    assert plain.trained_recipe().task.cuts == {}
    by_id = Run.open(plain.folder).results()["splits"]["test"]["metrics"]
    assert by_id["rmse"] == run.results()["splits"]["test"]["metrics"]["rmse"]  # grades are cut otherwise, not scores


# ---- losses


def batch_of(labels: list[list[float]]) -> dict[str, Any]:
    return {"labels": torch.tensor(labels), "n_rows": len(labels)}


def test_huber_is_squared_near_and_straight_far() -> None:
    logits, batch = torch.tensor([[0.05], [0.9]]), batch_of([[0.0], [0.0]])
    (near, count), (squared, _) = (
        Regress(loss=name).loss(logits[:1], batch_of([[0.0]]), Objective()) for name in ("huber", "squared")
    )
    assert float(near) == pytest.approx(float(squared))
    assert int(count) == 1
    far, _ = Regress(loss="huber").loss(logits, batch, Objective())
    assert float(far - near) == pytest.approx(2 * 0.1 * (0.9 - 0.05))


def test_ordinal_asks_each_level_of_those_above_the_one_before(draw: np.random.Generator) -> None:
    """CORN by its definition, row by row."""
    labels = [[0.0, 1.0], [2 / 3, float("nan")], [1.0, 1 / 3]]
    logits = torch.from_numpy(draw.normal(size=(3, 6))).float()
    expected, n_known = 0.0, 0
    for row, line in enumerate(labels):
        for trait, share in enumerate(line):
            if np.isnan(share):
                continue
            n_known += 1
            level = round(share * 3)
            for step in range(3):
                if level >= step:
                    logit = logits[row, trait * 3 + step]
                    expected += float(functional.softplus(-logit if level > step else logit))
    loss, count = Ordinal(n_levels=4).loss(logits, batch_of(labels), Objective())
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert int(count) == n_known
    sure = torch.tensor([[9.0, 9, -9, -9, 9, 9], [9.0, 9, 9, -9, -9, -9]])
    assert Ordinal(n_levels=4).shares(sure).tolist() == [
        pytest.approx([2 / 3, 0], abs=1e-3),
        pytest.approx([1, 0], abs=1e-3),
    ]


def test_ranking_is_nothing_where_the_order_is_right_and_grows_with_what_is_wrong() -> None:
    labels = batch_of([[0.0], [0.5], [1.0]])

    def of(scores: list[float]) -> float:
        logits = torch.tensor(scores).unsqueeze(1)
        return float(
            Regress().loss(logits, labels, Objective(ranking=1.0))[0] - Regress().loss(logits, labels, Objective())[0]
        )

    assert of([0.0, 0.5, 1.0]) == pytest.approx(0, abs=1e-5)
    assert of([0.3, 0.8, 1.3]) == pytest.approx(0, abs=1e-5)  # a shift changes no order
    assert 0 < of([0.0, 0.9, 1.0]) < of([0.5, 0.5, 0.5]) < of([1.0, 0.5, 0.0])


def test_ranking_wants_the_rows_of_a_step_in_one_pass(tiny_bert: Path, essays: Path) -> None:
    recipe = tiny_recipe(tiny_bert, essays, "grading")
    with pytest.raises(RecipeError, match=r"training\.ranking: orders the rows of a step, which must be in one pass"):
        recipe.override("training.ranking=1", "training.device_batch_size=4")
    with pytest.raises(RecipeError, match=r"training\.ranking: is for grading and not for task classification"):
        tiny_recipe(tiny_bert, essays).override("training.ranking=1")
    with pytest.raises(RecipeError, match=r"levels: goes with task\.loss=ordinal"):
        Grading(levels=3)


@pytest.mark.parametrize("choices", [("task.loss=huber",), ("task.loss=ordinal",), ("training.ranking=0.1",)])
def test_every_loss_learns_grades_and_is_read_back(tiny_bert: Path, essays: Path, choices: tuple[str, ...]) -> None:
    recipe = tiny_recipe(tiny_bert, essays, "grading").override("training.epochs=12", "task.pooling=mean", *choices)
    run = train(recipe)
    assert run.results()["splits"]["test"]["metrics"]["qwk"]["value"] > 0.6
    if "task.loss=ordinal" in choices:
        assert run.recipe().task.levels == 11  # the steps of the longer scale
        assert len(run.recipe().task.outputs()) == 10
        assert "products of the sigmoids" in (run.model_dir / "README.md").read_text()
    row = graded_rows(1)[0]
    (again,) = Predictor.load(run)([row["text"]], low=[0], high=[3], group=["p"])
    assert 0 <= again.scores["score"] <= 3


# ---- how far scores may be off, and what a teacher reads


def test_margins_are_wide_where_scores_miss_and_narrow_where_they_do_not(draw: np.random.Generator) -> None:
    shares = draw.random(2000)
    missed = draw.normal(0, np.where(shares < 0.5, 0.02, 0.2))
    knots = fit_errors(shares, missed)
    assert at(knots, 0.2) == pytest.approx(0.02, rel=0.3)
    assert at(knots, 0.8) == pytest.approx(0.2, rel=0.3)
    assert at(knots, -1) == at(knots, 0)


def test_what_no_teacher_reads_agrees_as_well_as_is_asked(draw: np.random.Generator) -> None:
    truth = draw.integers(0, 5, 400).astype(float)
    errors = draw.random(400)
    grades = np.clip(truth + draw.normal(0, 2.5 * errors).round(), 0, 4)
    groups = ["p"] * 400
    whole = cohen_kappa_score(truth, grades, weights="quadratic")
    most = most_error(truth, grades, groups, errors, 0.9)
    taken = errors <= most
    assert whole < 0.8 and 0.1 < taken.mean() < 0.9
    assert cohen_kappa_score(truth[taken], grades[taken], weights="quadratic") >= 0.9
    assert most_error(truth, grades, groups, errors, 0.1) == errors.max()
    assert most_error(truth, 4 - truth, groups, errors, 0.9) == 0


def test_the_report_says_what_no_teacher_need_read(draw: np.random.Generator, tiny_bert: Path, tmp_path: Path) -> None:
    rows = graded_rows(600)
    for row in rows[::3]:  # a teacher who is not always of one mind
        row["target"] = int(np.clip(row["target"] + draw.integers(-2, 3), 0, row["high"]))
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    recipe = tiny_recipe(tiny_bert, path, "grading").override("training.epochs=8", "task.pooling=mean")
    run = train(recipe)
    task = run.trained_recipe().task
    work = run.results()["splits"]["test"]["work"]
    raters = run.results()["splits"]["test"]["metrics"]["human_qwk"]["value"]
    assert task.agreement == pytest.approx(raters, abs=0.1)  # two raters' own, on validation
    made = Predictor.load(run).predict(recipe.data.load()["test"])
    assert work["share"] == pytest.approx(np.mean([not one.unsure for one in made]))
    assert [point["share"] for point in work["curve"]][-1] == 1
    assert work["curve"][-1]["value"] == run.results()["splits"]["test"]["metrics"]["qwk"]["value"]
    assert "What a teacher need not read" in run.report_file.read_text("utf-8")
    margins = np.asarray([one.margins["score"] for one in made])
    off = np.abs(
        np.asarray([one.scores["score"] for one in made]) - np.asarray(recipe.data.load()["test"]["target"], float)
    )
    assert 0.85 <= np.mean(off <= margins) <= 1
    strict = train(recipe.override("task.agreement=1.0")).results()["splits"]["test"]["work"]
    assert strict["share"] < work["share"] or strict["share"] == 0


def answered_rows(n: int = 200) -> list[dict]:
    """Each answer has some of the six words of its reference; the grade is how many."""
    draw = np.random.default_rng(3)
    words = [*FILLER, *GOOD]
    rows = []
    for number in range(n):
        reference, others = np.split(draw.permutation(words), [6])
        n_right = int(draw.integers(0, 7))
        answer = draw.permutation([*reference[:n_right], *others[: 6 - n_right]]).tolist()
        rows.append({"text": " ".join([*answer, str(number % 97)]), "pair": " ".join(reference), "target": n_right})
    return rows


@pytest.mark.parametrize(("method", "least", "apart_by"), [("head", 0.5, 0.5), ("full", 0.8, 2)])
def test_an_answer_read_apart_is_compared_with_its_reference(
    tiny_bert: Path, tmp_path: Path, method: str, least: float, apart_by: float
) -> None:
    """Which words a reference has is new in every row, so only the comparison can tell; states drawn at random, as they
    stay under `head`, are of a word's place as much as of the word."""
    recipe = tiny_recipe(tiny_bert, write_jsonl(tmp_path / "rows.jsonl", answered_rows()), "grading").override(
        "task.low=0", "task.high=6", "task.pooling=mean", f"method={method}", "training.epochs=40", "training.lr=1e-4",
        "training.head_lr=0.1", "data.similarity=1",
    )  # fmt: skip
    apart = train(recipe.override("task.reading=apart"))
    assert apart.results()["splits"]["test"]["metrics"]["pearson"]["value"] > least
    predictor = Predictor.load(apart)
    right, wrong = predictor(["good plot very fine"] * 2, ["very good fine plot", "some dull scenes more"])
    assert right.scores["score"] > wrong.scores["score"] + apart_by
    alone = predictor(["good plot very fine"], ["very good fine plot"])[0]
    assert alone.scores == pytest.approx(right.scores, abs=1e-4)
    with pytest.raises(DataError, match=r"row 0: it has no pair, and task.reading=apart compares the text with it"):
        predictor(["good plot very fine"])


@pytest.mark.parametrize("choices", [{}, {"pooling": "attention"}, {"pooling": "mean", "dropout": 0.1}])
def test_reading_apart_pools_nothing(choices: dict) -> None:
    with pytest.raises(RecipeError, match="reading: apart"):
        Grading(reading="apart", **choices)
