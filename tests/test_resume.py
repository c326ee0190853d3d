"""A training that was cut off goes on to the same bytes, or says in a sentence why it cannot."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from conftest import Answer, recipe_file, review_rows, tiny_recipe, tl_nlp, write_jsonl
from interruptions import assert_same, killed_beyond, stopped_at, until

from tl_nlp import Recipe, Run, checkpoints, train
from tl_nlp.errors import RecipeError, RunError

METHODS = {
    "full": ["training.ema=0.9", "training.device_batch_size=4"],
    "top_layers": ["method.n_blocks=1", "training.device_batch_size=4"],
    "head": ["training.epochs=200", "training.patience=45", "training.eval_every=4", "training.save_every=4"],
    "gradual": ["method.head_epochs=0.3", "method.every=0.7", "training.layer_decay=0.9"],
    "lora": ["method.dropout=0.1", "training.device_batch_size=8"],
    "adapter": ["training.average_last=2", "training.schedule=one_cycle"],
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("resume") / "rows.jsonl", review_rows(400))


@pytest.fixture
def recipe(rows: Path, tiny_bert: Path) -> Recipe:
    """With dropout, and checkpoints every two steps of 54."""
    return tiny_recipe(tiny_bert, rows).override(
        "training.epochs=3", "training.dropout=0.1", "training.save_every=0.1", "training.eval_every=0.5"
    )


@pytest.fixture(autouse=True)
def no_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take a third of the time of so small a training."""
    monkeypatch.setattr("tl_nlp.training.write_report", lambda run: None)


def killed(recipe: Recipe, folder: Path, n_times: int) -> Run:
    """The finished run of a training that kill -9 has stopped so many times in a row."""
    run, step = Run.create(recipe, folder / "killed"), 0
    for _ in range(n_times):
        step = killed_beyond(run, step)
        assert run.status == "interrupted"
    done = tl_nlp("train", str(run.folder))
    assert done.returncode == 0, done.stderr
    assert f"{run.folder} goes on from step " in done.stderr
    assert done.stdout.splitlines()[-1] == str(run.folder)
    return run


def test_fault_01_a_killed_training_goes_on_to_the_same_bytes(recipe: Recipe, tmp_path: Path) -> None:
    """With dropout and accumulation."""
    recipe = recipe.override("training.device_batch_size=4")
    run = killed(recipe, tmp_path, 1)
    assert_same(run, train(recipe))
    assert train(run).folder == run.folder  # a finished run is only shown


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_fault_01_every_method_goes_on_to_the_same_bytes(method: str, recipe: Recipe, tmp_path: Path) -> None:
    """After two kills in a row."""
    recipe = recipe.override(f"method={method}", *METHODS[method])
    assert_same(killed(recipe, tmp_path, 2), train(recipe))


@pytest.mark.slow
def test_fault_01_two_processes_go_on_to_the_same_bytes(recipe: Recipe, tmp_path: Path) -> None:
    def launched(target: Path, runs: Path) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1",
             "--mixed_precision=no", "--dynamo_backend=no", "--num_cpu_threads_per_process=1", "--main_process_port=0",
             "-m", "tl_nlp", "train", str(target)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "TL_NLP_RUNS": str(runs), "ACCELERATE_USE_CPU": "true"},
        )  # fmt: skip

    whole_process = launched(recipe_file(recipe, tmp_path), tmp_path / "whole")
    _, errors = whole_process.communicate()
    assert whole_process.returncode == 0, errors
    (whole,) = (tmp_path / "whole").glob("tiny/*")
    run = Run.create(recipe, tmp_path / "killed")
    process = launched(run.folder, tmp_path)
    until(lambda: run.checkpoint_steps()[-1:] > [4], process)
    for one in [*psutil.Process(process.pid).children(recursive=True), process]:  # workers first: they end in a step
        one.kill()
    process.communicate()
    assert not run.is_finished
    process = launched(run.folder, tmp_path)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert_same(run, Run.open(whole))


@pytest.fixture(scope="module")
def cut_off(rows: Path, tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with a checkpoint of its best evaluation and a later one."""
    folder = tmp_path_factory.mktemp("cut-off")
    recipe = tiny_recipe(tiny_bert, rows).override("training.epochs=2", "training.dropout=0.1", "training.lr=1e-2")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("TL_NLP_RUNS", str(folder / "runs"))
        return stopped_at(recipe, 22, monkeypatch)


@pytest.fixture
def run(cut_off: Run, tmp_path: Path) -> Run:
    """A copy of it that may be damaged."""
    shutil.copytree(cut_off.folder, tmp_path / "copy")
    return Run(tmp_path / "copy")


@pytest.fixture(scope="module")
def whole(cut_off: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """What the run becomes where nothing happens to it."""
    return train(cut_off.recipe(), root=tmp_path_factory.mktemp("whole"))


def test_a_run_that_goes_on_tells_from_where(run: Run, whole: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.checkpoint_steps() == [18, 22]
    assert_same(train(run), whole)
    assert f"{run.folder} goes on from step 22 of 36" in capsys.readouterr().err


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def halved(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "optimizer.safetensors", "averages.safetensors", "progress.json"]
)
def test_fault_05_a_flipped_byte_is_found_and_the_checkpoint_before_is_taken(
    name: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    flipped(run.checkpoint_dir(22) / name)
    state = checkpoints.newest(run)
    assert state is not None and state.progress["step"] == 18
    errors = capsys.readouterr().err
    assert f"step-0000022 is damaged: {name} is not as it was written; it is left out" in errors


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "progress.json", "manifest.json"])
def test_fault_06_a_truncated_file_is_named_and_the_checkpoint_before_is_taken(
    name: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run.checkpoint_dir(22) / name
    size = file.stat().st_size
    halved(file)
    state = checkpoints.newest(run)
    assert state is not None and state.progress["step"] == 18
    told = f"{name} has {size // 2:,} bytes, not {size:,}"
    assert (told if name != "manifest.json" else "its manifest.json is damaged or missing") in capsys.readouterr().err


def test_fault_05_from_the_checkpoint_before_the_same_bytes_are_reached(
    run: Run, whole: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what a kill has left of a save is named and removed: fault 2."""
    flipped(run.checkpoint_dir(22) / "weights.safetensors")
    partial = run.checkpoint_dir(20).with_name(".step-0000020.partial")
    partial.mkdir()
    (partial / "weights.safetensors").touch()
    assert_same(train(run), whole)
    errors = capsys.readouterr().err
    assert f"{run.folder} goes on from step 18 of 36" in errors
    assert ".step-0000020.partial was cut off while it was written; it is left out" in errors
    assert not partial.exists()


def test_fault_05_where_no_checkpoint_is_whole_the_training_begins_again(
    run: Run, whole: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """The best one is damaged, which the newest needs at the end."""
    halved(run.checkpoint_dir(18) / "weights.safetensors")
    assert_same(train(run), whole)
    assert "no whole checkpoint is left, so the training begins again, to the same weights" in capsys.readouterr().err


def test_fault_04_without_the_optimizers_state_only_an_option_goes_on(
    run: Run, whole: Run, command: Callable[..., Answer]
) -> None:
    """There is no state of random generators that could be lost: chance is drawn from the seed and the step."""
    (run.checkpoint_dir(22) / "optimizer.safetensors").unlink()
    refused = command("train", run.folder)
    assert refused.status == 1
    complaint = refused.err.splitlines()[-1]
    assert f"{run.folder} cannot resume exactly: checkpoint" in complaint and "Traceback" not in refused.err
    assert "optimizer.safetensors is missing" in complaint and "--weights-only" in complaint
    assert not run.is_finished
    assert command("train", run.folder, "--weights-only").status == 0
    assert run.results()["train"]["weights_only_from"] == 22
    ours, theirs = (each.checkpoint_dir(36) / "weights.safetensors" for each in (run, whole))
    assert ours.read_bytes() != theirs.read_bytes()


def test_fault_07_another_recipe_is_refused_with_the_differences(run: Run) -> None:
    recipe = json.loads((run.folder / "recipe.json").read_text())
    recipe["training"] |= {"batch_size": 8, "seed": 1, "lr": 1e-5}
    recipe["note"] = "what a note says changes nothing"
    (run.folder / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(RunError, match=r"cannot resume with another recipe than it began with: ") as caught:
        train(run)
    told = "training.batch_size was 16 and is 8; training.lr was 0.01 and is 1e-05; training.seed was 0 and is 1;"
    assert told in str(caught.value)


def test_fault_07_other_data_are_refused(tiny_bert: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", review_rows(60))
    run = train(tiny_recipe(tiny_bert, path))
    (run.folder / "results.json").unlink()
    write_jsonl(path, review_rows(60, seed=1))
    with pytest.raises(RunError, match=r"rows are not those .* began with"):
        train(run)


def test_fault_07_another_checkpoint_is_refused(tiny_bert: Path, reviews: Path, tmp_path: Path) -> None:
    """Its frozen weights are in no checkpoint of the training."""
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "checkpoint"
    shutil.copytree(tiny_bert, copy)
    run = train(tiny_recipe(copy, reviews, method="lora"))
    (run.folder / "results.json").unlink()
    tensors = {name: tensor * 2 for name, tensor in load_file(copy / "model.safetensors").items()}
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunError, match=r"the weights of .* are not those .* began with"):
        train(run)


def test_fault_07_the_command_line_takes_no_overrides_for_a_run(run: Run, command: Callable[..., Answer]) -> None:
    refused = command("train", run.folder, "training.batch_size=8")
    assert refused.status == 2
    assert "a run goes on with the recipe it began with" in refused.err


def test_another_machine_is_told(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    environment = run.environment()
    environment["versions"]["torch"] = "1.0"
    run.write_environment({**environment, "n_processes": 4})
    train(run)
    told = "the last bits of weights may be others than without the stop: number of processes was 4 and is 1"
    assert told in capsys.readouterr().err


def test_fault_12_no_data_set_is_streamed(tiny_bert: Path, reviews: Path) -> None:
    """Rows are tables on disk, so the place in them is a number of a step; there is no stream that could be lost."""
    with pytest.raises(RecipeError, match=r"data.streaming: no such key"):
        tiny_recipe(tiny_bert, reviews).override("data.streaming=true")


def test_a_part_of_a_study_that_was_begun_with_another_recipe_is_refused(tiny_bert: Path, reviews: Path) -> None:
    recipe = tiny_recipe(tiny_bert, reviews)
    run = Run.create(recipe.override("training.seeds=2"))
    run.within("seeds/0", recipe.override("training.lr=1e-5"))
    with pytest.raises(RunError, match=r"was begun with another recipe: training.lr was 1e-05 and is 0.001"):
        train(run)


@pytest.mark.slow
def test_a_study_goes_on_where_it_was_cut_off(tiny_bert: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(tiny_bert, reviews).override("training.seeds=2", "training.epochs=2", "training.dropout=0.1")
    part = stopped_at(recipe, 8, monkeypatch)
    run = Run(part.folder.parent.parent)
    assert (part.folder.name, run.status) == ("0", "interrupted")
    assert train(run).is_finished
    whole = train(recipe)
    for seed in (0, 1):
        assert_same(*(Run(each.folder / "seeds" / str(seed)) for each in (run, whole)))
