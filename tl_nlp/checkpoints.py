"""Checkpoints of a training: complete or absent, whole or left out, and nothing in them is pickled.

One is a directory: weights and optimizer moments as safetensors, progress as JSON, and a manifest with their hashes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from tl_nlp.errors import RunError
from tl_nlp.run import Run

_WEIGHTS, _MOMENTS, _AVERAGES, _PROGRESS, _MANIFEST = (
    "weights.safetensors",
    "optimizer.safetensors",
    "averages.safetensors",
    "progress.json",
    "manifest.json",
)


@dataclass
class State:
    """What a training needs to go on: weights and optimizer moments by name, averages if any, and how far it is."""

    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    averages: dict[str, Tensor]
    progress: dict[str, Any]


def write(run: Run, step: int, state: State, keep: set[int]) -> None:
    """Writes the checkpoint of `step`, then removes those of steps not in `keep`."""
    with run.writing(run.checkpoint_dir(step)) as folder:
        save_file(_plain(state.weights), folder / _WEIGHTS)
        save_file(_plain(state.moments), folder / _MOMENTS)
        save_file(_plain(state.averages), folder / _AVERAGES)
        (folder / _PROGRESS).write_text(json.dumps(state.progress), "utf-8")
        manifest = {path.name: _sha256(path) for path in sorted(folder.iterdir())}
        (folder / _MANIFEST).write_text(json.dumps(manifest, indent=2), "utf-8")
    for other in run.checkpoint_steps():
        if other not in keep:
            shutil.rmtree(run.checkpoint_dir(other))


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors takes them: without gradients, contiguous."""
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def read(folder: Path) -> State:
    """The checkpoint in `folder`. Raises RunError where a file is missing or not what was written."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text("utf-8"))
        changed = [name for name, digest in manifest.items() if _sha256(folder / name) != digest]
    except (OSError, ValueError) as error:
        raise RunError(f"checkpoint {folder} cannot be read: {error}") from None
    if changed:
        raise RunError(f"checkpoint {folder} is damaged: {changed[0]} is not as it was written")
    progress = json.loads((folder / _PROGRESS).read_text("utf-8"))
    weights, moments, averages = (load_file(folder / name) for name in (_WEIGHTS, _MOMENTS, _AVERAGES))
    return State(weights, moments, averages, progress)


def newest(run: Run) -> State | None:
    """The newest checkpoint that is whole; damaged ones are named on stderr and left out."""
    for step in reversed(run.checkpoint_steps()):
        try:
            return read(run.checkpoint_dir(step))
        except RunError as error:
            print(f"{error}; it is left out", file=sys.stderr)
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
