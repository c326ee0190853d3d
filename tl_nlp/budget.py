"""A recipe made to fit into a time: fewer epochs, else the head alone, else fewer training rows."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from tl_nlp.baselines import MAX_FROZEN, MAX_ROWS
from tl_nlp.batches import window_lengths
from tl_nlp.cost import Costs, padded, spoken
from tl_nlp.errors import RecipeError
from tl_nlp.preparation import Prepared, prepare
from tl_nlp.recipe import Recipe, Training
from tl_nlp.schedule import Plan
from tl_nlp.training import steps_of
from tl_nlp.watching import Watched, costs_of

FEWEST = 100  # training rows that are worth a training
_MARGIN = 0.9  # of the time, which the estimate may take
_CHECK = 1e-3  # seconds for a row that is checked: see docs/performance.md
_HEAD = ("method=head", "training.lr=5e-3", "training.head_lr=null", "training.epochs=20")  # as docs/methods.md has it
_NOT_OF_A_HEAD = ("first_lr", "layer_decay", "l2_sp", "mixout", "reinit_blocks", "gradient_checkpointing")


def within(recipe: Recipe, seconds: float) -> Recipe:
    """The recipe, changed where its training would take longer than so many seconds from now on: fewer epochs, down to
    one; else, where the task has a head, the head alone; else fewer training rows. What is changed is told on stderr.

    Raises RecipeError where even `FEWEST` rows take longer, and a TLError where the training would. Under `accelerate
    launch` every process calls this and returns the same recipe.
    """
    started = time.perf_counter()
    if recipe.training.scratch:
        raise RecipeError("trains a second model, which --budget does not foresee; one of the two", "training.scratch")
    accelerator = Accelerator()
    prepared = prepare(recipe)
    outlook = Outlook.of(prepared, recipe, accelerator, time.perf_counter() - started)

    def left() -> float:
        return broadcast_object_list([seconds - (time.perf_counter() - started)])[0]

    whole = outlook.seconds(recipe, outlook.n_rows)
    if whole <= _MARGIN * left():
        return _told(recipe, [], whole, whole, seconds, accelerator)
    limit = _MARGIN * left()  # once: what just fits must not be too long for the time that finding it took
    fewer = _fewer_epochs(recipe, outlook, limit)
    if fewer is not None and (needs := outlook.seconds(fewer, outlook.n_rows)) <= limit:
        return _told(fewer, [f"training.epochs={fewer.training.epochs:g}"], needs, whole, seconds, accelerator)
    least, changes = fewer or recipe, [f"training.epochs={fewer.training.epochs:g}"] if fewer else []
    on_head = _head_alone(recipe)
    if on_head is not None:
        resolved = prepared.recipe.model_copy(update={"method": on_head.method, "training": on_head.training})
        outlook = Outlook.of(replace(prepared, recipe=resolved), on_head, accelerator, outlook.preparing)
        least, changes = on_head, list(_HEAD)
        if (needs := outlook.seconds(least, outlook.n_rows)) <= _MARGIN * left():
            return _told(least, changes, needs, whole, seconds, accelerator)
    time_left, base = _MARGIN * left(), least
    fewest = min(FEWEST, outlook.n_rows)
    needs = outlook.seconds(base, fewest)
    if needs > time_left:
        raise RecipeError(
            f"--budget: {spoken(seconds)} are too few even for {fewest} of {outlook.n_rows} training rows, which take "
            f"about {spoken(seconds - left() + needs / _MARGIN)} with checks and scores; a longer time, smaller "
            "validation and test splits, or a smaller checkpoint"
        )
    n_rows = _highest(lambda n: outlook.seconds(base, n) <= time_left, fewest, outlook.n_rows)
    changes.append(f"data.train_rows={n_rows}")
    fitted = base.override(changes[-1])
    return _told(fitted, changes, outlook.seconds(base, n_rows), whole, seconds, accelerator)


@dataclass(frozen=True)
class Outlook:
    """What a whole `tl-nlp train` takes: before the training, and all that its costs say."""

    costs: Costs
    n_rows: int  # of training
    preparing: float  # seconds, for rows that are read and encoded
    looking: dict[str, float]  # seconds for each split, for checks and for the features of baselines

    @classmethod
    def of(cls, prepared: Prepared, recipe: Recipe, accelerator: Accelerator, preparing: float) -> Outlook:
        started = time.perf_counter()
        steps, predictor = steps_of(prepared, accelerator)
        loading = time.perf_counter() - started
        watched = Watched.of(prepared, steps, predictor)
        compared = sum(min(MAX_ROWS, len(rows)) for rows in prepared.rows.values())
        costs = costs_of(prepared, steps, predictor, watched, compared, loading)
        looking = {}
        for split, encoded in prepared.encoded.items():
            lengths = window_lengths(encoded)
            read = lengths[:MAX_FROZEN] if split == "train" else lengths
            is_read = prepared.recipe.task.head != "generate"
            looking[split] = _CHECK * len(lengths) + (costs.reading * padded(read, predictor.model) if is_read else 0.0)
        if watched.alone is not None and watched.alone.kind == "mean":
            # what baselines have read is what the head learns from
            known = {split: min(1, MAX_FROZEN / len(rows)) for split, rows in prepared.encoded.items()}
            unread = {split: (1 - known[split]) * seconds for split, seconds in costs.features.items()}
            costs = replace(costs, features=unread)
        n_rows, preparing, looking = broadcast_object_list([(len(prepared.lengths), preparing, looking)])[0]
        return cls(costs, n_rows, preparing, looking)

    def seconds(self, recipe: Recipe, n_rows: int) -> float:
        """Of all the trainings that the recipe asks for, with so many training rows."""
        share = n_rows / self.n_rows
        each = self.costs.of(Plan.of(recipe, n_rows), share=share).total + self.preparing
        each += sum(seconds * (share if split == "train" else 1) for split, seconds in self.looking.items())
        folds = recipe.data.folds if recipe.data.fold is None else None
        return each * (folds or recipe.training.seeds)


def _fewer_epochs(recipe: Recipe, outlook: Outlook, seconds: float) -> Recipe | None:
    """The recipe with the most half epochs that fit, or with one; None where it does not go with fewer."""

    def fits(halves: int) -> bool:
        return outlook.seconds(_with_epochs(recipe, halves / 2), outlook.n_rows) <= seconds

    most = int(2 * recipe.training.epochs - 1e-9)
    if most < 2:
        return None
    try:
        lowest = max(2, int(2 * recipe.method.head_epochs) + 1)
        epochs = _highest(fits, lowest, most) / 2 if lowest <= most else 0
        return recipe.override(f"training.epochs={epochs}")
    except RecipeError:  # patience, averages or a first stage that want more of them
        return None


def _with_epochs(recipe: Recipe, epochs: float) -> Recipe:
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={"epochs": epochs})})


def _head_alone(recipe: Recipe) -> Recipe | None:
    """The recipe with method head, at its rates; None where it is that already or cannot be."""
    if recipe.method.kind == "head":
        return None
    plain = Training().model_dump(mode="json")
    given = [name for name in _NOT_OF_A_HEAD if getattr(recipe.training, name) != plain[name]]
    changes = [f"training.{name}={'null' if plain[name] is None else plain[name]}" for name in given]
    try:
        return recipe.override(*_HEAD, *changes)
    except RecipeError:
        return None


def _highest(is_good: Callable[[int], bool], low: int, high: int) -> int:
    """The highest number from `low` to `high` that is good, where all below a good one are; `low` where none is."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if is_good(middle) else (low, middle - 1)
    return low


def _told(
    fitted: Recipe, changes: list[str], needs: float, whole: float, seconds: float, accelerator: Accelerator
) -> Recipe:
    if accelerator.is_main_process:
        told = f"the recipe fits as it is: about {spoken(needs)} of the {spoken(seconds)} that are left"
        if changes:
            told = (
                f"the recipe would take about {spoken(whole)}, and {spoken(seconds)} are left, so it is trained with "
                f"{' '.join(changes)}, in about {spoken(needs)}"
            )
        print(f"--budget: {told}", file=sys.stderr)
    return fitted
