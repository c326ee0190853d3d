"""From a recipe to a finished run."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from tl_nlp import augmentation, baselines, memory
from tl_nlp.artifact import save_artifact
from tl_nlp.baselines import Given
from tl_nlp.batches import Encoded, window_lengths
from tl_nlp.checking import label_counts
from tl_nlp.compiling import settle
from tl_nlp.cost import Costs, Estimate
from tl_nlp.distillation import Inside
from tl_nlp.errors import RecipeError, StepMemoryError
from tl_nlp.evaluation import judged, read_predictions, references, score, write_predictions
from tl_nlp.hardware import old_objects_aside, peak_rss_mb, release, threads
from tl_nlp.loop import Progress, fit
from tl_nlp.model import load_model, placed
from tl_nlp.prediction import Predictor
from tl_nlp.preparation import Prepared, checked, given_by, prepare
from tl_nlp.recipe import Recipe, Task
from tl_nlp.reporting import write_report
from tl_nlp.rows import fingerprint, hashes
from tl_nlp.run import Run
from tl_nlp.schedule import Plan
from tl_nlp.session import alone, note_start
from tl_nlp.steps import Steps, refuse_split_steps
from tl_nlp.teacher import with_soft_targets
from tl_nlp.types import Metrics
from tl_nlp.watching import Watched, costs_of


def train_one(recipe: Recipe | Run, *, root: Path | None = None, weights_only: bool = False) -> Run:
    """Trains a recipe into one new run under `root`, whatever it says of seeds and folds; a Run goes on where it
    stopped, `weights_only` also from a checkpoint without its optimizer's state.

    Under `accelerate launch` every process calls this and returns the same run.
    """
    if isinstance(recipe, Run) and recipe.is_finished:
        if not recipe.report_file.is_file():  # killed behind the results
            write_report(recipe)
        return recipe
    accelerator = Accelerator()
    with ExitStack() as held:
        held.enter_context(old_objects_aside())
        if isinstance(recipe, Run):
            held.enter_context(alone(recipe, accelerator))
        asked = recipe.recipe() if isinstance(recipe, Run) else recipe
        held.enter_context(threads(asked.training.compute.threads))
        prepared = prepare(asked)
        size = asked.training.device_batch_size
        if isinstance(size, int):
            refuse_split_steps(asked.training, prepared.lengths, size, accelerator.num_processes)
        run = recipe if isinstance(recipe, Run) else create_run(prepared.recipe, root, accelerator)
        if not isinstance(recipe, Run):
            held.enter_context(alone(run, accelerator))
        _train(run, prepared, accelerator, weights_only)
    return run


def _train(run: Run, prepared: Prepared, accelerator: Accelerator, weights_only: bool) -> None:
    """From rows that are ready to a finished run."""
    known = None
    if accelerator.is_main_process:
        teacher = prepared.teacher.hashes() if prepared.teacher else None
        note_start(run, prepared.recipe, prepared.rows, prepared.folder, teacher, accelerator)
        known = _look_at(run, prepared)
    release()
    accelerator.wait_for_everyone()
    started = time.perf_counter()
    steps, predictor = steps_of(prepared, accelerator)
    loading = time.perf_counter() - started
    release()  # of the weights as they are stored, which may be four times as large
    if accelerator.is_main_process:
        _note_size(run, steps)
    watched = Watched.of(prepared, steps, predictor)
    compared = known.n_rows if known is not None else 0
    probe = partial(costs_of, prepared, steps, predictor, watched, compared, loading)
    estimate = _estimated(run, steps, probe, on_states=watched.later is not None)
    started = time.perf_counter()
    release()
    progress = _fit(steps, predictor, prepared, watched, run, weights_only)
    release()
    if known is not None:
        save_artifact(predictor.model, prepared.tokenizer, _calibrated(predictor, prepared, watched), run)
        del steps, predictor, probe
        release()  # or the model would be in memory twice while the artifact is scored
        _finish(run, prepared, watched, known, progress, estimate, started)
        write_report(run)
    accelerator.wait_for_everyone()


def steps_of(prepared: Prepared, accelerator: Accelerator) -> tuple[Steps, Predictor]:
    """The loaded model: ready to take training steps, and to predict."""
    recipe, lengths = prepared.recipe, prepared.lengths
    model = placed(load_model(recipe, prepared.folder), accelerator.device)
    predictor = Predictor(model, prepared.tokenizer, recipe.task, recipe.training.precision)
    states = _taught(prepared, model, accelerator)
    steps = Steps(
        model,
        predictor.head,
        prepared.objective,
        Plan.of(recipe, len(lengths)),
        _examples(prepared, model),
        lengths,
        accelerator,
        predictor.pad_id,
        states,
    )
    if recipe.training.device_batch_size == "auto":
        steps.device_batch_size = memory.largest_pass(steps)
        refuse_split_steps(recipe.training, lengths, steps.device_batch_size, accelerator.num_processes)
    return steps, predictor


def _taught(prepared: Prepared, student: Any, accelerator: Accelerator) -> Inside | None:
    """Adds a teacher's answers to the training rows, where they are wanted and not there yet; what holds the student to
    what goes on inside it, where that is wanted."""
    if prepared.teacher is None:
        return None
    choices, training = prepared.teacher.choices, prepared.recipe.training
    teacher = prepared.teacher.load()
    teacher.model = placed(teacher.model, accelerator.device)
    if choices.weight and "soft_targets" not in prepared.encoded["train"].column_names:
        prepared.encoded["train"] = with_soft_targets(prepared.encoded["train"], teacher, prepared.rows["train"])
    if not choices.looks_inside:
        return None
    return Inside(teacher.model, student, choices, training.precision, training.seed)


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


def create_run(recipe: Recipe, root: Path | None, accelerator: Accelerator) -> Run:
    """The new run, made by the main process and known to all."""
    made = [str(Run.create(recipe, root).folder) if accelerator.is_main_process else None]
    return Run(Path(broadcast_object_list(made)[0]))


def _look_at(run: Run, prepared: Prepared) -> Given:
    """Checks the data: writes data.json and what goes with it, tells what is wrong; returns what baselines need."""
    started = time.perf_counter()
    findings, frozen = checked(prepared)
    seconds = time.perf_counter() - started
    splits = {}
    for name, rows in prepared.rows.items():
        splits[name] = {"rows": len(rows), "fingerprint": fingerprint(rows)}
        if counts := label_counts(rows, prepared.recipe.task):
            splits[name]["labels"] = counts
    cut = {name: int(sum(encoded["cut"])) for name, encoded in prepared.encoded.items()}
    read = {name: sum(map(sum, window_lengths(encoded))) for name, encoded in prepared.encoded.items()}
    run.write_data(
        {
            "splits": splits,
            "tokens_cut": cut,
            "tokens_seen": {name: 1 - cut[name] / (cut[name] + read[name]) for name in cut},
            "rejects": len(prepared.rejects),
            "findings": [asdict(finding) for finding in findings],
            "seconds": round(seconds, 1),
        }
    )
    run.write_rejects([asdict(reject) for reject in prepared.rejects])
    run.write_hashes({name: hashes(rows) for name, rows in prepared.rows.items()})
    for finding in findings:
        if finding.severity != "note" or finding.name == "cut":
            print(finding, file=sys.stderr)
    return given_by(prepared, frozen)


def _note_size(run: Run, steps: Steps) -> None:
    """Prints what the model takes and how much of it learns, and adds it to environment.json."""
    size = memory.footprint(steps.model, steps.weights.of_model)
    size["device_batch_size"] = steps.device_batch_size
    run.write_environment({**run.environment(), "model": size})
    recipe = steps.recipe
    formats = ", ".join(f"{count:,} in {name}" for name, count in size["dtypes"].items())
    print(
        f"{recipe.method.kind} on {recipe.checkpoint.name}: {size['learning']:,} of {size['weights']:,} weights learn "
        f"({100 * size['learning'] / size['weights']:.3g} %); {formats}\n"
        f"memory: {size['weights_mb']:g} MB of weights, {size['optimizer_mb']:g} MB of gradients and moments; "
        f"at most {size['device_batch_size']} sequences in one pass",
        file=sys.stderr,
    )


def _estimated(run: Run, steps: Steps, probe: Callable[[int], Costs], on_states: bool) -> Estimate | None:
    """How long the rest of the run will take, by a `probe` from a step on, which is told once it is settled whether
    steps are compiled; None where the loop will tell why it cannot begin."""
    start = max(run.checkpoint_steps(), default=0)
    try:
        costs = probe(start)
    except StepMemoryError:
        return None
    before = run.environment().get("compiled")
    compiled = settle(steps, costs.of(steps.plan, start).training, start, before, on_states)
    if compiled != before and steps.accelerator.is_main_process:
        run.write_environment({**run.environment(), "compiled": compiled})
    if compiled:
        costs = probe(start)
    estimate = costs.of(steps.plan, start)
    if steps.accelerator.is_main_process:
        early = "; less if it stops early" if steps.training.patience else ""
        print(f"this will take {estimate}{early}", file=sys.stderr)
    return estimate


def _fit(
    steps: Steps, predictor: Predictor, prepared: Prepared, watched: Watched, run: Run, weights_only: bool
) -> Progress:
    """Trains the model; what never learns reads each text once."""
    task, accelerator, of_tokens = watched.task, steps.accelerator, steps.examples
    glancing = Predictor(predictor.model, prepared.tokenizer, task, predictor.precision)
    started = time.perf_counter()
    with accelerator.main_process_first():  # the others find what it has kept
        read = watched.read(predictor)
    seconds = time.perf_counter() - started

    def examples(epoch: int) -> Encoded:
        source = watched.source(epoch < steps.epochs_alone)
        return of_tokens(epoch) if source is None else read[source]["train"]

    steps.examples = examples
    truth = references(task, prepared.rows["validation"].select(watched.places))
    mine = range(accelerator.process_index, len(watched.places), accelerator.num_processes)
    shards = {source: rows["validation"].select(mine) for source, rows in read.items()}

    def validate() -> Metrics:
        shard = shards[watched.source(steps.is_alone)]
        found = gather_object(list(zip(mine, glancing.infer(shard), strict=True)))
        outputs = [output for _, output in sorted(found, key=lambda pair: pair[0])]
        decided = task.calibrated(outputs, truth)  # a rare label may never reach a threshold that is not fitted
        return task.score(decided.decode(outputs, truth, prepared.tokenizer), truth)

    progress = fit(steps, validate, task.main_metric, run, prepared.rows["train"]["id"], weights_only=weights_only)
    progress.seconds += seconds
    return progress


def _calibrated(predictor: Predictor, prepared: Prepared, watched: Watched) -> Recipe:
    """The recipe with what validation teaches about the task's decisions."""
    task = prepared.recipe.task
    if type(task).calibrated is Task.calibrated:
        return prepared.recipe
    outputs = watched.infer(predictor, prepared.encoded["validation"], "validation")
    decided = task.calibrated(outputs, references(task, prepared.rows["validation"]))
    return prepared.recipe.model_copy(update={"task": decided})


def _finish(
    run: Run,
    prepared: Prepared,
    watched: Watched,
    known: Given,
    progress: Progress,
    estimate: Estimate | None,
    started: float,
) -> None:
    """Scores the artifact and the baselines on every test split, the artifact from disk, tells how far off the estimate
    was that was made when the clock stood at `started`, and writes results.json."""
    recipe, rows = prepared.recipe, prepared.rows
    predictor = Predictor.load(run)
    release()
    tests = [split for split in rows if split not in ("train", "validation")]
    truth = {split: references(recipe.task, rows[split]) for split in tests}
    predictions = {}
    for split, theirs in truth.items():
        if watched.is_frozen:
            outputs = watched.infer(predictor, prepared.encoded[split], split)
            predictions[split] = predictor.task.decode(outputs, theirs, predictor.tokenizer)
        else:
            predictions[split] = predictor.predict(rows[split])
    splits = {split: score(predictor.task, predictions[split], theirs) for split, theirs in truth.items()}
    for split, theirs in truth.items():
        write_predictions(run.predictions_file(split), theirs, predictions[split])
    made = baselines.answers(known)
    answers = {split: {name: theirs[split] for name, theirs in made.items()} for split in truth}
    if recipe.training.scratch:
        answers["test"]["scratch"] = read_predictions(run.scratch().predictions_file("test"), recipe.task)[0]
    for name, given_answers in answers["test"].items():
        write_predictions(run.predictions_file("test", name), truth["test"], given_answers)
    verdicts = {
        split: judged(predictor.task, predictions[split], answers[split], theirs) for split, theirs in truth.items()
    }
    for split in truth.keys() - {"test"}:
        splits[split] |= verdicts[split]
    seconds = time.perf_counter() - started
    if estimate is not None:
        print(estimate.against(seconds), file=sys.stderr)
    run.write_results(
        {
            "format": 1,
            "main_metric": recipe.task.main_metric,
            "task": recipe.task.kind,
            "splits": splits,
            "baseline_rows": {
                name: len(known.frozen_rows) if name == "frozen" else len(known.splits["train"]["id"]) for name in made
            },
            **verdicts["test"],
            "train": {
                "seconds": round(progress.seconds, 1),
                "examples_per_second": round(progress.rows / max(progress.seconds, 1e-9), 1),
                "peak_rss_mb": round(peak_rss_mb()),
                "energy_wh": None if progress.joules is None else round(progress.joules / 3600, 3),
                "skipped_steps": progress.skipped,
                "device_batch_size": progress.device_batch_size,
                "weights_only_from": progress.weights_only_from,
                "cost": {
                    "estimated_seconds": None if estimate is None else round(estimate.total, 1),
                    "seconds": round(seconds, 1),
                },
            },
        }
    )
