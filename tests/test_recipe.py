"""Recipes: overrides, kinds found by file name, and messages that say what there is instead."""

from pathlib import Path

import pytest
from conftest import MINILM, ROOT, tiny_recipe

from tl_nlp import Recipe, load_recipe
from tl_nlp.components import find_kind, kinds
from tl_nlp.errors import RecipeError
from tl_nlp.methods.full import Full


@pytest.fixture
def recipe() -> Recipe:
    return tiny_recipe(Path("x"), Path("rows.csv"))


def test_a_kind_is_the_class_named_as_its_file() -> None:
    for axis in ("tasks", "data", "methods"):
        assert kinds(axis)
        for kind in kinds(axis):
            assert find_kind(axis, kind).__name__.lower() == kind.replace("_", "")


def test_a_recipe_survives_its_json(recipe: Recipe) -> None:
    assert Recipe(**recipe.model_dump(mode="json")) == recipe
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_overrides_apply_in_order_and_parse_by_the_fields_type(recipe: Recipe) -> None:
    changed = recipe.override(
        "method=lora", "method.rank=4", "training.lr=1e-5", 'task.labels=["a", "b"]', "training.max_grad_norm=null"
    )
    assert (changed.method.kind, changed.method.rank) == ("lora", 4)
    assert (changed.training.lr, changed.training.max_grad_norm) == (1e-5, None)
    assert changed.task.labels == ("a", "b")
    assert recipe.method == Full()
    assert changed.override("method=lora").method.rank == 8


def test_a_checkpoint_is_replaced_by_its_name(recipe: Recipe) -> None:
    pinned = recipe.model_copy(update={"checkpoint": MINILM})
    assert pinned.override("checkpoint=./mine").checkpoint.revision is None


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("method=lorra", "method: no 'lorra' in tl_nlp.methods; there are: adapter, bitfit, full, gradual, head"),
        ("training.lrr=1", "training.lrr: no such key; there are: epochs"),
        ("method.rank=4", "method.rank: no such key"),
        ("training.epochs=many", "training.epochs: 'many' does not fit"),
        ("training.precision=half", "training.precision: 'half' does not fit"),
        ("training.lr.x=1", "training.lr.x: 'lr' holds no keys"),
        ("training.lr", "is not KEY=VALUE"),
        ("task.labels=[a", "begins like JSON and is none"),
        ("task.labels=a,b", "a list is written as JSON"),
        ("data=hub", "data.name: is required"),
        ("nosuch=1", "nosuch: no such key; there are: name, checkpoint, data"),
        (
            "checkpoint.load_in=int8",
            "checkpoint.load_in: method full works on float32, and int8 is for weights that stay as they",
        ),
        ('data.columns={"low": "min"}', "data.columns: task classification reads no column 'low'"),
        ("data.train=other.csv", "data.path: it is one file to be split here; data.path=null where"),
    ],
)
def test_what_cannot_be_chosen_is_answered_with_what_can(recipe: Recipe, assignment: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe.override(assignment)
    assert message in str(caught.value)


def test_a_component_from_elsewhere_is_refused(recipe: Recipe) -> None:
    class Foreign(Full):
        pass

    with pytest.raises(RecipeError, match=r"none of tl_nlp\.methods"):
        tiny_recipe(Path("x"), Path("rows.csv"), method=Foreign())


def test_recipes_load_by_name_and_by_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    assert load_recipe("sentiment") == load_recipe(ROOT / "recipes" / "sentiment.py")
    with pytest.raises(RecipeError, match="no recipe 'sentimant'; there are: "):
        load_recipe("sentimant")
    empty = tmp_path / "empty.py"
    empty.write_text("x = 1")
    with pytest.raises(RecipeError, match="defines no `recipe`"):
        load_recipe(empty)
    empty.write_text("1 / 0")
    with pytest.raises(RecipeError, match="cannot be run: ZeroDivisionError"):
        load_recipe(empty)
