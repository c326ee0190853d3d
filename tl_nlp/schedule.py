"""When things happen in a training and at which rate, in steps; derived from the recipe and the number of rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from tl_nlp.errors import RecipeError
from tl_nlp.families import in_head
from tl_nlp.recipe import Recipe

FIRST_LR = 1e-3
"""The head's rate in `method.head_epochs` where `training.first_lr` is not given."""


@dataclass(frozen=True)
class Rates:
    """The learning rates of one step."""

    backbone: float  # of the top block that learns, and of what a method adds there
    head: float


@dataclass
class Plan:
    """When what learns, is evaluated and is kept, and how fast it learns."""

    recipe: Recipe
    steps_per_epoch: int
    steps: int
    first_steps: int  # of the head alone
    warmup: int  # steps of it, after the first ones
    eval_every: int
    save_every: int

    @classmethod
    def of(cls, recipe: Recipe, n_rows: int) -> Plan:
        """Raises RecipeError where the first stage leaves no step for the second."""
        training = recipe.training
        per_epoch = math.ceil(n_rows / training.batch_size)
        steps = max(1, round(training.epochs * per_epoch))
        first = math.ceil(recipe.method.head_epochs * per_epoch - 1e-9)
        if first >= steps:
            raise RecipeError(
                f"the head would learn alone in {first} of {steps} steps; a higher training.epochs leaves some for the "
                "rest",
                "method.head_epochs",
            )
        return cls(
            recipe=recipe,
            steps_per_epoch=per_epoch,
            steps=steps,
            first_steps=first,
            warmup=round(training.warmup * (steps - first)),
            eval_every=max(1, round(training.eval_every * per_epoch)),
            save_every=max(1, round(training.save_every * per_epoch)),
        )

    def learning(self, weights: list[str], head: list[str], step: int) -> set[str]:
        """Which of the weights learn in a step (from 0), by name; `head` are the modules of the head."""
        if step < self.first_steps:
            return {name for name in weights if in_head(name, head)}
        return self.recipe.method.learning(weights, head, (step - self.first_steps) / self.steps_per_epoch)

    def stages(self, weights: list[str], head: list[str]) -> list[range]:
        """The stretches of steps in which the same weights learn."""

        def within(first: int, last: int) -> list[int]:
            """The steps after `first` with which a stretch begins; the set never shrinks, so that one that is the same
            at both ends is the same between."""
            if self.learning(weights, head, first) == self.learning(weights, head, last):
                return []
            if last == first + 1:
                return [last]
            middle = (first + last) // 2
            return within(first, middle) + within(middle, last)

        starts = [0, *within(0, self.steps - 1), self.steps]
        return [range(start, end) for start, end in pairwise(starts)]

    def rates(self, step: int) -> Rates:
        """The learning rates of a step (from 0): while the head learns alone its own, then the schedule's."""
        training = self.recipe.training
        if step < self.first_steps:
            return Rates(0.0, training.first_lr or FIRST_LR)
        factor = self.factor(step)
        return Rates(training.lr * factor, (training.head_lr or training.lr) * factor)

    def factor(self, step: int) -> float:
        """The share of the highest rate at a step: rises over the warmup, then follows the schedule.

        one_cycle (Smith 2018, https://arxiv.org/abs/1803.09820) rises from a 25th and falls to a 10,000th of that, both
        along a cosine.
        """
        done = self._done(step)
        schedule = self.recipe.training.schedule
        if schedule == "one_cycle":
            return _cosine(0.04, 1.0, done + 1) if done < 0 else _cosine(1.0, 4e-6, done)
        if done < 0:
            return (step - self.first_steps + 1) / self.warmup
        return {"linear": 1 - done, "cosine": _cosine(1.0, 0.0, done), "constant": 1.0}[schedule]

    def momentum(self, step: int) -> float:
        """AdamW's first beta: one_cycle takes it from 0.95 to 0.85 while the rate rises, and back."""
        if self.recipe.training.schedule != "one_cycle" or step < self.first_steps:
            return 0.9
        done = self._done(step)
        return _cosine(0.95, 0.85, done + 1) if done < 0 else _cosine(0.85, 0.95, done)

    def _done(self, step: int) -> float:
        """How far the schedule is: from -1 to 0 in the warmup, from 0 to 1 after it."""
        at = step - self.first_steps
        if at < self.warmup:
            return at / self.warmup - 1
        return (at - self.warmup) / max(1, self.steps - self.first_steps - self.warmup)


def _cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2
