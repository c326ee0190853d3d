"""The one training loop: when to step, evaluate, keep and stop. Knows no text and no task."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from tl_nlp import checkpoints
from tl_nlp.errors import Interrupted
from tl_nlp.hardware import EnergyMeter
from tl_nlp.run import Run
from tl_nlp.schedule import Plan
from tl_nlp.steps import Steps, Taken, freeze
from tl_nlp.types import Metrics
from tl_nlp.weights import Average


@dataclass
class Progress:
    """How far a training is; what a checkpoint keeps beside weights and optimizer."""

    step: int = 0
    best_step: int = 0
    best: float = -math.inf  # the main metric at best_step
    stale: int = 0  # evaluations since
    seconds: float = 0.0  # in training steps, over all sessions
    rows: int = 0  # seen in these seconds
    joules: float | None = None  # in training and evaluation, where the machine counts them
    stopped_early: bool = False


def fit(steps: Steps, validate: Callable[[], Metrics], main_metric: str, run: Run) -> Progress:
    """Trains the model of `steps` in place and leaves it with the weights of the best evaluation.

    Resumes from the newest complete checkpoint in the run. Raises RunError where loss or gradient is no number, and
    Interrupted after a signal, once a checkpoint is written.
    """
    accelerator, plan, training, weights = steps.accelerator, steps.plan, steps.training, steps.weights
    average = Average(weights, training)
    progress = _resume(run, steps, average)
    losses: list[float] = []
    meter = EnergyMeter()
    report_every = max(1, min(plan.steps // 100, plan.steps_per_epoch))
    bar = tqdm(
        total=plan.steps,
        initial=progress.step,
        desc="training",
        unit="step",
        file=sys.stderr,
        disable=not accelerator.is_main_process,
    )
    with bar, _signals() as received:
        while progress.step < plan.steps and not progress.stopped_early:
            started = time.perf_counter()
            taken = steps.take(progress.step)
            average.after_step()
            progress.step += 1
            progress.rows += taken.n_rows
            progress.seconds += time.perf_counter() - started
            losses.append(taken.loss)
            bar.set_postfix(
                loss=f"{taken.loss:.3f}", lr=f"{taken.rates.backbone or taken.rates.head:.1e}", refresh=False
            )
            bar.update()
            last = progress.step == plan.steps
            if accelerator.is_main_process and (last or progress.step % report_every == 0):
                _report(run, progress, plan, taken, losses)
                losses = []
            improved = False
            if last or progress.step % plan.eval_every == 0:
                average.before_evaluation()
                with weights.replaced(average.value()):
                    improved = _evaluate(progress, plan, validate, main_metric, training.patience, run, accelerator)
            if (joules := meter.joules()) is not None:
                progress.joules = (progress.joules or 0.0) + joules
            n_signals = accelerator.reduce(torch.tensor(len(received), device=steps.device), "sum")
            stop = n_signals > 0 and not last
            if improved or last or stop or progress.stopped_early or progress.step % plan.save_every == 0:
                _save(run, steps, average, progress)
            if stop:
                number = received[0] if received else signal.SIGTERM
                raise Interrupted(
                    f"stopped by {signal.Signals(number).name} at step {progress.step} of {plan.steps}; "
                    f"tl-nlp train {run.folder} goes on from there",
                    number,
                )
    if progress.best_step != progress.step:
        state = checkpoints.read(run.checkpoint_dir(progress.best_step))
        weights.load(state.weights)
        average.restore(state.averages)
    if (mean := average.value()) is not None:
        weights.load(mean)
    freeze(steps.model)
    return progress


def _report(run: Run, progress: Progress, plan: Plan, taken: Taken, losses: list[float]) -> None:
    values = {
        "loss": sum(losses) / len(losses),
        "lr": taken.rates.backbone,
        "head_lr": taken.rates.head,
        "grad_norm": taken.norm,
        "learning": taken.n_learning,
    }
    run.log(progress.step, progress.step / plan.steps_per_epoch, "train", values)


def _evaluate(
    progress: Progress,
    plan: Plan,
    validate: Callable[[], Metrics],
    main_metric: str,
    patience: int | None,
    run: Run,
    accelerator: Accelerator,
) -> bool:
    """Scores the validation split and notes in `progress` what follows; returns whether it is the best so far."""
    metrics = validate()
    if accelerator.is_main_process:
        run.log(progress.step, progress.step / plan.steps_per_epoch, "validation", metrics)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        tqdm.write(f"epoch {progress.step / plan.steps_per_epoch:.2f}, validation: {shown}", file=sys.stderr)
    if metrics[main_metric] > progress.best:
        progress.best, progress.best_step, progress.stale = float(metrics[main_metric]), progress.step, 0
        return True
    progress.stale += progress.step > plan.first_steps  # a head alone may stand still before the rest begins
    progress.stopped_early = patience is not None and progress.stale >= patience
    return False


def _save(run: Run, steps: Steps, average: Average, progress: Progress) -> None:
    """Writes the checkpoint of this step; keeps the best one and this."""
    if steps.accelerator.is_main_process:
        moments = {
            f"{name}.{key}": value
            for name, weight in steps.weights.by_name.items()
            for key, value in steps.optimizer.state.get(weight, {}).items()
        }
        state = checkpoints.State(dict(steps.weights.by_name), moments, average.state(), asdict(progress))
        checkpoints.write(run, progress.step, state, keep={progress.step, progress.best_step})
    steps.accelerator.wait_for_everyone()


def _resume(run: Run, steps: Steps, average: Average) -> Progress:
    """The progress of the newest whole checkpoint, its weights and moments loaded; a fresh one where there is none."""
    state = checkpoints.newest(run)
    if state is None:
        if steps.accelerator.is_main_process:
            run.forget_after(0)  # what was told before a checkpoint was there is told again
        return Progress()
    steps.weights.load(state.weights)
    average.restore(state.averages)
    for name, weight in steps.weights.by_name.items():
        moments = {key: state.moments[f"{name}.{key}"] for key in _MOMENTS if f"{name}.{key}" in state.moments}
        if moments:
            steps.optimizer.state[weight] = {key: value.to(weight.device) for key, value in moments.items()}
    progress = Progress(**state.progress)
    if steps.accelerator.is_main_process:
        run.forget_after(progress.step)
    return progress


_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in the list it yields; a second one acts at once."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: Any) -> None:
        if received:
            raise Interrupted("stopped at once by a second signal; the last checkpoint is kept", number)
        received.append(number)

    for number in before:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
