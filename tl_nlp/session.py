"""A session of a training: alone with its run, on what the run began with."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from tl_nlp import disk
from tl_nlp.environment import changes, git_revision, versions
from tl_nlp.errors import Interrupted, RunError
from tl_nlp.hardware import device_name
from tl_nlp.pretrained import file_hash
from tl_nlp.recipe import Recipe
from tl_nlp.rows import fingerprint
from tl_nlp.run import Run
from tl_nlp.signals import Stopped

if TYPE_CHECKING:
    from accelerate import Accelerator
    from datasets import DatasetDict


@contextmanager
def alone(run: Run, accelerator: Accelerator) -> Iterator[None]:
    """Within the block this training alone writes the run. Raises LockedError, NoRoomError where the disk is full, and
    Interrupted where a signal stops it at once."""
    what = f"what the training writes; tl-nlp train {run.folder} goes on once there is"
    try:
        with run.locked() if accelerator.is_main_process else nullcontext(), disk.room(run.folder, 0, what):
            yield
    except Stopped as stopped:
        raise Interrupted(
            f"{stopped}; tl-nlp train {run.folder} goes on from its last checkpoint", stopped.number
        ) from None


def note_start(
    run: Run,
    recipe: Recipe,
    rows: DatasetDict,
    checkpoint: Path,
    teacher: dict[str, str] | None,
    accelerator: Accelerator,
) -> None:
    """Writes environment.json; `checkpoint` is the folder of the recipe's, `teacher` the sha256 of its teacher's files.

    Raises RunError for a run that goes on with other data, another checkpoint or another teacher; where it does on
    another machine, or with other versions, it tells that last bits may differ.
    """
    known = {name: split["fingerprint"] for name, split in run.data().get("splits", {}).items()}
    found = {name: fingerprint(theirs) for name, theirs in rows.items()} if known else {}
    if changed := [name for name in {**known, **found} if known.get(name) != found.get(name)]:
        raise RunError(
            f"the {changed[0]} rows are not those {run.folder} began with, so it cannot go on exactly; "
            "put the data back, or train anew from the recipe"
        )
    environment = {
        "versions": versions(),
        "git_revision": git_revision(),
        "device": str(accelerator.device),
        "device_name": device_name(accelerator.device),
        "n_processes": accelerator.num_processes,
        "command": shlex.join(sys.argv),
        "seeds": {"training": recipe.training.seed, "data": recipe.data.seed},
        "checkpoint": {path.name: file_hash(path) for path in sorted(checkpoint.glob("*.safetensors"))},
    }
    pinned = {"checkpoint": recipe.checkpoint.name}
    if teacher is not None and recipe.training.distillation is not None:
        environment["teacher"] = teacher
        pinned["teacher"] = recipe.training.distillation.teacher
    if run.is_begun:
        before = run.environment()
        if "compiled" in before:
            environment["compiled"] = before["compiled"]  # steps go on as they were
        for key, name in pinned.items():
            if before.get(key, environment[key]) != environment[key]:
                raise RunError(
                    f"the weights of {name} are not those {run.folder} began with, so it cannot go on exactly; put "
                    "them back, or train anew from the recipe"
                )
        if unlike := changes(before, environment):
            print(f"the last bits of weights may be others than without the stop: {'; '.join(unlike)}", file=sys.stderr)
    run.write_environment(environment)
