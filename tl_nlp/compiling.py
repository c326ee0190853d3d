"""torch.compile for the steps of an encoder, where it pays back within the run. Answers are never compiled."""

from __future__ import annotations

import sys
import time
from typing import Any

from tl_nlp.combinations import uncompilable
from tl_nlp.cost import seconds_of_step, spoken, together, untouched
from tl_nlp.errors import HardwareError
from tl_nlp.families import backbone
from tl_nlp.steps import Steps

_LEAST = 600.0  # seconds of steps that are left, below which the minute or two that compiling takes are not risked
_TRIED = 3  # steps


def settle(steps: Steps, left: float, start: int, before: bool | None) -> bool | None:
    """Compiles what reads the texts, or not, and says whether: as it was `before` the run was stopped; else as
    `training.compute.compile` says, which by default is on a GPU where `left` seconds of steps after step `start` are
    many and steps turn out to be faster. None where it was not tried. Under several processes all call this together.

    Raises HardwareError where it is asked for and does not work here.
    """
    choice, part = steps.training.compute.compile, backbone(steps.model)
    places = range(steps.plan.steps)[-_TRIED:]
    if before:
        with untouched(steps):
            _compile(steps, part, places)  # by the steps it was compiled by, so that bits stay the same
    if before is not None:
        return before
    is_wanted = choice == "always"
    if choice == "auto":
        is_wanted = steps.device.type == "cuda" and left >= _LEAST and uncompilable(steps.recipe) is None
    if not is_wanted:
        return None
    try:
        with untouched(steps):
            plain = _seconds(steps, places)
            spent = _compile(steps, part, places)
            fast = _seconds(steps, places)
    except Exception as error:  # no compiler, or a model that it cannot read: torch has an error for each
        _undo(part)
        told = f"torch.compile does not work here ({type(error).__name__}: {str(error).splitlines()[0]})"
        if choice == "always":
            raise HardwareError(f"{told}; training.compute.compile=never trains without") from None
        print(f"{told}; steps go on without", file=sys.stderr)
        return False
    kept = choice == "always" or fast < plain
    if not kept:
        _undo(part)
    if steps.accelerator.is_main_process:
        saved = (plain - fast) * (steps.plan.steps - max(start, steps.plan.first_steps))
        told = f"about {spoken(abs(saved))} {'less' if saved > 0 else 'more'} for the steps that are left"
        print(
            f"torch.compile took {spoken(spent)}; a step takes {fast:.3g} s where it took {plain:.3g} s, {told}: "
            f"{'kept' if kept else 'left out'}",
            file=sys.stderr,
        )
    return kept


def _compile(steps: Steps, part: Any, places: range) -> float:
    """Seconds that it takes, with the first steps, in which torch does it."""
    started = time.perf_counter()
    part.compile(dynamic=True)
    for place in places:
        seconds_of_step(steps, place)
    return together(steps, time.perf_counter() - started)


def _seconds(steps: Steps, places: range) -> float:
    """Of a step, the mean of some."""
    return sum(min(seconds_of_step(steps, place) for _ in range(2)) for place in places) / len(places)


def _undo(part: Any) -> None:
    part._compiled_call_impl = None  # torch has no way back of its own
