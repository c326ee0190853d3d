"""Checkpoints of a training: complete or absent, whole or left out, and nothing in them is pickled.

One is a directory: weights and optimizer moments as safetensors, progress as JSON, and a manifest with their sizes and
hashes. There is no state of a random generator in it: all chance is drawn from the seed and the number of the step.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tl_nlp.disk import remove, room, writing
from tl_nlp.errors import RunError
from tl_nlp.run import Run

WEIGHTS, MOMENTS, AVERAGES, PROGRESS = (
    "weights.safetensors",
    "optimizer.safetensors",
    "averages.safetensors",
    "progress.json",
)
MANIFEST = "manifest.json"
_ROOM = 10**5  # bytes, for what goes with the tensors


@dataclass
class State:
    """What a training needs to go on: weights and optimizer moments by name, averages if any, how far it is, and the
    recipe that it follows."""

    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    averages: dict[str, Tensor]
    progress: dict[str, Any]
    recipe: dict[str, Any]


class _NoMomentsError(RunError):
    """A checkpoint without its optimizer's state."""


def write(run: Run, step: int, state: State, keep: set[int]) -> None:
    """Writes the checkpoint of `step`, then removes those of steps not in `keep`. Raises NoRoomError."""
    parts = {WEIGHTS: state.weights, MOMENTS: state.moments, AVERAGES: state.averages}
    n_bytes = _ROOM + sum(tensor.nbytes for tensors in parts.values() for tensor in tensors.values())
    what = f"the checkpoint of step {step}, so the training stops, and tl-nlp train {run.folder} goes on once there is"
    with room(run.folder, n_bytes, what), writing(run.checkpoint_dir(step)) as folder:
        for name, tensors in parts.items():
            save_file(_plain(tensors), folder / name)
        (folder / PROGRESS).write_text(json.dumps({"progress": state.progress, "recipe": state.recipe}), "utf-8")
        manifest = {path.name: _described(path) for path in sorted(folder.iterdir())}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2), "utf-8")
    for other in run.checkpoint_steps():
        if other not in keep:
            remove(run.checkpoint_dir(other))


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors takes them: without gradients, contiguous."""
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _described(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def check(folder: Path, *, without_moments: bool = False) -> None:
    """Raises RunError where a file of the checkpoint in `folder` is missing or not as it was written."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        sizes = {name: (manifest[name]["bytes"], manifest[name]["sha256"]) for name in _PARTS}
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise RunError(f"checkpoint {folder} cannot be read: its {MANIFEST} is damaged or missing ({error})") from None
    for name, (n_bytes, digest) in sizes.items():
        if name == MOMENTS and without_moments:
            continue
        path = folder / name
        if not path.is_file():
            raise (_NoMomentsError if name == MOMENTS else RunError)(
                f"checkpoint {folder} is damaged: {name} is missing"
            )
        found = path.stat().st_size
        if found != n_bytes:
            raise RunError(f"checkpoint {folder} is damaged: {name} has {found:,} bytes, not {n_bytes:,}")
        if _described(path)["sha256"] != digest:
            raise RunError(f"checkpoint {folder} is damaged: {name} is not as it was written")


_PARTS = (WEIGHTS, MOMENTS, AVERAGES, PROGRESS)


def read(folder: Path, *, without_moments: bool = False) -> State:
    """The checkpoint in `folder`. Raises RunError where a file is missing or not what was written."""
    check(folder, without_moments=without_moments)
    try:
        told = json.loads((folder / PROGRESS).read_text("utf-8"))
        names = (WEIGHTS, AVERAGES) if without_moments else (WEIGHTS, AVERAGES, MOMENTS)
        weights, averages, *moments = (load_file(folder / name) for name in names)
        return State(weights, moments[0] if moments else {}, averages, told["progress"], told["recipe"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError, SafetensorError) as error:
        raise RunError(f"checkpoint {folder} cannot be read: {error}") from None


def newest(run: Run, *, weights_only: bool = False, tell: bool = True) -> State | None:
    """The newest checkpoint that is whole, and whose best one is; None where there is none, and the training begins
    again. What is left out is named on stderr, if `tell`.

    Raises RunError where the newest lacks nothing but its optimizer's state, without which other weights would come
    out: `weights_only` takes it so.
    """
    steps = run.checkpoint_steps()
    for step in reversed(steps):
        folder = run.checkpoint_dir(step)
        try:
            state = read(folder, without_moments=weights_only)
            best = state.progress.get("best_step")
            if best and best != step:
                check(run.checkpoint_dir(best), without_moments=True)
            return state
        except _NoMomentsError as error:
            raise RunError(
                f"{run.folder} cannot resume exactly: {error}; put the file back, or tl-nlp train {run.folder} "
                "--weights-only goes on from the weights of that step with a fresh optimizer, to other weights"
            ) from None
        except RunError as error:
            if tell:
                print(f"{error}; it is left out", file=sys.stderr)
    if steps and tell:
        print("no whole checkpoint is left, so the training begins again, to the same weights", file=sys.stderr)
    return None
