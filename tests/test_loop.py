"""The loop: gradients that depend on the recipe alone, seeds that fix everything, and trainings that resume exactly."""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import artifact, recipe_file, review_rows, tiny_recipe, write_jsonl
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from tl_nlp import Recipe, Run, loop, train
from tl_nlp.batches import epoch_order, on_device, passes
from tl_nlp.errors import RecipeError, RunError
from tl_nlp.preparation import prepare
from tl_nlp.schedule import Plan
from tl_nlp.steps import Begun, Steps
from tl_nlp.training import steps_of


def first_gradient(run: Run) -> dict[str, torch.Tensor]:
    """The gradient of a training of one step: AdamW's first moment is a tenth of it."""
    (step,) = run.checkpoint_steps()
    moments = load_file(run.checkpoint_dir(step) / "optimizer.safetensors")
    return {name: tensor * 10 for name, tensor in moments.items() if name.endswith(".exp_avg")}


def one_step(checkpoint: Path, data: Path, task: object, *overrides: str) -> Recipe:
    recipe = tiny_recipe(checkpoint, data, task)
    return recipe.override("training.epochs=0.01", "training.max_grad_norm=null", "training.batch_size=24", *overrides)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("loop")
    rows = review_rows(60)
    for number, row in enumerate(rows):
        row["text"] = " ".join([row["text"]] * (1 + number % 5))  # some rows have several windows
    grades = [{**row, "target": {"a": n % 4, "b": None if n % 3 else n % 5}} for n, row in enumerate(rows)]
    tags = [{**row, "target": ["x", "y"][: n % 3]} for n, row in enumerate(rows)]
    summaries = [{**row, "target": " ".join(row["text"].split()[: 1 + n % 6])} for n, row in enumerate(rows)]
    sentences = [{**row, "text": row["text"].replace(" it", ".\nIt"), "target": "the film"} for row in rows]
    named = {"classify": rows, "regress": grades, "multilabel": tags, "generate": summaries, "select": sentences}
    return {head: write_jsonl(folder / f"{head}.jsonl", theirs) for head, theirs in named.items()}


TASKS = {
    "classify": {"kind": "classification", "max_length": 16},
    "multilabel": {"kind": "multilabel", "max_length": 16},
    "regress": {"kind": "grading", "max_length": 16, "traits": ["a", "b"]},
    "select": {"kind": "highlights", "max_length": 32},
    "generate": {"kind": "summarization", "max_length": 64, "max_new_tokens": 8},
}


@pytest.mark.parametrize("head", TASKS)
def test_a_step_does_not_depend_on_the_device_batch_size(
    head: str, data: dict[str, Path], tiny_bert: Path, tiny_t5: Path
) -> None:
    checkpoint = tiny_t5 if head == "generate" else tiny_bert
    sizes = ["device_batch_size=64", "device_batch_size=5", "device_batch_size=1", "compute.pass_scores=4000"]
    gradients = [
        first_gradient(train(one_step(checkpoint, data[head], TASKS[head], f"training.{size}"))) for size in sizes
    ]
    for other in gradients[1:]:
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=1e-6)
    assert sum(float(gradient.abs().sum()) for gradient in gradients[0].values()) > 0


@pytest.mark.parametrize(
    ("choices", "most"),
    [
        ([], 6 * 2**20),
        (["method=lora", "checkpoint.load_in=int8"], 6 * 2**20 // 8),
        (["training.compute.pass_scores=2000000"], 2_000_000),
        (["training.compute.attention=sdpa"], None),  # keeps no scores
        (["training.augmentation.mixup=0.5"], None),  # needs steps whole
    ],
)
def test_a_pass_on_a_cpu_has_so_many_attention_scores(
    choices: list[str], most: int | None, tiny_bert: Path, tmp_path: Path
) -> None:
    n_heads, n_tokens, rows = 2, 128, [{**row, "text": row["text"] * 40} for row in review_rows(420)]
    task = {"kind": "classification", "max_length": n_tokens, "max_windows": 1}
    recipe = tiny_recipe(tiny_bert, write_jsonl(tmp_path / "rows.jsonl", rows), task).override(
        "training.batch_size=256", "training.device_batch_size=256", *choices
    )
    steps, _ = steps_of(prepare(recipe), Accelerator())
    steps.unfreeze(0)
    assert set(map(tuple, steps.lengths)) == {(n_tokens,)}
    scores = [n_heads * len(rows) * n_tokens**2 for rows in steps.passes(0, [*range(256)])]
    if most is None:
        assert len(scores) == 1
    else:
        assert max(scores) <= most < scores[0] + n_heads * n_tokens**2
        assert len(scores) > 1


def test_a_head_that_reads_kept_states_reads_them_in_one_pass(
    tiny_bert: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where texts are changed on the fly it reads these, through attention."""
    recipe = tiny_recipe(tiny_bert, reviews, method="head").override("training.compute.pass_scores=1000")
    plain, n_passes = Steps.passes, []

    def counted(steps: Steps, step: int, rows: list[int]) -> Iterator[list[int]]:
        found = [*plain(steps, step, rows)]
        n_passes.append(len(found))
        return iter(found)

    monkeypatch.setattr(Steps, "passes", counted)
    train(recipe)
    assert n_passes[-1] == 1
    train(recipe.override("training.augmentation.word_dropout=0.1"))
    assert n_passes[-1] > 1


def test_a_limit_of_scores_does_not_go_with_losses_of_whole_steps(tiny_bert: Path, reviews: Path) -> None:
    recipe = tiny_recipe(tiny_bert, reviews).override("training.augmentation.mixup=0.5")
    with pytest.raises(RecipeError, match=r"training\.compute\.pass_scores: splits steps, and training\.augmentation"):
        recipe.override("training.compute.pass_scores=1000")


@pytest.mark.parametrize(
    "method", [["method=full"], pytest.param(["method=top_layers", "method.n_blocks=1"], marks=pytest.mark.slow)]
)
def test_a_step_does_not_depend_on_the_number_of_processes(
    method: list[str], data: dict[str, Path], tiny_bert: Path, tmp_path: Path
) -> None:
    """Of which one reads for all what lower blocks read once."""
    recipe = one_step(tiny_bert, data["regress"], TASKS["regress"], "training.batch_size=23", *method)
    alone = train(recipe)
    file = recipe_file(recipe, tmp_path)
    launched = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1",
         "--mixed_precision=no", "--dynamo_backend=no", "--num_cpu_threads_per_process=1",
         "-m", "tl_nlp", "train", str(file)],
        capture_output=True, text=True, check=False,
        env={**os.environ, "TL_NLP_RUNS": str(tmp_path / "two"), "TL_NLP_CACHE": str(tmp_path / "cache"),
             "ACCELERATE_USE_CPU": "true"},
    )  # fmt: skip
    assert launched.returncode == 0, launched.stderr
    assert len([*tmp_path.rglob("tokens/*.safetensors")]) == (0 if method == ["method=full"] else 2)  # splits
    (folder,) = [line for line in launched.stdout.splitlines() if line.startswith(str(tmp_path))]
    together = Run.open(folder)
    assert json.loads((together.folder / "environment.json").read_text())["n_processes"] == 2
    for name, gradient in first_gradient(alone).items():
        torch.testing.assert_close(first_gradient(together)[name], gradient, rtol=1e-4, atol=1e-6)
    scores = [run.results()["splits"]["test"]["metrics"]["rmse"]["value"] for run in (alone, together)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)


@pytest.mark.parametrize("method", ["full", "head", "lora"])
def test_one_seed_is_bit_equal_and_two_differ(method: str, reviews: Path, tiny_bert: Path) -> None:
    recipe = tiny_recipe(tiny_bert, reviews).override(f"method={method}", "training.dropout=0.1")
    file = "adapter_model.safetensors" if method == "lora" else "model.safetensors"
    first, again, other = (
        load_file(train(recipe.override(f"training.seed={seed}")).model_dir / file) for seed in (3, 3, 4)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    changed = [name for name in first if not torch.equal(first[name], other[name])]
    assert any("lora_A" in name for name in changed) == (method == "lora")  # adapter init
    assert any("classifier" in name for name in changed)


def test_the_seed_reaches_dropout(reviews: Path, tiny_bert: Path) -> None:
    recipe = tiny_recipe(tiny_bert, reviews)
    runs = [train(recipe.override(f"training.dropout={rate}")) for rate in (0.0, 0.3)]
    losses = [[line["values"]["loss"] for line in run.history() if line["split"] == "train"] for run in runs]
    assert losses[0] != losses[1]


def test_frozen_weights_are_bit_equal_after_training(reviews: Path, tiny_bert: Path) -> None:
    before = load_file(tiny_bert / "model.safetensors")
    after = {
        name: artifact(train(tiny_recipe(tiny_bert, reviews, method=method)))
        for name, method in {"head": "head", "full": "full", "frozen": {"kind": "full", "embeddings": False}}.items()
    }
    for name, tensor in before.items():
        is_pooler, is_embedding = name.startswith("pooler"), name.startswith("embeddings")
        assert torch.equal(after["head"][f"bert.{name}"], tensor) != is_pooler
        assert not torch.equal(after["full"][f"bert.{name}"], tensor) or "key.bias" in name
        if is_embedding:
            assert torch.equal(after["frozen"][f"bert.{name}"], tensor)


def test_early_stopping_keeps_the_best(reviews: Path, tiny_bert: Path) -> None:
    recipe = tiny_recipe(tiny_bert, reviews).override("training.epochs=40", "training.patience=2", "training.lr=0.01")
    run = train(recipe)
    scores = [line["values"]["accuracy"] for line in run.history() if line["split"] == "validation"]
    best = int(np.argmax(scores))
    assert len(scores) == best + 3 < 40
    assert set(run.checkpoint_steps()) == {6 * (best + 1), 6 * (best + 3)}
    best_weights = load_file(run.checkpoint_dir(6 * (best + 1)) / "weights.safetensors")
    assert all(torch.equal(artifact(run)[name], tensor) for name, tensor in best_weights.items())


@pytest.mark.parametrize(
    ("schedule", "rates"), [("linear", [1, 0.5, 0.125]), ("cosine", [1, 0.5, 0.038]), ("constant", [1, 1, 1])]
)
def test_schedules_rise_over_the_warmup_and_follow_their_curve(schedule: str, rates: list[float]) -> None:
    recipe = tiny_recipe(Path("nowhere"), Path("rows.csv"))
    plan = Plan.of(recipe.override("training.warmup=0.2", f"training.schedule={schedule}"), 160)
    assert (plan.steps, plan.warmup) == (10, 2)
    assert [plan.factor(step) for step in (0, 1)] == [0.5, 1.0]
    assert [plan.factor(step) for step in (2, 6, 9)] == pytest.approx(rates, abs=1e-3)


class Between(TorchDispatchMode):
    """Finds what takes tensors of two devices, or makes one of the other, for which the host may have to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tensors = [one for one in tree_leaves((args, kwargs, made)) if isinstance(one, torch.Tensor)]
        if len({tensor.device for tensor in tensors}) > 1:
            self.found.append(str(func))
        return made


def without_numbers(steps: Steps) -> None:
    """Puts them on torch's device of shapes, where each number that is asked for is an error."""
    there = torch.device("meta")
    moments = {name: steps.optimizer.state.get(weight, {}) for name, weight in steps.weights.by_name.items()}
    for tensor in [*steps.model.parameters(), *steps.model.buffers()]:
        moved = tensor.detach().to(there)
        is_weight = isinstance(tensor, torch.nn.Parameter)
        torch.utils.swap_tensors(tensor, torch.nn.Parameter(moved, tensor.requires_grad) if is_weight else moved)
    for name, weight in steps.weights.by_name.items():
        steps.optimizer.state[weight] = {key: value.to(there) for key, value in moments[name].items()}
    steps.anchor.start = {name: value.to(there) for name, value in steps.anchor.start.items()}
    steps.objective, steps.device = steps.objective.to(there), there


WAITS_FOR_NOTHING = [
    *[(head, []) for head in TASKS],
    *[(head, ["training.r_drop=1"]) for head in TASKS],
    *[("classify", [f"method={name}"]) for name in ("head", "lora", "ia3", "adapter", "bitfit", "gradual")],
    ("classify", ["method=top_layers", "method.n_blocks=1"]),
    ("generate", ["method=lora"]),
    ("classify", ["task.pooling=mean"]),
    ("regress", ["task.pooling=mean"]),
    (
        "classify",
        ["training.l2_sp=0.1", "training.mixout=0.3", "training.layer_decay=0.9", "training.max_grad_norm=null"],
    ),
    ("classify", ["training.class_weights=balanced", "training.focal_gamma=2", "training.logit_adjustment=1"]),
    ("multilabel", ["training.label_smoothing=0.1", "training.augmentation.mixup=0.4"]),
    ("regress", ["training.augmentation.mixup=0.4"]),
    ("classify", ["training.compute.dropout=torch", "training.device_batch_size=4"]),
    ("generate", ["training.gradient_checkpointing=true"]),
]


@pytest.mark.parametrize(("head", "more"), WAITS_FOR_NOTHING, ids=str)
def test_a_step_waits_for_no_number(
    head: str, more: list[str], data: dict[str, Path], tiny_bert: Path, tiny_t5: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the attention that a GPU has, on a device that has no numbers; and what goes there from the host does so in
    the one way that waits for nothing."""

    def there(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        with _disable_current_modes():
            return on_device(tensor, device)

    recipe = tiny_recipe(tiny_t5 if head == "generate" else tiny_bert, data[head], TASKS[head]).override(
        "training.compute.attention=sdpa", "training.dropout=0.1", "training.batch_size=16", *more
    )
    steps, _ = steps_of(prepare(recipe), Accelerator())
    steps.take(0)
    without_numbers(steps)
    for module in ("batches", "steps"):
        monkeypatch.setattr(f"tl_nlp.{module}.on_device", there)
    monkeypatch.setattr("tl_nlp.steps.autocast", lambda *_: nullcontext())  # of which that device has none
    for name in ("tensor", "as_tensor"):  # which a mode does not see
        plain = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *told, plain=plain, **more: plain(*told, **{**more, "device": None}))
    generator = torch.Generator()
    monkeypatch.setattr(torch, "Generator", lambda _: generator)  # nor of these
    between = Between()
    with between:
        begun = steps.begin(1)
    assert between.found == []
    with pytest.raises(NotImplementedError, match="meta"):
        begun.end()


@pytest.mark.parametrize("more", [[], ["training.ema=0.9"], ["training.compute.optimizer=foreach"]])
def test_steps_that_are_begun_ahead_end_in_the_same_bytes(
    more: list[str], tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU; where steps are bad, too. Of few steps each is reported, and none waits for that."""
    rows = [{**row, "target": "rare" if n % 30 == 7 else row["target"]} for n, row in enumerate(review_rows(120))]
    recipe = tiny_recipe(tiny_bert, write_jsonl(tmp_path / "rows.jsonl", rows)).override(
        'training.class_weights={"rare": 3e38}', "training.batch_size=4", "training.skip_bad_steps=10",
        "training.epochs=2", *more,
    )  # fmt: skip
    order: list[str] = []
    for kind, name in ((Steps, "begin"), (Begun, "end")):
        plain = getattr(kind, name)
        monkeypatch.setattr(kind, name, lambda *values, plain=plain, name=name: order.append(name) or plain(*values))
    runs, n_ahead_of_an_end = [], []
    for n_ahead in (0, 1):
        monkeypatch.setitem(loop._AHEAD, "cpu", n_ahead)
        order.clear()
        runs.append(train(recipe))
        n_ahead_of_an_end.append(sum(pair == ("begin", "begin") for pair in pairwise(order)))
    at_once, ahead = runs
    told = [[(line["split"], line["step"], line["values"]) for line in run.history()] for run in runs]
    assert told[0] == told[1]
    evaluations = [step for split, step, _ in told[0] if split == "validation"]
    assert [step for split, step, _ in told[0] if split != "validation"] == [*range(1, evaluations[-1] + 1)]
    assert n_ahead_of_an_end == [0, 0 if "training.ema=0.9" in more else len(evaluations)]
    assert ahead.results()["train"]["skipped_steps"] == at_once.results()["train"]["skipped_steps"] > 0
    for name, tensor in artifact(ahead).items():
        assert torch.equal(tensor, artifact(at_once)[name]), name
    with pytest.raises(RunError, match=r"step \d+: the loss is"):
        train(recipe.override("training.skip_bad_steps=0"))


def test_a_training_leaves_no_model_in_memory(tiny_bert: Path, reviews: Path) -> None:
    """Also where the collector does not come by itself, as it does not for what was there before the next training."""

    def layers() -> int:
        return sum(type(one) is torch.nn.Linear for one in gc.get_objects())

    gc.collect()
    before = layers()
    gc.disable()
    try:
        assert train(tiny_recipe(tiny_bert, reviews)).is_finished
        assert layers() == before
    finally:
        gc.enable()


def test_rates_and_decay_reach_the_weights_they_are_for(reviews: Path, tiny_bert: Path) -> None:
    base = one_step(tiny_bert, reviews, "classification", "training.warmup=0", "training.weight_decay=0")
    plain, decayed, head_only = (
        artifact(train(base.override(*more)))
        for more in ([], ["training.weight_decay=0.5"], ["training.lr=1e-12", "training.head_lr=1e-2"])
    )
    before = load_file(tiny_bert / "model.safetensors")
    for name, tensor in plain.items():
        assert torch.equal(decayed[name], tensor) == (tensor.ndim == 1)
        if name.removeprefix("bert.") in before and "pooler" not in name:
            torch.testing.assert_close(head_only[name], before[name.removeprefix("bert.")], rtol=0, atol=1e-9)
    assert not torch.equal(head_only["classifier.weight"], plain["classifier.weight"])


def test_clipping_bounds_the_step(reviews: Path, tiny_bert: Path) -> None:
    recipe = one_step(tiny_bert, reviews, "classification")
    free, clipped = (
        first_gradient(train(recipe.override(f"training.max_grad_norm={most}"))) for most in ("null", "0.01")
    )
    norms = [sum(float(tensor.square().sum()) for tensor in each.values()) ** 0.5 for each in (free, clipped)]
    assert norms[0] > 0.1
    assert norms[1] == pytest.approx(0.01, rel=1e-3)


def test_batches_group_lengths_and_keep_every_row() -> None:
    draw = np.random.default_rng(0)
    lengths = [[int(n)] * int(draw.integers(1, 4)) for n in draw.integers(1, 100, 1000)]
    order = epoch_order(lengths, 32, seed=0, epoch=0)
    assert sorted(row for rows in order for row in rows) == list(range(1000))
    assert order == epoch_order(lengths, 32, seed=0, epoch=0)
    assert order != epoch_order(lengths, 32, seed=0, epoch=1) != epoch_order(lengths, 32, seed=1, epoch=0)
    spread = np.mean([np.std([sum(lengths[row]) for row in rows]) for rows in order])
    assert spread < 0.2 * np.std([sum(windows) for windows in lengths])
    for rows in order:
        parts = list(passes(rows, lengths, 16))
        assert sorted(row for part in parts for row in part) == sorted(rows)
        assert all(sum(len(lengths[row]) for row in part) <= 16 for part in parts)


@pytest.mark.parametrize("load_in", ["float32", "int8", "nf4"])
def test_evaluations_change_nothing_of_what_is_learned(load_in: str, tiny_bert: Path, reviews: Path) -> None:
    if load_in != "float32":
        pytest.importorskip("bitsandbytes")
    recipe = tiny_recipe(tiny_bert, reviews, method="lora").override(
        f"checkpoint.load_in={load_in}", "training.epochs=2", "training.lr=1e-2"
    )
    told = []
    for every in (2, 0.5):
        lines = train(recipe.override(f"training.eval_every={every}")).history()
        told.append([line["values"] for line in lines if line["split"] == "train"])
        assert sum(line["split"] == "validation" for line in lines) == 2 / every
    assert told[0] == told[1]
