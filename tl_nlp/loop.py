"""The one training loop: when to step, evaluate, keep and stop. Knows no text and no task."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import torch
from accelerate import Accelerator
from tqdm import tqdm

from tl_nlp import checkpoints, signals
from tl_nlp.errors import Interrupted, NotFiniteError, RunError
from tl_nlp.hardware import EnergyMeter
from tl_nlp.run import Run, differences
from tl_nlp.schedule import Plan
from tl_nlp.steps import Begun, Steps, Taken, freeze
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
    losses: list[float] = field(default_factory=list)  # since the last report
    skipped: int = 0  # steps that were left out: their loss or gradient was no number
    device_batch_size: int | None = None  # at the last step: halved where memory had run out
    weights_only_from: int | None = None  # the step from which it went on without the optimizer's state, if it did


def fit(
    steps: Steps,
    validate: Callable[[], Metrics],
    main_metric: str,
    run: Run,
    ids: Sequence[str],
    *,
    weights_only: bool = False,
) -> Progress:
    """Trains the model of `steps` in place and leaves it with the weights of the best evaluation. `ids` names the
    training rows.

    Resumes from the newest complete checkpoint in the run; `weights_only` takes one without its optimizer's state.
    Raises RunError where loss or gradient is no number, NoRoomError where a checkpoint has no room on the disk, and
    Interrupted after a signal, once a checkpoint is written.
    """
    accelerator, plan, training, weights = steps.accelerator, steps.plan, steps.training, steps.weights
    average = Average(weights, training)
    progress = _resume(run, steps, average, weights_only)
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
    begun: deque[Begun] = deque()  # steps that were not asked yet what they were
    n_ahead = 0 if average.ema else _AHEAD.get(steps.device.type, 0)

    def end(n_left: int) -> None:
        """Asks all but the latest steps what they were, and reports those that are to be."""
        while len(begun) > n_left:
            step = begun[0].step + 1
            taken = _end(begun.popleft(), steps, progress, run, ids)
            if taken is None:
                continue
            average.after_step()
            progress.rows += taken.n_rows
            progress.losses.append(taken.loss)
            shown = taken.rates.backbone or taken.rates.head
            bar.set_postfix(loss=f"{taken.loss:.3f}", lr=f"{shown:.1e}", refresh=False)
            if step == plan.steps or step % report_every == 0:
                if accelerator.is_main_process:
                    _report(run, step, plan, taken, progress.losses)
                progress.losses = []

    with bar, signals.held() as received:
        while progress.step < plan.steps and not progress.stopped_early:
            started = time.perf_counter()
            begun.append(_begin(steps, progress, run))
            progress.step += 1
            last = progress.step == plan.steps
            is_evaluated = last or progress.step % plan.eval_every == 0
            end(0 if is_evaluated else n_ahead)
            progress.seconds += time.perf_counter() - started
            bar.update()
            improved = False
            if is_evaluated:
                average.before_evaluation()
                with weights.replaced(average.value()):
                    improved = _evaluate(progress, plan, validate, main_metric, training.patience, run, accelerator)
            if (joules := meter.joules()) is not None:
                progress.joules = (progress.joules or 0.0) + joules
            stop = _is_any(received, accelerator) and not last
            if improved or last or stop or progress.stopped_early or progress.step % plan.save_every == 0:
                end(0)
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


_AHEAD = {"cuda": 1}
"""How many steps a kind of device may be told before it is asked what the one before them was."""


def _is_any(received: list[int], accelerator: Accelerator) -> bool:
    """Whether any process was sent a signal."""
    if accelerator.num_processes == 1:
        return bool(received)
    return bool(accelerator.reduce(torch.tensor(len(received), device=accelerator.device), "sum") > 0)


def _begin(steps: Steps, progress: Progress, run: Run) -> Begun:
    """The next step, and a word where it did not fit in memory as the one before did."""
    size, step, is_main = steps.device_batch_size, progress.step, steps.accelerator.is_main_process
    begun = steps.begin(step)
    progress.device_batch_size = steps.device_batch_size
    if is_main and steps.device_batch_size < size:
        now = steps.device_batch_size
        run.log(step + 1, (step + 1) / steps.plan.steps_per_epoch, "memory", {"device_batch_size": now})
        tqdm.write(
            f"step {step + 1}: out of memory; device_batch_size goes from {size} to {now}, in more passes for a step, "
            f"and batch_size stays {steps.training.batch_size}",
            file=sys.stderr,
        )
    return begun


def _end(begun: Begun, steps: Steps, progress: Progress, run: Run, ids: Sequence[str]) -> Taken | None:
    """What a step was; None where it was left out, as `training.skip_bad_steps` allows."""
    is_main = steps.accelerator.is_main_process
    try:
        return begun.end()
    except NotFiniteError as error:
        if is_main:
            values = {"loss": str(error.loss), "grad_norm": str(error.norm)}  # JSON has no NaN
            run.log(begun.step + 1, (begun.step + 1) / steps.plan.steps_per_epoch, "bad_step", values)
        rows = ", ".join(ids[row] for row in error.rows)
        most = steps.training.skip_bad_steps
        if progress.skipped >= most:
            raise RunError(
                f"{error}, on the rows {rows}; the last checkpoint is kept; a lower training.lr, or "
                f"training.precision=float32, mends most such runs, and training.skip_bad_steps={most + 1} leaves out "
                "what single rows cause"
            ) from None
        progress.skipped += 1
        if is_main:
            tqdm.write(f"{error}, on the rows {rows}; it is left out, {progress.skipped} of {most}", file=sys.stderr)
        return None


def _report(run: Run, step: int, plan: Plan, taken: Taken, losses: list[float]) -> None:
    values = {
        "loss": sum(losses) / len(losses),
        "lr": taken.rates.backbone,
        "head_lr": taken.rates.head,
        "grad_norm": taken.norm,
        "learning": taken.n_learning,
    }
    run.log(step, step / plan.steps_per_epoch, "train", values)


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
    """Writes the checkpoint of this step; keeps the best one and this. Raises RunError for weights that are no numbers,
    which an update can make of a gradient that is one."""
    if bad := steps.weights.not_finite():
        raise RunError(
            f"step {progress.step}: {bad[0]} is no number any more, and {len(bad)} weights in all; the last checkpoint "
            "is kept; a lower training.lr mends most such runs"
        )
    if steps.accelerator.is_main_process:
        moments = {
            f"{name}.{key}": value
            for name, weight in steps.weights.by_name.items()
            for key, value in steps.optimizer.state.get(weight, {}).items()
        }
        recipe = steps.recipe.model_dump(mode="json")
        state = checkpoints.State(dict(steps.weights.by_name), moments, average.state(), asdict(progress), recipe)
        checkpoints.write(run, progress.step, state, keep={progress.step, progress.best_step})
    steps.accelerator.wait_for_everyone()


def _resume(run: Run, steps: Steps, average: Average, weights_only: bool) -> Progress:
    """The progress of the newest whole checkpoint, its weights and moments loaded; a fresh one where there is none.

    Raises RunError where the run's recipe is not the one that the checkpoint follows.
    """
    is_main = steps.accelerator.is_main_process
    for name in run.forget_partial_checkpoints() if is_main else []:
        print(f"{name} was cut off while it was written; it is left out", file=sys.stderr)
    state = checkpoints.newest(run, weights_only=weights_only, tell=is_main)
    if state is None:
        if is_main:
            run.forget_after(0)  # what was told before a checkpoint was there is told again
        return Progress()
    if changed := differences(state.recipe, steps.recipe.model_dump(mode="json")):
        raise RunError(
            f"{run.folder} cannot resume with another recipe than it began with: {'; '.join(changed)}; put recipe.json "
            "back, or train anew"
        )
    if state.weights.keys() != steps.weights.by_name.keys():
        raise RunError(f"{run.folder} cannot resume: its checkpoint has other weights than its recipe trains")
    steps.weights.load(state.weights)
    average.restore(state.averages)
    for name, weight in steps.weights.by_name.items():
        moments = {key: state.moments[f"{name}.{key}"] for key in _MOMENTS if f"{name}.{key}" in state.moments}
        if moments:
            steps.optimizer.state[weight] = {key: value.to(weight.device) for key, value in moments.items()}
    progress = Progress(**state.progress)
    steps.device_batch_size = progress.device_batch_size or steps.device_batch_size
    if weights_only and not state.moments:
        progress.weights_only_from = progress.step
    if is_main:
        run.forget_after(progress.step)
        print(f"{run.folder} goes on from step {progress.step} of {steps.plan.steps}", file=sys.stderr)
    return progress


_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
