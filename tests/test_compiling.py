"""Compiled training steps: the same training, told, and never where they would not work."""

from pathlib import Path

import pytest
import torch
from conftest import recipe_file, tiny_recipe, tl_nlp
from interruptions import assert_same, killed_beyond
from torch._dynamo.utils import counters

from tl_nlp import Predictor, Run, train
from tl_nlp.errors import RecipeError

ALWAYS = "training.compute.compile=always"


def losses(run: Run) -> list[float]:
    return [line["values"]["loss"] for line in run.history() if line["split"] == "train"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "bitfit", "lora", "adapter"])
def test_compiled_steps_compute_the_same(
    method: str, tiny_bert: Path, reviews: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe(tiny_bert, reviews).override(f"method={method}", "training.epochs=2")
    plain = train(recipe)
    assert "torch.compile" not in capsys.readouterr().err and "compiled" not in plain.environment()
    compiled = train(recipe.override(ALWAYS))
    told = capsys.readouterr().err
    assert "torch.compile took " in told and ": kept" in told and compiled.environment()["compiled"] is True
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-3)


@pytest.mark.slow
def test_a_compiled_training_goes_on_to_the_same_bytes(tiny_bert: Path, reviews: Path, tmp_path: Path) -> None:
    """With dropout."""
    recipe = tiny_recipe(tiny_bert, reviews).override(
        ALWAYS, "training.epochs=40", "training.dropout=0.1", "training.save_every=0.5"
    )
    run = Run.create(recipe, tmp_path / "killed")
    killed_beyond(run, 0)
    done = tl_nlp("train", str(run.folder))
    assert done.returncode == 0, done.stderr
    assert f"{run.folder} goes on from step " in done.stderr and "torch.compile took " in done.stderr
    assert_same(run, train(recipe))


@pytest.mark.slow
def test_without_a_compiler_that_is_told(tiny_bert: Path, reviews: Path, tmp_path: Path) -> None:
    file = recipe_file(tiny_recipe(tiny_bert, reviews), tmp_path)
    no_compiler = {"CXX": "/nowhere/g++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "kernels")}
    done = tl_nlp("train", str(file), ALWAYS, **no_compiler)
    assert done.returncode != 0 and not done.stdout
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("tl-nlp: ")]
    assert "torch.compile does not work here" in line and "training.compute.compile=never trains without" in line


def test_answers_are_not_compiled(tiny_bert: Path, reviews: Path) -> None:
    predictor = Predictor.load(train(tiny_recipe(tiny_bert, reviews)))
    predictor.model.base_model.compile(backend="eager", dynamic=True)
    torch._dynamo.reset()  # or what another test has compiled is found
    counters.clear()
    predictor(["the film is good"])
    assert not counters["stats"]["unique_graphs"]
    predictor.model(torch.tensor([[1, 2, 3]]))
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize(
    ("task", "overrides", "why"),
    [
        ("classification", ["method=gradual"], "method gradual lets others learn"),
        ("classification", ["method=head"], "nothing of what method head moves reads texts"),
        ("classification", ["method=lora", "checkpoint.load_in=int8"], "int8 weights"),
        ("classification", ["training.gradient_checkpointing=true"], "gradient_checkpointing"),
        ("classification", ["training.distillation.teacher=x", "training.distillation.hidden=1"], "looks inside"),
        ("summarization", [], "task summarization writes"),
    ],
)
def test_what_is_not_for_compiling_is_refused(
    task: str, overrides: list[str], why: str, tiny_bert: Path, reviews: Path
) -> None:
    recipe = tiny_recipe(tiny_bert, reviews, task).override(*overrides)
    with pytest.raises(RecipeError, match=rf"training\.compute\.compile: .*{why}"):
        recipe.override(ALWAYS)
