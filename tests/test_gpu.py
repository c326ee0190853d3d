"""What only a GPU can show: `make test-gpu`. Each skips itself without one, and from the other tests it is hidden."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from conftest import recipe_file, tiny_recipe
from safetensors.torch import load_file

from tl_nlp import Predictor, Run, train
from tl_nlp.preparation import prepare
from tl_nlp.training import steps_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here, or hidden: make test-gpu"),
]


@pytest.mark.parametrize("load_in", ["int8", "nf4"])
@pytest.mark.parametrize("method", ["head", "lora", "ia3", "adapter"])
def test_quantized_weights_load_and_train_on_the_gpu(method: str, load_in: str, tiny_bert: Path, reviews: Path) -> None:
    run = train(tiny_recipe(tiny_bert, reviews, method=method).override(f"checkpoint.load_in={load_in}"))
    predictor = Predictor.load(run)
    weights = dict(predictor.model.named_parameters())
    assert {weight.device.type for weight in weights.values()} == {"cuda"}
    assert {torch.int8, torch.uint8} & {weight.dtype for weight in weights.values()}
    (prediction,) = predictor(["the good film"])
    assert sum(prediction.probabilities.values()) == pytest.approx(1)


def test_bfloat16_is_what_auto_takes_where_the_gpu_has_it(tiny_bert: Path, reviews: Path) -> None:
    if torch.cuda.get_device_capability()[0] < 8:
        pytest.skip("this GPU has no fast bfloat16")
    recipe = tiny_recipe(tiny_bert, reviews)
    auto, half, full = (
        load_file(train(recipe.override(f"training.precision={name}")).model_dir / "model.safetensors")
        for name in ("auto", "bfloat16", "float32")
    )
    assert all(torch.equal(auto[name], half[name]) for name in auto)
    assert any(not torch.equal(auto[name], full[name]) for name in auto)


def test_the_largest_pass_fits_on_the_gpu(tiny_bert: Path, reviews: Path) -> None:
    run = train(tiny_recipe(tiny_bert, reviews).override("training.device_batch_size=auto"))
    assert run.environment()["model"]["device_batch_size"] == 16


@pytest.mark.parametrize(
    "choices",
    [
        ["training.l2_sp=0.1", "training.mixout=0.3", "training.ema=0.9"],
        ["training.class_weights=balanced", "training.logit_adjustment=1", "training.augmentation.mixup=0.4"],
        [
            "training.r_drop=1",
            "training.dropout=0.1",
            "training.average_last=2",
            "training.gradient_checkpointing=true",
        ],
        ["method=top_layers", "method.n_blocks=1", "training.dropout=0.1"],
        ["method=gradual", "training.augmentation.word_replacement=0.2", "training.augmentation.token_cutoff=0.2"],
    ],
)
def test_what_acts_on_weights_and_losses_acts_on_the_gpu(choices: list[str], tiny_bert: Path, reviews: Path) -> None:
    run = train(tiny_recipe(tiny_bert, reviews).override("training.epochs=2", *choices))
    assert all(line["values"]["loss"] > 0 for line in run.history() if line["split"] == "train")


def test_a_step_begins_before_the_one_before_it_is_done(tiny_bert: Path, reviews: Path) -> None:
    """CUDA tells of each wait."""
    steps, _ = steps_of(prepare(tiny_recipe(tiny_bert, reviews).override("training.dropout=0.1")), Accelerator())
    steps.take(0)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype", UserWarning)
            torch.cuda.set_sync_debug_mode("error")
        begun = [steps.begin(step) for step in (1, 2)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(each.end().loss > 0 for each in begun)


def test_what_a_step_was_is_told_before_what_the_gpu_was_told_since_is_done(tiny_bert: Path, reviews: Path) -> None:
    steps, _ = steps_of(prepare(tiny_recipe(tiny_bert, reviews)), Accelerator())
    steps.take(0)
    begun = steps.begin(1)
    torch.cuda._sleep(10**9)  # cycles of its clock, half a second or more
    since = torch.cuda.Event()
    since.record()
    assert begun.end().loss > 0
    assert not since.query()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU or none here")
def test_two_gpus_compute_what_one_does(tiny_bert: Path, reviews: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_bert, reviews)
    alone = train(recipe)
    launched = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "-m", "tl_nlp",
         "train", str(recipe_file(recipe, tmp_path))],
        capture_output=True, text=True, check=False, env={**os.environ, "TL_NLP_RUNS": str(tmp_path / "two")},
    )  # fmt: skip
    assert launched.returncode == 0, launched.stderr
    together = Run.open(next((tmp_path / "two").glob("tiny/*")))
    one, two = ([line["values"].get("loss") for line in run.history()] for run in (alone, together))
    assert one == pytest.approx(two, rel=1e-3)


def test_steps_are_compiled_where_that_is_faster(
    tiny_bert: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tl_nlp.compiling._LEAST", 0)
    run = train(tiny_recipe(tiny_bert, reviews))
    told = capsys.readouterr().err
    assert "torch.compile took " in told, told
    assert run.environment()["compiled"] is (": kept" in told)
