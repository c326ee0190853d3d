"""A run trained again from its own recipe."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Answer, review_rows, tiny_recipe, write_jsonl

from tl_nlp import Run, train
from tl_nlp.errors import RunError
from tl_nlp.reproduction import Pair, reproduce


@pytest.fixture(scope="module")
def run(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("reproduction")
    rows = write_jsonl(folder / "rows.jsonl", review_rows(120))
    recipe = tiny_recipe(tiny_bert, rows).override("training.epochs=2", "training.dropout=0.1")
    return train(recipe, root=folder / "runs")


def test_a_run_is_reproduced_bit_for_bit(run: Run, command: Callable[..., Answer]) -> None:
    answer = command("reproduce", run.folder)
    assert answer.status == 0, answer.err
    *lines, verdict, folder = answer.out.splitlines()
    assert verdict == "reproduced bit for bit: the weights are the same"
    assert lines[0].startswith("test  accuracy  ") and all(line.endswith("  equal") for line in lines)
    assert Run.open(folder).is_finished and Path(folder) != run.folder


def test_scores_that_do_not_come_out_are_told(run: Run, tmp_path: Path, command: Callable[..., Answer]) -> None:
    """Of a run whose results and weights are not its recipe's."""
    shutil.copytree(run.folder, tmp_path / "claimed")
    claimed = Run(tmp_path / "claimed")
    results = claimed.results()
    results["splits"]["test"]["metrics"]["accuracy"] = {"value": 2.0, "low": 1.9, "high": 2.1}
    claimed.write_results(results)
    recipe = json.loads((claimed.folder / "recipe.json").read_text())
    recipe["training"]["seed"] = 5
    (claimed.folder / "recipe.json").write_text(json.dumps(recipe))
    claimed.write_environment(claimed.environment() | {"n_processes": 2})
    answer = command("reproduce", claimed.folder)
    assert answer.status == 1
    assert "made differently: number of processes was 2 and is 1" in answer.out
    assert f"{claimed.folder} is not reproduced: accuracy on test was 2 [1.9, 2.1] and is " in answer.err


def test_scores_agree_where_each_is_in_the_others_interval() -> None:
    narrow, wide = {"value": 0.8, "low": 0.79, "high": 0.81}, {"value": 0.82, "low": 0.7, "high": 0.9}
    assert not Pair("test", "accuracy", narrow, wide).agrees
    assert Pair("test", "accuracy", narrow | {"high": 0.83}, wide).agrees
    assert Pair("test", "ece", {"value": 0.1}, {"value": 0.1}).agrees
    assert not Pair("test", "ece", {"value": 0.1}, {"value": 0.2}).agrees


def test_other_rows_cannot_be_compared(tiny_bert: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", review_rows(60))
    run = train(tiny_recipe(tiny_bert, path))
    write_jsonl(path, review_rows(60, seed=1))
    with pytest.raises(RunError, match=r"rows are not those .* was made with, so nothing can be compared"):
        reproduce(run)


def test_an_unfinished_run_cannot_be_reproduced(tiny_bert: Path, reviews: Path) -> None:
    with pytest.raises(RunError, match="is not finished"):
        reproduce(Run.create(tiny_recipe(tiny_bert, reviews)))
