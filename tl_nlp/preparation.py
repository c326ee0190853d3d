"""All of a training that comes before its model: rows read, encoded and checked, and what baselines are made from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pyarrow as pa

from tl_nlp import baselines, features
from tl_nlp.artifact import locate
from tl_nlp.baselines import Given, given
from tl_nlp.batches import Encoded, window_lengths
from tl_nlp.cache import made_of, remembered_table
from tl_nlp.checking import check, sampled
from tl_nlp.evaluation import references
from tl_nlp.features import Frozen
from tl_nlp.findings import Finding
from tl_nlp.hardware import best_device
from tl_nlp.model import check as check_model
from tl_nlp.model import load_base, placed
from tl_nlp.objective import Objective
from tl_nlp.pretrained import load_tokenizer
from tl_nlp.recipe import Recipe
from tl_nlp.rejects import Rejects
from tl_nlp.rows import resolved
from tl_nlp.teacher import Teacher

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


@dataclass
class Prepared:
    """A recipe with its labels resolved, and all that comes before the weights: rows read, encoded, and checked."""

    recipe: Recipe
    folder: Path  # of the checkpoint
    tokenizer: Any
    rows: DatasetDict
    rejects: Rejects
    encoded: dict[str, Encoded]
    lengths: list[list[int]]  # tokens of the windows of the training rows
    objective: Objective
    teacher: Teacher | None = None


def prepare(recipe: Recipe) -> Prepared:
    """Everything of a training that needs no weights, so that most faults are told before they are loaded."""
    described = locate(recipe.checkpoint, with_weights=False)
    tokenizer = load_tokenizer(described)
    check_model(recipe, described, tokenizer)
    folder = locate(recipe.checkpoint)
    rejects = Rejects()
    task, rows = resolved(recipe, rejects)
    # tests too, so that a target that does not fit is told before the training and not after it
    encoded = {split: _encode(rows[split], task, tokenizer, split) for split in rows}
    objective = Objective.of(recipe.training, task.outputs(), encoded["train"])
    lengths = window_lengths(encoded["train"])
    checkpoint = recipe.checkpoint
    if folder.parent.name == "snapshots":  # the commit that the Hub had, so that later runs begin with the same
        checkpoint = checkpoint.model_copy(update={"revision": folder.name})
    resolved_recipe = recipe.model_copy(update={"task": task, "checkpoint": checkpoint})
    teacher = Teacher(recipe.training.distillation) if recipe.training.distillation else None
    if teacher is not None:
        teacher.check(task, tokenizer, rows, encoded["train"])
    return Prepared(resolved_recipe, folder, tokenizer, rows, rejects, encoded, lengths, objective, teacher)


def checked(prepared: Prepared, n_tokens: int | None = None) -> tuple[list[Finding], Frozen | None]:
    """What the data check finds; and the checkpoint's own features, of which it has looked at a sample's: whole, which
    baselines want too, or at `n_tokens` of them at most."""
    recipe, rows = prepared.recipe, prepared.rows
    frozen = states = None
    if recipe.task.head in ("classify", "multilabel", "regress"):
        model = placed(load_base(recipe, prepared.folder), best_device())
        pad_id = prepared.tokenizer.pad_token_id or 0
        frozen = Frozen(model, prepared.encoded, pad_id, recipe.training.precision)
        places = sampled(len(rows["train"]))
        states = frozen.of("train", places) if n_tokens is None else frozen.glance("train", places, n_tokens)
    tokens = {}
    for split, encoded in prepared.encoded.items():
        cut = np.asarray(encoded["cut"][:])
        tokens[split] = np.asarray([sum(windows) for windows in window_lengths(encoded)]) + cut, cut
    return check(rows, recipe.task, prepared.rejects, tokens, states), frozen


def given_by(prepared: Prepared, frozen: Frozen | None) -> Given:
    """What baselines are made from; frozen features of each row that they learn from or answer."""
    rows, n_rows = prepared.rows, len(prepared.rows["train"])
    learned, encoded = sampled(n_rows, baselines.MAX_ROWS), sampled(n_rows, baselines.MAX_FROZEN)
    states = {}
    if prepared.recipe.task.head == "select":
        encoded = learned
        states = _sentence_states(
            prepared, {name: r.select(learned) if name == "train" else r for name, r in rows.items()}
        )
    elif frozen is not None:
        for split, theirs in rows.items():
            states[split] = frozen.of(split, encoded if split == "train" else np.arange(len(theirs)))
    return given(prepared.recipe.task, rows, states, learned, encoded)


def _sentence_states(prepared: Prepared, splits: dict[str, Dataset]) -> dict[str, np.ndarray]:
    """The checkpoint's own features of every sentence of every split, of shape (sentences, hidden). Each different
    sentence is read once and by itself, so that papers with three aspects cost no more than one."""
    recipe, task = prepared.recipe, prepared.recipe.task
    sentences = {split: list(chain(*task.sentences_of(references(task, rows)))) for split, rows in splits.items()}
    place_of = {sentence: place for place, sentence in enumerate(dict.fromkeys(chain(*sentences.values())))}
    options = {"truncation": True, "max_length": task.max_length, "return_attention_mask": False}
    ids = prepared.tokenizer(list(place_of), **options)["input_ids"]
    model = placed(load_base(recipe, prepared.folder), best_device())
    pad_id, precision = prepared.tokenizer.pad_token_id or 0, recipe.training.precision
    encoded = datasets.Dataset.from_dict({"input_ids": [[window] for window in ids]})
    states = features.embeddings(model, encoded, pad_id, precision, "features of sentences")
    return {split: states[[place_of[sentence] for sentence in theirs]] for split, theirs in sentences.items()}


def _encode(rows: Dataset, task: Any, tokenizer: Any, split: str) -> Dataset:
    """Token ids and labels, kept for the next run on these rows."""

    def encoded() -> pa.Table:
        return rows.map(
            lambda batch: task.encode(batch, tokenizer),
            batched=True,
            remove_columns=rows.column_names,
            load_from_cache_file=False,  # ours sees an edited `encode` too
            keep_in_memory=True,
            new_fingerprint=split,
            desc=f"tokenizing {split}",
        ).data.table

    told = _told(tokenizer)
    file = made_of("tokens", rows.with_format("arrow")[:], task, told) if told else None
    return datasets.Dataset(datasets.table.InMemoryTable(remembered_table(file, encoded)), fingerprint=split)


def _told(tokenizer: Any) -> str | None:
    """All that tokens depend on beside the text; None for a tokenizer in Python, which tells less."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    told = json.loads(backend.to_str())
    of_calls = ("truncation", "padding")  # as the last call had them
    own = {name: value for name, value in told.items() if name not in of_calls}
    return repr((type(tokenizer).__name__, own, tokenizer.special_tokens_map, tokenizer.model_max_length))
