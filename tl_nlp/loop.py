"""The one training loop. Knows weights, steps and seeds; no text and no task.

What a step computes depends on the recipe alone: gradients are sums over the rows of the step, divided once by what all
processes counted, so `device_batch_size`, padding and the number of processes change nothing but speed. All chance is
drawn from (seed, epoch) or (seed, step), so that a resumed training goes on as if it had never stopped.
"""

from __future__ import annotations

import hashlib
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from tl_nlp import checkpoints
from tl_nlp.batches import Encoded, collate, epoch_order, passes
from tl_nlp.errors import Interrupted, RecipeError, RunError
from tl_nlp.families import backbone, head_modules
from tl_nlp.hardware import autocast
from tl_nlp.heads import Batch, Head, Objective
from tl_nlp.run import Run
from tl_nlp.schedule import Plan, Rates
from tl_nlp.types import Metrics
from tl_nlp.weights import Anchor, Average, Weights, optimizer_of


@dataclass
class Progress:
    """How far a training is; what a checkpoint keeps beside weights and optimizer."""

    step: int = 0
    best_step: int = 0
    best: float = -math.inf  # the main metric at best_step
    stale: int = 0  # evaluations since
    seconds: float = 0.0  # in training steps, over all sessions
    rows: int = 0  # seen in these seconds
    stopped_early: bool = False


@dataclass
class Taken:
    """What one step was: the mean loss, the norm of its gradient before clipping, rows, numbers that learn, rates."""

    loss: float
    norm: float
    n_rows: int
    n_learning: int
    rates: Rates


class Steps:
    """Takes one optimization step after another. Knows no evaluation and no file.

    `examples(epoch)` gives the encoded rows of an epoch, of whose windows `lengths` are the tokens.
    """

    def __init__(
        self,
        model: Any,
        head: Head,
        objective: Objective,
        plan: Plan,
        examples: Callable[[int], Encoded],
        lengths: list[list[int]],
        accelerator: Accelerator,
        pad_id: int,
    ):
        self.model, self.head, self.plan, self.pad_id = model, head, plan, pad_id
        self.examples, self.lengths, self.accelerator = examples, lengths, accelerator
        self.recipe, self.training, self.device = plan.recipe, plan.recipe.training, accelerator.device
        self.objective = objective.to(self.device)
        self.weights = Weights.of(model, plan)
        self.optimizer = optimizer_of(self.weights, self.training)
        self.anchor = Anchor(self.weights, self.training)
        self.device_batch_size: int = 1
        if isinstance(self.training.device_batch_size, int):
            self.device_batch_size = self.training.device_batch_size
        self._all_names = [name for name, weight in model.named_parameters() if weight.is_floating_point()]
        self._head_modules = head_modules(model)
        self._order: tuple[int, list[list[int]]] = (-1, [])
        self._learning: set[str] | None = None

    def take(self, step: int, rates: Rates | None = None) -> Taken:
        """One step, at the plan's rates or at others. Raises RunError where loss or gradient is no number."""
        epoch, place = divmod(step, self.plan.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = epoch, epoch_order(self.lengths, self.training.batch_size, self.training.seed, epoch)
        rows = self._order[1][place]
        self.unfreeze(step)
        rates = self._set_rates(step, rates)
        torch.manual_seed(_mix(self.training.seed, step, self.accelerator.process_index))
        with self.anchor.mixing(_mix(self.training.seed, step, "mixout")):
            total, count = self._backward(step, rows)
        norm = self._clip(count)
        loss = total / count
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise RunError(
                f"step {step + 1}: the loss is {loss} and the gradient's norm {norm}; the last checkpoint "
                "is kept; a lower training.lr, or training.precision=float32, mends most such runs"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        n_learning = sum(weight.numel() for weight in self.weights.by_name.values() if weight.requires_grad)
        return Taken(loss, norm, len(rows), n_learning, rates)

    def unfreeze(self, step: int) -> None:
        """Lets learn what the method says for this step.

        Dropout acts, but not in a backbone of which nothing learns: its states are features, cached or not.
        """
        learning = self.plan.learning(self._all_names, self._head_modules, step)
        if learning != self._learning:
            freeze(self.model)
            for name, weight in self.weights.by_name.items():
                weight.requires_grad_(name in learning)
            self._learning = learning
        self.model.train()
        if learning <= self.weights.in_head:
            backbone(self.model).eval()

    def _set_rates(self, step: int, rates: Rates | None) -> Rates:
        """Gives every group its share of the backbone's or the head's rate; by default those of the plan."""
        rates = rates or self.plan.rates(step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["share"] * (rates.head if group["is_head"] else rates.backbone)
            group["betas"] = (self.plan.momentum(step), group["betas"][1])
        return rates

    def _backward(self, step: int, rows: list[int]) -> tuple[float, float]:
        """Adds the gradient of the summed loss of this process's rows; returns sum and count over all processes."""
        by_length = sorted(rows, key=lambda index: -max(self.lengths[index]))
        here = by_length[self.accelerator.process_index :: self.accelerator.num_processes]
        sums = torch.zeros(2, device=self.device)
        for number, pass_rows in enumerate(passes(here, self.lengths, self.device_batch_size)):
            if self.training.augmentation.mixup and (number or self.accelerator.num_processes > 1):
                raise RecipeError(
                    "mixes the rows of a step, which must be in one pass of one process; "
                    "a higher training.device_batch_size, or a lower training.batch_size, makes it one",
                    "training.augmentation.mixup",
                )
            loss, count = self.loss(step, pass_rows)
            loss.backward()
            sums += torch.stack([loss.detach(), count.to(loss)])
        total, count = self.accelerator.reduce(sums, "sum").tolist()
        return total, count

    def loss(self, step: int, rows: list[int]) -> tuple[Tensor, Tensor]:
        """The sum of the loss over what it counts in these rows, and that count."""
        epoch = step // self.plan.steps_per_epoch
        batch = collate(self.examples(epoch)[rows], self.pad_id, self.device)
        with autocast(self.training.precision, self.device):
            logits = self.head.logits(self.model, batch)
            loss, count = self._of_logits(logits, batch, step)
            if self.training.r_drop:
                again = self.head.logits(self.model, batch)
                loss = (loss + self._of_logits(again, batch, step)[0]) / 2
                loss = loss + self.training.r_drop / 2 * self.head.divergence(logits, again, batch)
        return loss, count

    def _of_logits(self, logits: Tensor, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """The loss of logits; under mixup that of shares of two rows (Zhang et al. 2018).

        The heads' last layer is linear, so sharing logits is sharing the states it reads.
        """
        alpha = self.training.augmentation.mixup
        if not alpha:
            return self.head.loss(logits, batch, self.objective)
        draw = np.random.default_rng(_mix(self.training.seed, step, "mixup"))
        share = float(draw.beta(alpha, alpha))
        partner = torch.as_tensor(draw.permutation(len(logits)), device=logits.device)
        mixed = share * logits + (1 - share) * logits[partner]
        one, count = self.head.loss(mixed, batch, self.objective)
        other, others = self.head.loss(mixed, {**batch, "labels": batch["labels"][partner]}, self.objective)
        return share * one + (1 - share) * other, share * count + (1 - share) * others

    def _clip(self, count: float) -> float:
        """Makes gradients the mean over what all processes counted, pulls, then clips; returns their norm before."""
        learning = [weight for weight in self.weights.by_name.values() if weight.requires_grad]
        if self.accelerator.num_processes > 1:
            for weight in learning:  # a process without rows in this step, or whose rows do not reach the weight
                if weight.grad is None:
                    weight.grad = torch.zeros_like(weight)
            flat = torch.cat([weight.grad.flatten() for weight in learning if weight.grad is not None])
            summed = self.accelerator.reduce(flat, "sum").split([weight.numel() for weight in learning])
            for weight, gradient in zip(learning, summed, strict=True):
                weight.grad = gradient.view_as(weight)
        gradients = [weight.grad for weight in learning if weight.grad is not None]
        torch._foreach_mul_(gradients, 1 / count)
        self.anchor.pull()
        norm = torch.nn.utils.get_total_norm(gradients)
        max_norm = self.training.max_grad_norm
        if max_norm is not None and norm.isfinite() and norm > max_norm:
            torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).item())
        return float(norm)


def fit(steps: Steps, validate: Callable[[], Metrics], main_metric: str, run: Run) -> Progress:
    """Trains the model of `steps` in place and leaves it with the weights of the best evaluation.

    Resumes from the newest complete checkpoint in the run. Raises RunError where loss or gradient is no number, and
    Interrupted after a signal, once a checkpoint is written.
    """
    accelerator, plan, training, weights = steps.accelerator, steps.plan, steps.training, steps.weights
    average = Average(weights, training)
    progress = _resume(run, steps, average)
    losses: list[float] = []
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


def freeze(model: Any) -> None:
    """No weight learns."""
    for weight in model.parameters():
        weight.requires_grad_(False)


def _mix(*values: int | str) -> int:
    """One seed out of several values."""
    return int.from_bytes(hashlib.sha256(repr(values).encode()).digest()[:7], "big")


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
        progress.best, progress.best_step, progress.stale = metrics[main_metric], progress.step, 0
        return True
    progress.stale += 1
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
