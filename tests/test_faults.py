"""Faults of a training: signals, full disks, too little memory, numbers that are none, a second writer."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Answer, artifact, recipe_file, review_rows, tiny_recipe, tl_nlp, write_jsonl
from interruptions import assert_same, begun, stopped_at, until

from tl_nlp import Predictor, Recipe, Run, checkpoints, disk, features, signals, train
from tl_nlp.errors import HardwareError, Interrupted, LockedError, NoRoomError, RunError
from tl_nlp.heads import Batch, Classify


@pytest.fixture(scope="module")
def long(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A training that goes on for minutes."""
    rows = write_jsonl(tmp_path_factory.mktemp("faults") / "rows.jsonl", review_rows(2000))
    return tiny_recipe(tiny_bert, rows).override("training.epochs=100", "training.save_every=0.1")


def is_writing(run: Run) -> bool:
    return any((run.folder / "checkpoints").glob(".step-*.partial"))


@pytest.mark.slow
def test_fault_02_kills_inside_saves_leave_a_whole_checkpoint(tiny_bert: Path, tmp_path: Path) -> None:
    """At random offsets; `benchmarks/crash.py` does it many more times."""
    rows = write_jsonl(tmp_path / "rows.jsonl", review_rows(400))
    recipe = tiny_recipe(tiny_bert, rows).override(
        "training.epochs=3", "training.dropout=0.1", "training.save_every=0.1"
    )
    run, draw = Run.create(recipe), random.Random(0)
    for _ in range(5):
        before = run.checkpoint_steps()
        process = begun(run)
        until(lambda: is_writing(run), process)
        time.sleep(draw.uniform(0, 0.02))
        process.kill()
        process.communicate()
        steps = run.checkpoint_steps()
        assert not before or steps
        for step in steps:
            checkpoints.check(run.checkpoint_dir(step))
    done = tl_nlp("train", str(run.folder))
    assert done.returncode == 0, done.stderr
    assert not is_writing(run)
    assert_same(run, train(recipe))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_fault_03_a_full_disk_ends_a_training_that_goes_on_once_there_is_room(
    small_disk: Path, tiny_bert: Path, reviews: Path, command: Callable[..., Answer]
) -> None:
    recipe = tiny_recipe(tiny_bert, reviews).override("training.epochs=2", "training.dropout=0.1")
    whole = train(recipe)
    size = sum(path.stat().st_size for path in whole.checkpoint_dir(12).iterdir())
    for_one = ["mount", "-o", f"remount,size={int(1.6 * size)}", str(small_disk)]  # and not for two
    subprocess.run(for_one, check=True)
    run = Run.create(recipe, small_disk)
    full = command("train", run.folder)
    assert full.status == 1
    complaint = full.err.splitlines()[-1]
    assert complaint.startswith("tl-nlp: no room for the checkpoint of step 12, so the training stops")
    assert " bytes are free under " in complaint and complaint.endswith(" needed")
    assert "Traceback" not in full.err
    assert run.checkpoint_steps() == [6] and run.status == "interrupted"
    checkpoints.check(run.checkpoint_dir(6))
    subprocess.run(["mount", "-o", "remount,size=50m", str(small_disk)], check=True)
    again = command("train", run.folder)
    assert again.status == 0, again.err
    assert "goes on from step 6 of 12" in again.err
    assert_same(run, whole)


def test_fault_03_a_disk_that_fills_up_in_a_write_leaves_what_was_there(small_disk: Path) -> None:
    with disk.writing(small_disk / "kept") as folder:
        (folder / "a").write_bytes(b"whole")
    told = r"no room for it: [\d,]+ bytes are free under .*, and more are needed"
    with (
        pytest.raises(NoRoomError, match=told),
        disk.room(small_disk, 0, "it"),
        disk.writing(small_disk / "kept") as folder,
    ):
        (folder / "a").write_bytes(os.urandom(4_000_000))
    assert [path.name for path in small_disk.iterdir()] == ["kept"]
    assert (small_disk / "kept" / "a").read_bytes() == b"whole"


def test_what_is_written_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    for content in ("one", "two"):
        with disk.writing(tmp_path / "folder") as folder:
            (folder / content).touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "two"]


@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGINT", marks=pytest.mark.slow)])
def test_fault_08_11_a_signal_saves_and_a_second_writer_is_refused(name: str, long: Recipe) -> None:
    run = Run.create(long)
    assert run.status == "started"
    process = begun(run)
    until(lambda: run.checkpoint_steps(), process)
    assert run.status == "running"
    with pytest.raises(LockedError, match=rf"is being written by process {process.pid} on .*; wait for it, or stop it"):
        train(run)
    process.send_signal(signal.Signals[name])
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.Signals[name]
    assert "Traceback" not in errors
    complaint = errors.splitlines()[-1]
    assert complaint.startswith(f"tl-nlp: stopped by {name} at step ") and complaint.endswith("goes on from there")
    assert run.status == "interrupted"
    step = int(complaint.partition(" at step ")[2].split()[0])
    assert run.checkpoint_steps()[-1] == step
    checkpoints.check(run.checkpoint_dir(step))


def test_fault_08_a_signal_before_the_loop_has_its_status_too(
    long: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TL_NLP_CACHE", "")  # or there is nothing to tokenize
    process = begun(recipe_file(long, tmp_path))
    assert process.stderr is not None
    told = ""
    while "tokenizing" not in told:
        told += process.stderr.read(1)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "Traceback" not in errors and "tl-nlp: stopped by SIGTERM" in errors


def test_fault_08_a_signal_while_python_cleans_up_is_not_lost(
    tiny_bert: Path, reviews: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `__del__` lets nothing be raised, and the signal comes again; faults of its own are told as ever."""

    class Signalled:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    with signals.stopping(), pytest.raises((Interrupted, signals.Stopped), match="stopped by SIGTERM"):
        Signalled()
        train(tiny_recipe(tiny_bert, reviews))
    assert "Traceback" not in capfd.readouterr().err

    class Faulty:
        def __del__(self) -> None:
            raise ValueError("of its own")

    told: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(sys, "unraisablehook", lambda unraisable: told.append(str(unraisable.exc_value)))
        with signals.stopping():
            Faulty()
    assert told == ["of its own"]
    assert train(tiny_recipe(tiny_bert, reviews)).is_finished


@pytest.mark.parametrize("place", ["checked", "score"])
def test_fault_08_a_signal_beside_the_loop_stops_at_once_and_loses_nothing(
    place: str, tiny_bert: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the data is looked at, and while the artifact is scored."""
    recipe = tiny_recipe(tiny_bert, reviews).override("training.dropout=0.1")
    run = Run.create(recipe)
    with monkeypatch.context() as patch, signals.stopping():
        patch.setattr(f"tl_nlp.training.{place}", lambda *values: signal.raise_signal(signal.SIGINT))
        with pytest.raises(Interrupted, match=r"stopped by SIGINT; tl-nlp train .* goes on from its last") as caught:
            train(run)
    assert caught.value.exit_status == 130
    assert run.status == "interrupted"
    assert_same(train(run), train(recipe))


def test_fault_08_a_second_signal_quits_at_once(
    tiny_bert: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice(*values: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("it went on")

    run = Run.create(tiny_recipe(tiny_bert, reviews))
    monkeypatch.setattr("tl_nlp.loop._evaluate", twice)
    with pytest.raises(Interrupted, match="stopped at once by a second signal") as caught:
        train(run)
    assert caught.value.exit_status == 143
    assert run.checkpoint_steps() == []


# ---- numbers


@pytest.fixture(scope="module")
def rare(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """One of whose labels the loss is beyond all numbers."""
    rows = [{"id": f"row {n}", **row} for n, row in enumerate(review_rows(150))]
    for place in (20, 90, 110, 130, 140):
        rows[place]["target"] = "rare"
    folder = tmp_path_factory.mktemp("rare")
    recipe = tiny_recipe(tiny_bert, write_jsonl(folder / "rows.jsonl", rows))
    return recipe.override(
        'training.class_weights={"rare": 3e38}', "training.batch_size=4", "training.save_every=0.05", "training.seed=3"
    )


def test_fault_09_a_loss_that_is_no_number_stops_at_its_step(rare: Recipe) -> None:
    with pytest.raises(
        RunError, match=r"step \d+: the loss is .* and the gradient's norm (inf|nan), at the rates"
    ) as caught:
        train(rare)
    told = str(caught.value)
    (folder,) = Path(os.environ["TL_NLP_RUNS"]).glob("tiny/*")
    run = Run.open(folder)
    rows = run.recipe().data.load()["train"]
    named = told.partition("on the rows ")[2].partition(";")[0].split(", ")
    assert len(named) == 4
    assert "rare" in [target for row, target in zip(rows["id"], rows["target"], strict=True) if row in named]
    step = int(told.split()[1].rstrip(":"))
    assert run.checkpoint_steps()[-1] < step
    for kept in run.checkpoint_steps():
        weights = checkpoints.read(run.checkpoint_dir(kept)).weights
        assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())
    line = run.history()[-1]
    assert (line["step"], line["split"]) == (step, "bad_step") and line["values"]["grad_norm"] in ("inf", "nan")


def test_fault_09_bad_steps_are_left_out_where_the_recipe_says_so(
    rare: Recipe, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = rare.override("training.skip_bad_steps=10", "training.epochs=2", "training.save_every=1")
    whole = train(recipe)
    bad = [line["step"] for line in whole.history() if line["split"] == "bad_step"]
    assert 2 <= len(bad) <= 10
    assert whole.results()["train"]["skipped_steps"] == len(bad)
    assert f"it is left out, {len(bad)} of 10" in capsys.readouterr().err
    assert all(bool(torch.isfinite(tensor).all()) for tensor in artifact(whole).values())
    run = stopped_at(recipe, bad[0], monkeypatch)  # the count goes on too
    assert_same(train(run), whole)
    with pytest.raises(RunError, match=f"training.skip_bad_steps={len(bad)} leaves out"):
        train(recipe.override(f"training.skip_bad_steps={len(bad) - 1}"))


def test_fault_09_weights_that_are_no_numbers_are_not_saved(tiny_bert: Path, reviews: Path) -> None:
    """An update can make them of a gradient that is one."""
    recipe = tiny_recipe(tiny_bert, reviews).override("training.lr=0.99", "training.max_grad_norm=null")
    with pytest.raises(RunError, match=r"step \d+: (the loss is .*nan|.* is no number any more)"):
        train(recipe.override("training.epochs=200", "training.weight_decay=50000", "training.schedule=constant"))


# ---- memory

LIMITED = """
import resource, sys
from pathlib import Path
from tl_nlp import Run, train
from tl_nlp.steps import Steps

warm, run = (Run(Path(folder)) for folder in sys.argv[1:3])
train(warm)  # all that is loaded and kept is there before the limit
begin = Steps.begin

def limited(steps, step, rates=None):  # those of the probe too
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[3]), resource.RLIM_INFINITY))
    try:
        return begin(steps, step, rates)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

Steps.begin = limited
train(run)
"""


def test_fault_10_out_of_memory_halves_the_pass_and_not_the_batch(tiny_bert: Path, tmp_path: Path) -> None:
    rows = [{**row, "text": " ".join([row["text"]] * 8)} for row in review_rows(360)]
    task = {"kind": "classification", "max_length": 128}
    recipe = tiny_recipe(tiny_bert, write_jsonl(tmp_path / "rows.jsonl", rows), task).override(
        "training.epochs=2", "training.batch_size=256", "training.device_batch_size=256",
        "training.compute.pass_scores=1000000000",
    )  # fmt: skip
    run = Run.create(recipe)
    warm = Run.create(recipe.override("name=warm", "training.device_batch_size=8"))  # leaves little memory to use again
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(warm.folder), str(run.folder), str(120_000_000)],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "step 1: out of memory; device_batch_size goes from 256 to " in done.stderr
    assert "and batch_size stays 256" in done.stderr
    (told,) = [line for line in run.history() if line["split"] == "memory"]
    size = told["values"]["device_batch_size"]
    assert size in (128, 64, 32, 16) and told["step"] == 1
    assert run.results()["train"]["device_batch_size"] == size
    ours, theirs = artifact(run), artifact(warm)
    for name, tensor in theirs.items():  # the same rows in a step, summed in other groups
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-4)


def test_fault_10_one_row_that_does_not_fit_is_told(
    tiny_bert: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine's own sentence, for losses that need the whole step in one pass too."""

    def full(*values: object) -> None:
        torch.empty(10**15)  # more than any machine has

    monkeypatch.setattr("tl_nlp.steps.Steps.loss", full)
    with pytest.raises(
        HardwareError, match=r"step 1: out of memory with 1 sequences of at most \d+ tokens in one pass"
    ):
        train(tiny_recipe(tiny_bert, reviews))
    task = {"kind": "classification", "max_length": 8}  # a row has many windows, which stay together
    with pytest.raises(HardwareError, match=r"step 1: out of memory with 1 sequences of at most 8 tokens in one pass"):
        train(tiny_recipe(tiny_bert, reviews, task))
    with pytest.raises(HardwareError, match=r"and training.augmentation.mixup needs the rows of a step in one pass"):
        train(tiny_recipe(tiny_bert, reviews).override("training.augmentation.mixup=0.5"))


def test_fault_10_what_is_only_read_goes_in_halves_too(
    tiny_bert: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers, and states that are kept; the machine's own refusal of all that has more than so many texts."""
    recipe = tiny_recipe(tiny_bert, reviews, method="head")
    plain = train(recipe)
    texts = [row["text"] for row in review_rows(11)]
    answers = [one.probabilities for one in Predictor.load(plain)(texts)]
    most, refused = 2, []

    def full(n_texts: int, by: str) -> None:
        if n_texts > most:
            refused.append(by)
            torch.empty(10**15)  # more than any machine has

    infer, below = Classify.infer, features.states_below

    def limited_infer(head: Classify, model: object, batch: Batch) -> list[np.ndarray]:
        full(batch["n_rows"], "infer")
        return infer(head, model, batch)

    def limited_below(*told: object, **inputs: torch.Tensor) -> torch.Tensor:
        full(len(inputs["input_ids"]), "states")
        return below(*told, **inputs)

    monkeypatch.setattr(Classify, "infer", limited_infer)
    monkeypatch.setattr(features, "states_below", limited_below)
    for one, whole in zip(Predictor.load(plain)(texts), answers, strict=True):
        assert one.probabilities == pytest.approx(whole, abs=1e-4)
    assert set(refused) == {"infer"}
    monkeypatch.setenv("TL_NLP_CACHE", str(tmp_path))
    again = train(recipe)
    for name, tensor in artifact(plain).items():
        torch.testing.assert_close(artifact(again)[name], tensor, rtol=1e-3, atol=1e-4)
    assert set(refused) == {"infer", "states"}
    most = 0
    with pytest.raises(HardwareError, match="out of memory with one text alone in a pass"):
        Predictor.load(plain)(texts)


# ---- one writer


def test_fault_11_a_lock_dies_with_its_holder(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from tl_nlp import disk\n"
        "with disk.locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        assert disk.is_locked(tmp_path)
        with pytest.raises(LockedError, match=f"by process {process.pid} on "), disk.locked(tmp_path):
            pass
        process.kill()
    assert not disk.is_locked(tmp_path) and disk.was_locked(tmp_path)
    with disk.locked(tmp_path):
        assert disk.is_locked(tmp_path)


def test_fault_11_runs_begun_at_once_have_names_of_their_own(tiny_bert: Path, reviews: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_bert, reviews)
    code = (
        "import sys; from pathlib import Path; from tl_nlp import Recipe, Run\n"
        "recipe = Recipe.model_validate_json(sys.argv[1]); sys.stdin.readline()\n"
        "for _ in range(20): print(Run.create(recipe, Path(sys.argv[2])).folder)"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, recipe.model_dump_json(), str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    with ThreadPoolExecutor(len(processes)) as threads:
        folders = "".join(threads.map(lambda process: process.communicate("\n")[0], processes)).split()
    assert len(set(folders)) == len(folders) == 80
    assert all(json.loads((Path(folder) / "recipe.json").read_text())["name"] == "tiny" for folder in folders)
