"""torch.compile for the steps of an encoder, where it pays back within the run. Answers are never compiled."""

from __future__ import annotations

import sys
import time
import warnings
from typing import Any

from tl_nlp.combinations import uncompilable
from tl_nlp.cost import seconds_of_step, spoken, untouched
from tl_nlp.errors import HardwareError
from tl_nlp.families import backbone
from tl_nlp.steps import Steps

_LEAST = 600.0  # seconds of steps that are left, below which the minute or two that compiling takes are not risked
_TRIED = 3  # steps


def settle(steps: Steps, left: float, start: int, before: bool | None, on_states: bool) -> bool | None:
    """Compiles what reads the texts, or not, and says whether: as it was `before` the run was stopped; else as
    `training.compute.compile` says, which by default is on a GPU where `left` seconds of a whole training are many and
    steps turn out to be faster, but not where they begin `on_states` that are kept. None where it was not tried.

    Raises HardwareError where it is asked for and does not work here.
    """
    choice, part, n_processes = steps.training.compute.compile, backbone(steps.model), steps.accelerator.num_processes
    if choice == "always" and n_processes > 1:
        raise HardwareError(
            f"training.compute.compile=always is for one process, and here are {n_processes}; never trains without"
        )
    is_worth = steps.device.type == "cuda" and start == 0 and left >= _LEAST and not on_states
    is_wanted = choice == "always" or (choice == "auto" and is_worth and uncompilable(steps.recipe) is None)
    if before is False or n_processes > 1 or start == steps.plan.steps or not (before or is_wanted):
        return before
    places = range(steps.plan.steps)[-_TRIED:]
    try:
        with untouched(steps), warnings.catch_warnings():
            # what is computed in float32 on a GPU is to have its 24 bits
            warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)
            plain = _seconds(steps, places)
            started = time.perf_counter()
            part.compile(dynamic=True)
            for place in places:  # in a run that goes on the same ones, so that bits stay the same
                seconds_of_step(steps, place)
            spent = time.perf_counter() - started
            fast = _seconds(steps, places)
    except Exception as error:  # no compiler, or a model that it cannot read: torch has an error for each
        _undo(part)
        told = f"torch.compile does not work here ({' '.join([type(error).__name__, *str(error).splitlines()[:1]])})"
        if choice == "always":
            raise HardwareError(f"{told}; training.compute.compile=never trains without") from None
        bits = ", and last bits of weights may be others than without the stop" if before else ""
        print(f"{told}; steps go on without{bits}", file=sys.stderr)
        return False
    kept = before or choice == "always" or fast < plain
    if not kept:
        _undo(part)
    saved = (plain - fast) * (steps.plan.steps - max(start, steps.plan.first_steps))
    print(
        f"torch.compile took {spoken(spent)}; a step takes {fast:.3g} s where it took {plain:.3g} s, about "
        f"{spoken(abs(saved))} {'less' if saved > 0 else 'more'} for the steps that are left: "
        f"{'kept' if kept else 'left out'}",
        file=sys.stderr,
    )
    return kept


def _seconds(steps: Steps, places: range) -> float:
    """Of a step, the mean of some."""
    return sum(min(seconds_of_step(steps, place) for _ in range(2)) for place in places) / len(places)


def _undo(part: Any) -> None:
    part._compiled_call_impl = None  # torch has no way back of its own
