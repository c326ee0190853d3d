"""Learning rates suggested by trying them all: the range test (Smith 2017, https://arxiv.org/abs/1506.01186).

A throw-away copy of the model is trained while the rate rises from step to step. Suggested is the middle of the longest
decline of the smoothed loss, as fastai's `valley` does: high enough to learn, well below where learning breaks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

from accelerate import Accelerator
from tqdm import tqdm

from tl_nlp.charts import Curve
from tl_nlp.errors import RunError
from tl_nlp.preparation import Prepared, prepare
from tl_nlp.recipe import Recipe
from tl_nlp.schedule import Rates
from tl_nlp.training import steps_of

N_STEPS = 80
LOWEST, HIGHEST = 1e-6, 1.0
_SMOOTH = 0.9  # share of the past in the mean of losses
_DIVERGED = 2.0  # times the first loss, where a sweep ends


@dataclass(frozen=True)
class Suggestion:
    """Rates to begin with, as overrides of the recipe, and the curves that they come from."""

    overrides: list[str]
    curves: list[Curve]


def find_lr(recipe: Recipe, n_steps: int = N_STEPS) -> Suggestion:
    """Rates for the head, then for the rest above a head that has learned at its own. Keeps nothing on disk.

    Raises a TLError: see `tl_nlp.errors`.
    """
    prepared = prepare(recipe)
    head = rest = None
    if recipe.task.head != "generate":
        head = _sweep("head", prepared, n_steps, lambda rate: Rates(0.0, rate))
    if recipe.method.moves != "head":
        own = Rates(0.0, head.marked) if head else None
        name = "backbone" if recipe.method.moves in ("backbone", "biases") else recipe.method.kind
        rest = _sweep(name, prepared, n_steps, lambda rate: Rates(rate, own.head if own else 0.0), before=own)
    found = {}
    if rest is not None:
        found["lr"] = rest.marked
    if head is not None:
        found["lr" if rest is None and recipe.training.head_lr is None else "head_lr"] = head.marked
        if recipe.method.head_epochs:
            found["first_lr"] = head.marked
    curves = [curve for curve in (head, rest) if curve is not None]
    return Suggestion([f"training.{key}={rate:.1e}" for key, rate in found.items()], curves)


def _sweep(
    name: str, prepared: Prepared, n_steps: int, rates: Callable[[float], Rates], before: Rates | None = None
) -> Curve:
    """One rise of the rate on a fresh copy, to its end or until the loss has doubled.

    `before` are the rates of as many steps in front of it, so that a head's own progress is not taken for the rest's.
    """
    steps, _ = steps_of(prepared, Accelerator())
    first = steps.plan.steps  # from the plan's end on, when all that ever learns does
    n_before = n_steps if before else 0
    tried: list[float] = []
    losses: list[float] = []
    mean = 0.0
    for number in tqdm(range(-n_before, n_steps), desc=f"rates of the {name}", unit="step", file=sys.stderr):
        rate = LOWEST * (HIGHEST / LOWEST) ** (number / (n_steps - 1))
        try:
            loss = steps.take(first + n_before + number, before if number < 0 else rates(rate)).loss
        except RunError:  # no number any more
            break
        mean = _SMOOTH * mean + (1 - _SMOOTH) * loss
        if number >= 0:
            tried.append(rate)
            losses.append(mean / (1 - _SMOOTH ** (n_before + number + 1)))
            if losses[-1] > _DIVERGED * losses[0]:
                break
    start, end = _longest_decline(losses)
    return Curve(name, tried, losses, tried[(start + end) // 2])


def _longest_decline(losses: list[float]) -> tuple[int, int]:
    """First and last index of the longest subsequence of ever lower losses."""
    lengths, starts = [1] * len(losses), list(range(len(losses)))
    for index in range(len(losses)):
        for earlier in range(index):
            if losses[earlier] > losses[index] and lengths[earlier] >= lengths[index]:
                lengths[index], starts[index] = lengths[earlier] + 1, starts[earlier]
    end = max(range(len(losses)), key=lambda index: lengths[index])
    return starts[end], end
