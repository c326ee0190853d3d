"""Trainings that are stopped on purpose: in a process of their own by real signals, or in this one at a given step."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import artifact

from tl_nlp import Recipe, Run, train
from tl_nlp.errors import Interrupted


def until(is_so: Callable[[], Any], process: subprocess.Popen[str], seconds: float = 120) -> None:
    """Waits for something that a process brings about."""
    deadline = time.time() + seconds
    while not is_so():
        assert process.poll() is None, f"it ended with {process.returncode}: {process.communicate()[1]}"
        assert time.time() < deadline, "it did not happen"
        time.sleep(0.005)


def begun(run: Run | Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    """`tl-nlp train` of a run, or of a recipe's file, in a process of its own."""
    target = run.folder if isinstance(run, Run) else run
    return subprocess.Popen(
        [sys.executable, "-m", "tl_nlp", "train", str(target), *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def killed_beyond(run: Run, step: int) -> int:
    """kill -9 of a training once its run has a whole checkpoint beyond a step; the newest one's step."""
    process = begun(run)
    until(lambda: run.checkpoint_steps()[-1:] > [step], process)
    process.kill()
    process.communicate()
    assert not run.is_finished
    return run.checkpoint_steps()[-1]


def stopped_at(recipe: Recipe | Run, step: int, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The run of a training that a SIGTERM stops in its step, with a checkpoint of it."""
    log, runs = Run.log, []

    def stop(run: Run, at: int, *values: Any) -> None:
        log(run, at, *values)
        if at == step:
            runs.append(run)
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", stop)
        with pytest.raises(Interrupted, match=f"stopped by SIGTERM at step {step} of"):
            train(recipe)
    return runs[0]


def assert_same(run: Run, whole: Run) -> None:
    """Two runs have trained the same weights, bit for bit, and told the same on the way."""
    one, other = artifact(run), artifact(whole)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], tensor) for name, tensor in other.items())
    (file,) = run.model_dir.glob("*.safetensors")
    assert file.read_bytes() == (whole.model_dir / file.name).read_bytes()
    assert run.history() == whole.history()
    for split, scores in whole.results()["splits"].items():
        assert run.results()["splits"][split]["metrics"] == scores["metrics"]
