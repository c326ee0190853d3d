"""The run that a student learns from: found, held to the student's task, asked about the training rows."""

from __future__ import annotations

import sys
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from tl_nlp.batches import Columns, Encoded, collate, window_lengths
from tl_nlp.errors import NoRunError, RecipeError
from tl_nlp.hardware import in_passes, inferring
from tl_nlp.hub import local
from tl_nlp.prediction import Predictor
from tl_nlp.pretrained import file_hash, load_tokenizer
from tl_nlp.rows import columns_of, hashes
from tl_nlp.run import Run, artifact_folder, is_export, read_recipe
from tl_nlp.types import COLUMNS

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from tl_nlp.recipe import Distillation, Task

_CHUNK = 10_000  # rows that are encoded at once
_TRIED = 200  # rows that two tokenizers are compared on
_MOST_SEEN = 0.01  # of a test split that a teacher may have learned from
_KEY = "training.distillation.teacher"


class Teacher:
    """A trained run, known by its recipe until it is loaded.

    Raises RecipeError for what is no run or answers without weights, HubError for a Hub that cannot be reached.
    """

    def __init__(self, choices: Distillation):
        self.choices = choices
        try:
            folder = local(choices.teacher)
            self.run, self.artifact = Run.find(folder), artifact_folder(folder)
        except NoRunError as error:
            raise RecipeError(str(error), _KEY) from None
        if is_export(self.artifact):
            raise RecipeError(f"{choices.teacher} is an export; name the run that it was made from", _KEY)
        self.task: Task = read_recipe(self.artifact).task

    def hashes(self) -> dict[str, str]:
        """The sha256 of each file of its weights."""
        return {path.name: file_hash(path) for path in sorted(self.artifact.glob("*.safetensors"))}

    def check(self, task: Task, tokenizer: Any, rows: DatasetDict, encoded: Encoded) -> None:
        """Refuses a student of another task, or one that would be tested on what the teacher has learned from; and one
        that reads other tokens, where states are compared. `encoded` are the student's training rows."""
        if self.task.head != task.head:
            raise RecipeError(
                f"{self.choices.teacher} does the task {self.task.kind}, and the student {task.kind}", _KEY
            )
        if self.task.terms() != task.terms():
            theirs, ours = (
                ", ".join(f"{name} {_told(value)}" for name, value in terms.items())
                for terms in (self.task.terms(), task.terms())
            )
            raise RecipeError(
                f"{self.choices.teacher} answers in {theirs}, and the student in {ours}; they must be the same, in one "
                "order",
                _KEY,
            )
        self._refuse_seen(rows)
        if self.choices.looks_inside:
            self._refuse_other_tokens(task, tokenizer, rows["train"], encoded)

    def _refuse_seen(self, rows: DatasetDict) -> None:
        known = self.run.trained_hashes() if self.run else np.empty(0, np.uint64)
        for split in (name for name in rows if name not in ("train", "validation")):
            n_seen = int(np.isin(hashes(rows[split]), known).sum())
            if n_seen > _MOST_SEEN * len(rows[split]):
                raise RecipeError(
                    f"{self.choices.teacher} learned from {n_seen} of the {len(rows[split])} rows of {split}, which "
                    "would not be new to the student; a teacher of the same data, data.seed and data.fold has not",
                    _KEY,
                )

    def _refuse_other_tokens(self, task: Task, tokenizer: Any, train: Dataset, encoded: Encoded) -> None:
        key, own = "training.distillation", load_tokenizer(self.artifact)
        key += ".hidden" if self.choices.hidden else ".relations"
        tried = train.select(range(min(_TRIED, len(train))))
        columns = columns_of(tried, (*COLUMNS, *task.columns))
        is_same = own.get_vocab() == tokenizer.get_vocab()
        if not is_same or task.encode(columns, own)["input_ids"] != encoded[: len(tried)]["input_ids"]:
            raise RecipeError(
                f"compares token by token, and {self.choices.teacher} has another tokenizer than the student's "
                f"checkpoint; {key}=0 learns from its answers alone",
                key,
            )
        if task.max_length > self.task.max_length:
            raise RecipeError(
                f"the teacher reads {self.task.max_length} tokens at once, and the student {task.max_length}; "
                f"task.max_length={self.task.max_length} gives both the same windows",
                key,
            )

    def load(self) -> Predictor:
        """Raises CheckpointError."""
        return Predictor.load(self.artifact)


def soft_targets(teacher: Predictor, rows: Dataset) -> list[list[float]]:
    """What a student learns of a teacher's answers to rows: for each a number for each label or trait. The teacher
    reads the texts by its own tokenizer and windows, in eval mode; its calibration does not act."""
    names = tuple(name for name in (*COLUMNS, *teacher.task.columns) if name != "target")
    found: list[list[float]] = [[]] * len(rows)
    with tqdm(total=len(rows), desc="the teacher's answers", unit="row", file=sys.stderr) as bar:
        for start in range(0, len(rows), _CHUNK):
            chunk = rows.select(range(start, min(start + _CHUNK, len(rows))))
            encoded = Columns(teacher.task.encode(columns_of(chunk, names), teacher.tokenizer))
            with inferring(teacher.model, teacher.precision):
                for places in teacher.passes(window_lengths(encoded)):
                    answers = chain.from_iterable(in_passes(places, partial(_answered, teacher, encoded)))
                    for place, one in zip(places, answers, strict=True):
                        found[start + place] = one
                    bar.update(len(places))
    return found


def _answered(teacher: Predictor, encoded: Columns, places: list[int]) -> list[list[float]]:
    batch = collate(encoded[places], teacher.pad_id, next(teacher.model.parameters()).device)
    return teacher.head.soft_targets(teacher.head.logits(teacher.model, batch)).tolist()


def with_soft_targets(encoded: Dataset, teacher: Predictor, rows: Dataset) -> Dataset:
    """Encoded rows with a column of a teacher's answers."""
    return encoded.add_column("soft_targets", soft_targets(teacher, rows), new_fingerprint="train-soft-targets")


def _told(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)
