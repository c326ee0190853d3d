"""How long a training takes: said before and after, measured without a trace, and kept within a budget."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from conftest import Answer, artifact, recipe_file, review_rows, tiny_recipe, write_jsonl

from tl_nlp import Recipe, Run, train
from tl_nlp.budget import FEWEST, Outlook, within
from tl_nlp.cost import Costs, Estimate, spoken
from tl_nlp.errors import RecipeError
from tl_nlp.loop import fit
from tl_nlp.preparation import prepare
from tl_nlp.schedule import Plan
from tl_nlp.steps import Steps
from tl_nlp.training import steps_of
from tl_nlp.watching import Watched, costs_of


def made(recipe: Recipe, compared: int = 0) -> tuple[Steps, Callable[[], Costs]]:
    """The steps of a recipe, and the probe of them; baselines see so many rows."""
    prepared = prepare(recipe)
    steps, predictor = steps_of(prepared, Accelerator())
    watched = Watched.of(prepared, steps, predictor)
    return steps, lambda: costs_of(prepared, steps, predictor, watched, compared, 0.1)


def state(steps: Steps) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in steps.model.state_dict().items()}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(one[name].numpy().tobytes() == tensor.numpy().tobytes() for name, tensor in other.items())


@pytest.mark.parametrize(
    "choices",
    [
        ["training.mixout=0.1", "training.ema=0.9"],
        ["method=head", "training.epochs=3"],
        ["method=gradual", "method.head_epochs=1", "training.epochs=2"],
        ["method=lora", "training.r_drop=1"],
    ],
)
def test_a_probe_leaves_no_trace(choices: list[str], reviews: Path, tiny_bert: Path) -> None:
    recipe = tiny_recipe(tiny_bert, reviews).override("training.dropout=0.1", *choices)
    (probed, probe), (unprobed, _) = made(recipe), made(recipe)
    before, chance, was_training = state(probed), torch.get_rng_state(), probed.model.training
    probe()
    assert_equal(state(probed), before)
    assert torch.equal(torch.get_rng_state(), chance) and not probed.optimizer.state
    assert (probed.model.training, probed.device_batch_size) == (was_training, 16)
    assert all(weight.grad is None for weight in probed.model.parameters())
    losses = [[steps.take(step).loss for step in range(4)] for steps in (probed, unprobed)]
    assert losses[0] == losses[1]
    assert_equal(state(probed), state(unprobed))


def test_a_training_ends_in_the_same_bytes_without_a_probe(reviews: Path, tiny_bert: Path) -> None:
    recipe = tiny_recipe(tiny_bert, reviews).override("training.dropout=0.1")
    run = train(recipe)
    prepared = prepare(recipe)
    steps, _ = steps_of(prepared, Accelerator())
    fit(steps, lambda: {"accuracy": 0.5}, "accuracy", Run.create(recipe), prepared.rows["train"]["id"])
    assert_equal(artifact(run), {name: weight.detach() for name, weight in steps.weights.by_name.items()})


def test_the_time_is_said_before_and_after(
    reviews: Path, tiny_bert: Path, tmp_path: Path, command: Callable[..., Answer]
) -> None:
    file = recipe_file(tiny_recipe(tiny_bert, reviews), tmp_path)
    answer = command("train", file)
    assert answer.status == 0, answer.err
    lines = answer.err.splitlines()
    (before,) = [place for place, line in enumerate(lines) if line.startswith("this will take about ")]
    (after,) = [place for place, line in enumerate(lines) if line.startswith("it took ")]
    assert before < after and " s of training steps, " in lines[before] and " % " in lines[after]
    cost = Run.open(answer.out.splitlines()[-1]).results()["train"]["cost"]
    assert cost.keys() == {"estimated_seconds", "seconds"} and min(cost.values()) > 0


def test_an_estimate_grows_with_the_epochs_and_falls_with_the_steps(reviews: Path, tiny_bert: Path) -> None:
    recipe = tiny_recipe(tiny_bert, reviews).override("training.epochs=2")
    steps, probe = made(recipe)
    costs, n_rows = probe(), len(steps.lengths)
    once, twice = costs.of(steps.plan), costs.of(Plan.of(recipe.override("training.epochs=4"), n_rows))
    assert min(once.training, once.evaluation, once.rest) > 0
    assert twice.training == pytest.approx(2 * once.training)
    assert twice.evaluation - once.evaluation == pytest.approx(2 * costs.evaluation)
    assert once.training / 2 == pytest.approx(costs.of(steps.plan, steps.plan.steps // 2).training)
    done = costs.of(steps.plan, steps.plan.steps)
    assert done.training == 0 and done.evaluation == costs.answers > 0


def test_rows_that_baselines_see_are_counted(reviews: Path, tiny_bert: Path) -> None:
    recipe = tiny_recipe(tiny_bert, reviews)
    (few, of_few), (many, of_many) = (made(recipe, compared) for compared in (0, 100_000))
    assert of_many().of(many.plan).rest > of_few().of(few.plan).rest + 10


def test_stages_are_timed_apart(
    reviews: Path, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TL_NLP_CACHE", str(tmp_path))  # other tests may have left the states there
    recipe = tiny_recipe(tiny_bert, reviews).override("training.epochs=6", "method.head_epochs=2.5")
    steps, probe = made(recipe)
    costs, *others = (probe() for _ in range(3))
    per_epoch = steps.plan.steps_per_epoch
    alone, on_tokens, whole = costs.stages(steps.plan)
    assert [stage.on_states for stage in (alone, on_tokens, whole)] == [True, False, False]
    assert [len(stage.steps) for stage in (alone, on_tokens)] == [2 * per_epoch, per_epoch / 2]
    assert alone.n_learning == on_tokens.n_learning < whole.n_learning
    of_alone, of_whole = (
        min(each.steps[key] for each in (costs, *others))
        for key in ((alone.n_learning, True), (whole.n_learning, False))
    )
    assert of_alone < of_whole
    assert costs.features["train"] > 0


def test_what_lower_blocks_read_once_is_counted_once(
    reviews: Path, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TL_NLP_CACHE", str(tmp_path))
    recipe = tiny_recipe(tiny_bert, reviews).override(
        "method=top_layers", "method.n_blocks=1", "method.head_epochs=0", "training.epochs=2"
    )
    steps, probe = made(recipe)
    costs, n_rows = probe(), len(steps.lengths)
    assert min(costs.below.values()) > 0 and max(costs.features.values()) == 0
    once, twice = costs.of(steps.plan), costs.of(Plan.of(recipe.override("training.epochs=4"), n_rows))
    assert 2 * once.training - twice.training == pytest.approx(sum(costs.below.values()))
    train(recipe)
    assert max(made(recipe)[1]().below.values()) == 0


def test_writing_is_timed_as_it_is_done(reviews: Path, tiny_t5: Path, tmp_path: Path) -> None:
    rows = [{**row, "target": " ".join(row["text"].split()[:3])} for row in review_rows(60)]
    recipe = tiny_recipe(tiny_t5, write_jsonl(tmp_path / "rows.jsonl", rows), "summarization")
    short, long = (made(recipe.override(f"task.max_new_tokens={n}", f"task.min_new_tokens={n}"))[1]() for n in (2, 40))
    assert long.evaluation > 2 * short.evaluation and long.answers > 2 * short.answers


def test_a_run_that_goes_on_estimates_what_is_left(reviews: Path, tiny_bert: Path) -> None:
    recipe = tiny_recipe(tiny_bert, reviews).override("training.epochs=40")
    steps, probe = made(recipe)
    costs, plan = probe(), steps.plan
    left = [costs.of(plan, start).total for start in range(0, plan.steps + 1, plan.steps_per_epoch)]
    assert left == sorted(left, reverse=True) and len(set(left)) == len(left)


@pytest.mark.parametrize(
    ("seconds", "words"), [(1.26, "1.3 s"), (42.4, "42 s"), (150, "2 min 30 s"), (2400, "40 min"), (9000, "2 h 30 min")]
)
def test_times_are_said_as_people_do(seconds: float, words: str) -> None:
    assert spoken(seconds) == words


def test_how_far_off_an_estimate_was() -> None:
    estimate = Estimate(30, 15, 5)
    assert estimate.against(60) == "it took 60 s, 20 % more than was estimated, which was 50 s"
    assert estimate.against(40).startswith("it took 40 s, 20 % less than ")


# ---- budgets


def test_what_fits_is_left_as_it_is(reviews: Path, tiny_bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tiny_recipe(tiny_bert, reviews)
    assert within(recipe, 3600) == recipe
    assert "--budget: the recipe fits as it is: about " in capsys.readouterr().err


def test_a_budget_lowers_the_epochs_and_the_run_shows_it(
    reviews: Path, tiny_bert: Path, tmp_path: Path, command: Callable[..., Answer]
) -> None:
    recipe = tiny_recipe(tiny_bert, reviews).override(
        "training.epochs=20000", "training.patience=1", "training.lr=1e-9"
    )
    answer = command("train", recipe_file(recipe, tmp_path), "--budget", "1m")
    assert answer.status == 0, answer.err
    kept = Run.open(answer.out.splitlines()[-1]).recipe()
    assert 1 <= kept.training.epochs < 20000
    assert f"so it is trained with training.epochs={kept.training.epochs:g}, in about " in answer.err
    changed = recipe.override(f"training.epochs={kept.training.epochs}")
    assert (kept.training, kept.method, kept.data) == (changed.training, changed.method, changed.data)


def test_where_one_epoch_is_too_long_the_head_learns_alone(reviews: Path, tiny_bert: Path) -> None:
    stubborn = ["method.head_epochs=20000", "training.epochs=20001", "training.first_lr=1e-2", "training.l2_sp=0.1"]
    fitted = within(tiny_recipe(tiny_bert, reviews).override(*stubborn), 15)
    assert (fitted.method.kind, fitted.training.epochs, fitted.training.lr) == ("head", 20, 5e-3)
    assert (fitted.training.first_lr, fitted.training.l2_sp, fitted.data.train_rows) == (None, 0, None)


def test_where_nothing_else_helps_fewer_rows_are_learned_from(tiny_bert: Path, tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", review_rows(3000))
    recipe = tiny_recipe(tiny_bert, rows).override(
        "method=head", "data.validation_share=0.02", "data.test_share=0.02", "data.similarity=1"
    )
    started = time.perf_counter()
    prepared = prepare(recipe)
    preparing = time.perf_counter() - started
    outlook = Outlook.of(prepared, recipe, Accelerator(), preparing)
    most, least = (outlook.seconds(recipe, n_rows) for n_rows in (outlook.n_rows, FEWEST))
    fitted = within(recipe, time.perf_counter() - started + (most + least) / 2 / 0.9)
    n_rows = fitted.data.train_rows
    assert n_rows is not None and FEWEST <= n_rows < outlook.n_rows
    assert fitted == recipe.override(f"data.train_rows={n_rows}")


def test_what_no_rows_fit_into_is_refused(reviews: Path, tiny_bert: Path) -> None:
    recipe = tiny_recipe(tiny_bert, reviews)
    told = r"--budget: 0.5 s are too few even for \d+ of \d+ training rows, which take about \d"
    with pytest.raises(RecipeError, match=told):
        within(recipe, 0.5)
    with pytest.raises(RecipeError, match=r"training.scratch: trains a second model, which --budget does not foresee"):
        within(recipe.override("training.scratch=true"), 3600)


def test_budgets_that_are_none_are_refused(
    reviews: Path, tiny_bert: Path, tmp_path: Path, command: Callable[..., Answer]
) -> None:
    file = recipe_file(tiny_recipe(tiny_bert, reviews), tmp_path)
    run = Run.create(tiny_recipe(tiny_bert, reviews))
    cases: list[tuple[Any, str, str]] = [
        (file, text, "a time is hours, minutes and seconds, as in 90s, 5m or 1h30m")
        for text in ("5", "5x", "1h30", "five", "m", "1.5h", "")
    ]
    cases += [
        (file, text, "loading, checks and scores alone take longer; give it 10s") for text in ("3s", "0m", "0h9s")
    ]
    cases += [(run.folder, "5m", "a run goes on with the recipe it began with")]
    for target, text, message in cases:
        answer = command("train", target, "--budget", text)
        assert (answer.status, answer.out) == (2, ""), text
        assert message in answer.err.splitlines()[-1] and "Traceback" not in answer.err
