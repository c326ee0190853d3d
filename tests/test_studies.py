"""Runs of several: seeds, folds and learning curves; and what they say."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Answer, recipe_file, review_rows, tiny_recipe, write_jsonl

from tl_nlp import Predictor, Run, evaluate, train
from tl_nlp.errors import RecipeError, RunError
from tl_nlp.statistics import fit_power_law
from tl_nlp.studies import Growth, learning_curve


def test_seeds_give_a_mean_and_a_spread(tiny_bert: Path, reviews: Path, command: Callable[..., Answer]) -> None:
    run = train(tiny_recipe(tiny_bert, reviews).override("training.seeds=2", "training.seed=5"))
    parts = [Run.open(run.folder / "seeds" / seed) for seed in ("5", "6")]
    values = [part.results()["splits"]["test"]["metrics"]["accuracy"]["value"] for part in parts]
    seeds = run.results()["seeds"]
    assert seeds["splits"]["test"]["accuracy"] == {
        "mean": pytest.approx(np.mean(values)),
        "sd": pytest.approx(np.std(values, ddof=1)),
    }
    best = [
        max(line["values"]["accuracy"] for line in part.history() if line["split"] == "validation") for part in parts
    ]
    chosen = parts[int(np.argmax(best))]
    assert seeds["chosen"] == chosen.folder.name
    assert Predictor.load(run)(["a good film"]) == Predictor.load(chosen)(["a good film"])
    assert run.results()["splits"] == chosen.results()["splits"]
    assert "mean ± sd of 2 seeds" in command("train", run.folder).out


def test_seeds_go_on_where_they_stopped(tiny_bert: Path, reviews: Path) -> None:
    run = train(tiny_recipe(tiny_bert, reviews).override("training.seeds=2"))
    before = run.results()
    first = (run.folder / "seeds" / "0" / "results.json").stat().st_mtime_ns
    (run.folder / "results.json").unlink()
    (run.folder / "seeds" / "1" / "results.json").unlink()
    again = train(Run.open(run.folder)).results()
    assert again["splits"] == before["splits"]
    assert (run.folder / "seeds" / "0" / "results.json").stat().st_mtime_ns == first


def test_folds_answer_every_row_by_a_run_that_has_not_seen_it(tiny_bert: Path, tmp_path: Path) -> None:
    rows = [{**row, "author": f"a{n % 20}"} for n, row in enumerate(review_rows(90))]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    run = train(tiny_recipe(tiny_bert, path).override("data.folds=3", "data.keep_together=author"))
    results = run.results()
    assert results["splits"]["test"]["rows"] == 90
    assert results["folds"]["n"] == 3
    assert set(results["baselines"]) == {"majority", "tfidf", "frozen"}
    tested = []
    for fold in range(3):
        part = Run.open(run.folder / "folds" / str(fold))
        splits = part.recipe().data.load()
        tested += splits["test"]["id"][:]
        for one in ("train", "validation"):
            assert not set(splits[one]["keep_together"]) & set(splits["test"]["keep_together"])
    assert sorted(tested) == sorted(f"row-{n}" for n in range(1, 91))


def test_folds_and_seeds_are_studied_apart(
    tiny_bert: Path, reviews: Path, tmp_path: Path, command: Callable[..., Answer]
) -> None:
    path = recipe_file(tiny_recipe(tiny_bert, reviews), tmp_path)
    for words, message in {
        ("data.folds=3", "training.seeds=2"): "seeds and folds are studied one at a time",
        ("data.folds=3", "data.fold=3"): "there is no fold 3 of data.folds=3",
        ("data.fold=0",): "there is no fold 0 of data.folds=None",
        ("data.folds=3", "data.path=null", f"data.train={reviews}", f"data.test={reviews}"): "there are given splits",
    }.items():
        answer = command("train", path, *words)
        assert answer.status == 2
        assert message in answer.err


def test_the_same_architecture_from_random_weights_is_a_baseline(tiny_bert: Path, reviews: Path) -> None:
    run = train(tiny_recipe(tiny_bert, reviews).override("training.scratch=true", "method=lora"))
    assert set(run.results()["baselines"]) == {"majority", "tfidf", "frozen", "scratch"}
    scratch = run.scratch()
    assert (scratch.recipe().method.kind, scratch.recipe().checkpoint.random) == ("full", True)
    value = scratch.results()["splits"]["test"]["metrics"]["accuracy"]
    assert run.results()["baselines"]["scratch"]["accuracy"] == value
    with pytest.raises(RecipeError, match=r"checkpoint\.random: weights that are drawn must all learn"):
        tiny_recipe(tiny_bert, reviews).override("checkpoint.random=true", "method=lora")


def test_a_learning_curve_trains_on_nested_parts(
    tiny_bert: Path, reviews: Path, tmp_path: Path, command: Callable[..., Answer]
) -> None:
    answer = command("learning-curve", recipe_file(tiny_recipe(tiny_bert, reviews), tmp_path))
    assert answer.status == 0, answer.err
    *lines, told, folder = answer.out.splitlines()
    assert told.split(":")[0] in ("more rows help", "undecided whether more rows help")
    sizes = [int(line.split()[0]) for line in lines]
    assert sizes == [6, 11, 21, 42, 84, 168, 336]
    assert ["expected" in line for line in lines] == [False] * 5 + [True] * 2
    curve = json.loads((Path(folder) / "learning_curve.json").read_text())
    assert [point["rows"] for point in curve["points"]] == [6, 11, 21, 42, 84]
    assert (Path(folder) / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    texts = []
    for size in (6, 11, 84):
        part = Run.open(Path(folder) / "sizes" / str(size))
        texts.append(set(part.recipe().data.load()["train"]["text"]))
        assert part.data()["splits"]["train"]["rows"] == size
        assert part.data()["splits"]["test"]["rows"] == 18
    assert texts[0] < texts[1] < texts[2]
    (Path(folder) / "sizes" / "84" / "results.json").unlink()
    assert command("learning-curve", folder).out == answer.out


def test_a_power_law_is_found_again() -> None:
    n = np.asarray([50.0, 100, 200, 400, 800])
    values = 0.9 - 2.0 * n**-0.5
    points = [
        {"rows": rows, "value": value, "low": value - 0.01, "high": value + 0.01}
        for rows, value in zip(n, values, strict=True)
    ]
    law = fit_power_law(points, 1.0)
    assert law is not None
    assert law.fitted == pytest.approx((0.9, 2.0, 0.5), rel=0.03)
    more = law.at(3200)
    assert more["value"] == pytest.approx(0.9 - 2.0 * 3200**-0.5, abs=0.005)
    assert more["low"] < more["value"] < more["high"]
    assert fit_power_law(points[:3], 1.0) is None


def test_runs_are_compared_row_by_row(
    tiny_bert: Path, reviews: Path, tmp_path: Path, command: Callable[..., Answer]
) -> None:
    recipe = tiny_recipe(tiny_bert, reviews)
    good = train(recipe.override("training.epochs=6", "name=good"))
    poor = train(recipe.override("training.lr=1e-9", "name=poor"))
    answer = command("compare", good.folder, poor.folder, "--json")
    found = json.loads(answer.out)
    assert (found["metric"], found["rows"], len(found["runs"])) == ("accuracy", 18, 2)
    (gap,) = found["differences"]
    own = [one["accuracy"]["value"] for one in found["runs"]]
    assert gap["value"] == pytest.approx(own[0] - own[1])
    assert gap["test"] == "McNemar"
    assert command("compare", good.folder, poor.folder).out.count(str(poor.folder)) == 2
    other = train(recipe.override("data.seed=1", "name=other"))
    assert "was scored on other test rows" in command("compare", good.folder, other.folder).err
    assert command("compare", good.folder).status == 2


def test_no_predictions_no_comparison(tiny_bert: Path, reviews: Path) -> None:
    from tl_nlp.evaluation import compare

    run = train(tiny_recipe(tiny_bert, reviews))
    run.predictions_file("test").unlink()
    with pytest.raises(RunError, match="holds no predictions"):
        compare([run, run])


def test_a_law_promises_no_more_than_can_be_and_chance_is_no_growth() -> None:
    draw = np.random.default_rng(0)
    n = np.asarray([375.0, 750, 1500, 3000, 6000])

    def curve(values: np.ndarray) -> Growth:
        points = [
            {"rows": rows, "value": value, "low": value - 0.02, "high": value + 0.02}
            for rows, value in zip(n, values, strict=True)
        ]
        return Growth("accuracy", points, fit_power_law(points, 1.0))

    steep = curve(np.asarray([0.55, 0.65, 0.75, 0.84, 0.93]))
    assert steep.law is not None
    assert steep.law.at(1e9)["high"] <= 1.0
    assert steep.answer().startswith("more rows help: +")
    assert "half of the way to the law's ceiling" in curve(0.9 - 2.0 * n**-0.5).answer()
    flat = [curve(0.8 + 0.01 * draw.normal(size=5)).answer() for _ in range(40)]
    assert np.mean([answer.startswith("undecided whether more rows help") for answer in flat]) > 0.9


def test_a_run_of_folds_is_evaluated_on_the_fold_it_has_kept(tiny_bert: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_bert, write_jsonl(tmp_path / "rows.jsonl", review_rows(90)))
    for seed in range(4):
        run = train(recipe.override("data.folds=3", f"training.seed={seed}"))
        chosen = run.results()["folds"]["chosen"]
        part = Run.open(run.folder / "folds" / chosen)
        assert evaluate(run) == part.results()["splits"]["test"]
        if chosen != "0":
            return
    raise AssertionError("no seed keeps another fold than the first")


def test_a_learning_curve_has_no_scratch_runs(tiny_bert: Path, reviews: Path, tmp_path: Path) -> None:
    run, growth = learning_curve(tiny_recipe(tiny_bert, reviews).override("training.scratch=true"))
    assert len(growth.points) == 5
    assert json.loads((run.folder / "learning_curve.json").read_text())["answer"] == growth.answer()
