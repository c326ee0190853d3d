"""From a recipe to a finished run."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from tl_nlp import augmentation, features, memory
from tl_nlp.artifact import locate, save_artifact
from tl_nlp.batches import Encoded, window_lengths
from tl_nlp.errors import RecipeError, RunError
from tl_nlp.evaluation import score, write_predictions
from tl_nlp.hardware import peak_rss_mb
from tl_nlp.heads import Objective
from tl_nlp.loop import Progress, fit
from tl_nlp.model import check, load_model, placed
from tl_nlp.prediction import Predictor
from tl_nlp.pretrained import load_tokenizer
from tl_nlp.recipe import Recipe
from tl_nlp.rows import columns_of, fingerprint
from tl_nlp.run import Run
from tl_nlp.schedule import Plan
from tl_nlp.steps import Steps, refuse_split_mixup
from tl_nlp.types import COLUMNS, Metrics

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


def train(recipe: Recipe | Run, *, root: Path | None = None) -> Run:
    """Trains a recipe into a new run under `root` (default: $TL_NLP_RUNS, else ./runs); a Run goes on where it stopped.

    Raises a TLError: see `tl_nlp.errors`. Under `accelerate launch` every process calls this and returns the same run.
    """
    if isinstance(recipe, Run) and recipe.is_finished:
        return recipe
    accelerator = Accelerator()
    given = recipe.recipe() if isinstance(recipe, Run) else recipe
    prepared = prepare(given)
    size = given.training.device_batch_size
    if isinstance(size, int):
        refuse_split_mixup(given.training, prepared.lengths, size, accelerator.num_processes)
    run = recipe if isinstance(recipe, Run) else _create(prepared.recipe, root, accelerator)
    if accelerator.is_main_process:
        _note_start(run, prepared, accelerator)
    steps, predictor = steps_of(prepared, accelerator)
    if accelerator.is_main_process:
        _note_size(run, steps)
    progress = _fit(steps, predictor, prepared, run)
    if accelerator.is_main_process:
        save_artifact(predictor.model, prepared.tokenizer, prepared.recipe, run)
        _finish(run, prepared, progress)
    accelerator.wait_for_everyone()
    return run


@dataclass
class Prepared:
    """A recipe with its labels resolved, and all that comes before the weights: rows read, encoded, and checked."""

    recipe: Recipe
    folder: Path  # of the checkpoint
    tokenizer: Any
    rows: DatasetDict
    encoded: dict[str, Encoded]
    lengths: list[list[int]]  # tokens of the windows of the training rows
    objective: Objective


def prepare(recipe: Recipe) -> Prepared:
    """Everything of a training that needs no weights, so that most faults are told before they are loaded."""
    described = locate(recipe.checkpoint, with_weights=False)
    tokenizer = load_tokenizer(described)
    check(recipe, described, tokenizer)
    folder = locate(recipe.checkpoint)
    rows = recipe.data.load()
    task = recipe.task.resolve(rows)
    # tests too, so that a target that does not fit is told before the training and not after it
    encoded = {split: _encode(rows[split], task, tokenizer, split) for split in rows}
    objective = Objective.of(recipe.training, task.outputs(), encoded["train"])
    lengths = window_lengths(encoded["train"])
    return Prepared(recipe.model_copy(update={"task": task}), folder, tokenizer, rows, encoded, lengths, objective)


def steps_of(prepared: Prepared, accelerator: Accelerator) -> tuple[Steps, Predictor]:
    """The loaded model: ready to take training steps, and to predict."""
    recipe, lengths = prepared.recipe, prepared.lengths
    model = placed(load_model(recipe, prepared.folder), accelerator.device)
    predictor = Predictor(model, prepared.tokenizer, recipe.task, recipe.training.precision)
    steps = Steps(
        model,
        predictor.head,
        prepared.objective,
        Plan.of(recipe, len(lengths)),
        _examples(prepared, model),
        lengths,
        accelerator,
        predictor.pad_id,
    )
    if recipe.training.device_batch_size == "auto":
        steps.device_batch_size = memory.largest_pass(steps)
        refuse_split_mixup(recipe.training, lengths, steps.device_batch_size, accelerator.num_processes)
    return steps, predictor


def _examples(prepared: Prepared, model: Any) -> Callable[[int], Encoded]:
    """The encoded training rows of an epoch: always the same ones, or changed on the fly."""
    encoded, training = prepared.encoded["train"], prepared.recipe.training
    choices = training.augmentation
    if not choices.changes_rows:
        return lambda epoch: encoded
    rows = prepared.rows["train"]
    if choices.changes_words and not any(" " in text.strip() for text in rows["text"]):
        raise RecipeError(
            "words are told by the spaces between them, and no text here has two", "training.augmentation"
        )
    neighbours = {}
    if choices.word_replacement:
        neighbours = augmentation.neighbours(model, prepared.tokenizer, rows["text"][:])
        if not neighbours:
            raise RecipeError(
                "no word of the texts is one token of this checkpoint, so none has a neighbour",
                "training.augmentation.word_replacement",
            )
    changed = partial(
        augmentation.Augmented, rows, encoded, prepared.recipe.task, prepared.tokenizer, choices, training.seed
    )
    return lambda epoch: changed(epoch, neighbours)


def _create(recipe: Recipe, root: Path | None, accelerator: Accelerator) -> Run:
    """The new run, made by the main process and known to all."""
    made = [str(Run.create(recipe, root).folder) if accelerator.is_main_process else None]
    return Run(Path(broadcast_object_list(made)[0]))


def _encode(rows: Dataset, task: Any, tokenizer: Any, split: str) -> Dataset:
    """Token ids and labels. Kept in memory and never taken from a cache, which would not see an edited `encode`."""
    return rows.map(
        lambda batch: task.encode(batch, tokenizer),
        batched=True,
        remove_columns=rows.column_names,
        load_from_cache_file=False,
        keep_in_memory=True,
        new_fingerprint=split,
        desc=f"tokenizing {split}",
    )


def _note_start(run: Run, prepared: Prepared, accelerator: Accelerator) -> None:
    """Writes data.json and environment.json; a resumed run whose data has changed is refused with a RunError."""
    rows, recipe = prepared.rows, prepared.recipe
    splits = {name: {"rows": len(split), "fingerprint": fingerprint(split)} for name, split in rows.items()}
    tokens_cut = {name: int(sum(split["cut"])) for name, split in prepared.encoded.items()}
    before = run.data().get("splits", splits)
    changed = [name for name in splits if before.get(name) != splits[name]]
    if changed:
        raise RunError(
            f"the {changed[0]} rows are not those {run.folder} began with, so it cannot go on exactly; "
            "put the data back, or train anew from the recipe"
        )
    run.write_data({"splits": splits, "tokens_cut": tokens_cut})
    for name, n_cut in tokens_cut.items():
        if n_cut:
            print(
                f"{name}: {n_cut} tokens of long texts are in no window and are not seen; "
                "task.max_length and task.max_windows set how many are",
                file=sys.stderr,
            )
    run.write_environment(
        {
            "versions": {"python": platform.python_version(), **_versions()},
            "git_revision": _git_revision(),
            "device": str(accelerator.device),
            "n_processes": accelerator.num_processes,
            "command": shlex.join(sys.argv),
            "seeds": {"training": recipe.training.seed, "data": recipe.data.seed},
        }
    )


def _note_size(run: Run, steps: Steps) -> None:
    """Prints what the model takes and how much of it learns, and adds it to environment.json."""
    size = memory.footprint(steps.model, steps.weights.by_name)
    size["device_batch_size"] = steps.device_batch_size
    run.write_environment({**run.environment(), "model": size})
    recipe = steps.recipe
    formats = ", ".join(f"{count:,} in {name}" for name, count in size["dtypes"].items())
    print(
        f"{recipe.method.kind} on {recipe.checkpoint.name}: {size['learning']:,} of {size['weights']:,} weights learn "
        f"({100 * size['learning'] / size['weights']:.3g} %); {formats}\n"
        f"memory: {size['weights_mb']:g} MB of weights, {size['optimizer_mb']:g} MB of gradients and moments; "
        f"{size['device_batch_size']} sequences in one pass",
        file=sys.stderr,
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in ("tl-nlp", "torch", "transformers", "datasets", "peft", "accelerate", "evaluate", "bitsandbytes"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _git_revision() -> str | None:
    try:
        asked = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() or None


def _fit(steps: Steps, predictor: Predictor, prepared: Prepared, run: Run) -> Progress:
    """Trains the model, on features of its backbone where that is frozen."""
    recipe, encoded, model = prepared.recipe, prepared.encoded, predictor.model
    task, accelerator = recipe.task, steps.accelerator
    shown = [encoded["train"], encoded["validation"]]
    cached = not recipe.training.augmentation.changes_rows and features.is_cacheable(
        model, set(steps.weights.by_name), shown
    )
    started = time.perf_counter()
    if cached:
        encoded = {
            split: features.compute(
                model, encoded[split], predictor.pad_id, recipe.training.precision, f"features of {split}"
            )
            for split in ("train", "validation")
        }
        steps.examples = lambda epoch: encoded["train"]
    seconds = time.perf_counter() - started
    references = columns_of(prepared.rows["validation"], (*COLUMNS, *task.columns))
    mine = range(accelerator.process_index, len(prepared.rows["validation"]), accelerator.num_processes)
    shard = encoded["validation"].select(mine)

    def validate() -> Metrics:
        found = gather_object(list(zip(mine, predictor.infer(shard), strict=True)))
        outputs = [output for _, output in sorted(found, key=lambda pair: pair[0])]
        return task.score(task.decode(outputs, references, prepared.tokenizer), references)

    with features.reading_features(model) if cached else nullcontext():
        progress = fit(steps, validate, task.main_metric, run)
    progress.seconds += seconds
    return progress


def _finish(run: Run, prepared: Prepared, progress: Progress) -> None:
    """Scores the artifact on every test split, from disk, and writes results.json."""
    recipe, rows = prepared.recipe, prepared.rows
    predictor = Predictor.load(run)
    splits = {}
    for split in [name for name in rows if name not in ("train", "validation")]:
        splits[split], predictions = score(predictor, rows[split])
        write_predictions(run.predictions_file(split), rows[split], predictions)
    run.write_results(
        {
            "format": 1,
            "main_metric": recipe.task.main_metric,
            "task": recipe.task.kind,
            "splits": splits,
            "train": {
                "seconds": round(progress.seconds, 1),
                "examples_per_second": round(progress.rows / max(progress.seconds, 1e-9), 1),
                "peak_rss_mb": round(peak_rss_mb()),
            },
        }
    )
