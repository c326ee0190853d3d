"""From a recipe to a finished run."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from tl_nlp import features
from tl_nlp.batches import Encoded
from tl_nlp.errors import RunError
from tl_nlp.evaluation import score, write_predictions
from tl_nlp.hardware import peak_rss_mb
from tl_nlp.loop import Weights, fit
from tl_nlp.model import check_length, load_model, load_tokenizer, locate, placed, save_artifact
from tl_nlp.prediction import Predictor
from tl_nlp.recipe import Recipe
from tl_nlp.rows import columns_of, fingerprint
from tl_nlp.run import Run
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
    folder = locate(given.checkpoint)
    tokenizer = load_tokenizer(folder)
    check_length(given, folder, tokenizer)
    rows = given.data.load()
    task = given.task.resolve(rows)
    resolved = given.model_copy(update={"task": task})
    # tests too, so that a target that does not fit is told before the training and not after it
    encoded = {split: _encode(rows[split], task, tokenizer, split) for split in rows}
    run = recipe if isinstance(recipe, Run) else _create(resolved, root, accelerator)
    if accelerator.is_main_process:
        _note_start(run, resolved, rows, encoded, accelerator)
    model = placed(load_model(resolved, folder), accelerator.device)
    if accelerator.is_main_process:
        _print_size(model, resolved)
    progress = _fit(model, tokenizer, resolved, rows, encoded, run, accelerator)
    if accelerator.is_main_process:
        save_artifact(model, tokenizer, resolved, run)
        _finish(run, resolved, rows, progress.seconds, progress.rows)
    accelerator.wait_for_everyone()
    return run


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


def _note_start(
    run: Run, recipe: Recipe, rows: DatasetDict, encoded: dict[str, Encoded], accelerator: Accelerator
) -> None:
    """Writes data.json and environment.json; a resumed run whose data has changed is refused with a RunError."""
    splits = {name: {"rows": len(split), "fingerprint": fingerprint(split)} for name, split in rows.items()}
    tokens_cut = {name: int(sum(split["cut"])) for name, split in encoded.items()}
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


def _print_size(model: Any, recipe: Recipe) -> None:
    learning = Weights.of(model, recipe.method, recipe.training.epochs).by_name.values()
    n_learning, n_all = sum(w.numel() for w in learning), sum(w.numel() for w in model.parameters())
    print(
        f"{recipe.method.kind} on {recipe.checkpoint.name} ({recipe.checkpoint.load_in}): "
        f"{n_learning:,} of {n_all:,} weights learn",
        file=sys.stderr,
    )


def _fit(
    model: Any,
    tokenizer: Any,
    recipe: Recipe,
    rows: DatasetDict,
    encoded: dict[str, Encoded],
    run: Run,
    accelerator: Accelerator,
) -> Any:
    """Trains `model`, on features of its backbone where that is frozen."""
    task, training = recipe.task, recipe.training
    predictor = Predictor(model, tokenizer, task, training.precision)
    learning = set(Weights.of(model, recipe.method, training.epochs).by_name)
    cached = features.is_cacheable(model, learning, [encoded["train"], encoded["validation"]])
    if cached:
        encoded = {
            split: features.compute(model, encoded[split], predictor.pad_id, training.precision, f"features of {split}")
            for split in ("train", "validation")
        }
    references = columns_of(rows["validation"], (*COLUMNS, *task.columns))
    mine = range(accelerator.process_index, len(rows["validation"]), accelerator.num_processes)
    shard = encoded["validation"].select(mine)

    def validate() -> Metrics:
        found = gather_object(list(zip(mine, predictor.infer(shard), strict=True)))
        outputs = [output for _, output in sorted(found, key=lambda pair: pair[0])]
        return task.score(task.decode(outputs, references, tokenizer), references)

    with features.reading_features(model) if cached else nullcontext():
        return fit(
            model,
            predictor.head,
            recipe.method,
            encoded["train"],
            validate,
            task.main_metric,
            training,
            run,
            accelerator,
            predictor.pad_id,
        )


def _finish(run: Run, recipe: Recipe, rows: DatasetDict, seconds: float, n_seen: int) -> None:
    """Scores the artifact on every test split, from disk, and writes results.json."""
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
                "seconds": round(seconds, 1),
                "examples_per_second": round(n_seen / max(seconds, 1e-9), 1),
                "peak_rss_mb": round(peak_rss_mb()),
            },
        }
    )
