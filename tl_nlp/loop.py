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
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from tl_nlp import checkpoints
from tl_nlp.batches import Encoded, collate, epoch_order, passes, window_lengths
from tl_nlp.errors import Interrupted, RunError
from tl_nlp.hardware import autocast
from tl_nlp.heads import Head
from tl_nlp.model import head_modules
from tl_nlp.recipe import Method, Training
from tl_nlp.run import Run
from tl_nlp.types import Metrics


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
class Plan:
    """When things happen, in steps; derived from the recipe and the number of rows."""

    steps_per_epoch: int
    steps: int
    warmup: int
    eval_every: int
    save_every: int

    @classmethod
    def of(cls, training: Training, n_rows: int) -> Plan:
        per_epoch = math.ceil(n_rows / training.batch_size)
        steps = max(1, round(training.epochs * per_epoch))
        return cls(
            steps_per_epoch=per_epoch,
            steps=steps,
            warmup=round(training.warmup * steps),
            eval_every=max(1, round(training.eval_every * per_epoch)),
            save_every=max(1, round(training.save_every * per_epoch)),
        )

    def rate(self, schedule: str, step: int) -> float:
        """The factor of the learning rate at a step (from 0): rises over the warmup, then follows the schedule."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "constant": 1.0}[schedule]


@dataclass
class Weights:
    """The weights that learn at any time, by name, and which of them are the head's."""

    by_name: dict[str, torch.nn.Parameter]
    in_head: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, model: Any, method: Method, epochs: float) -> Weights:
        floating = {name: weight for name, weight in model.named_parameters() if weight.is_floating_point()}
        head = head_modules(model)
        ever = {
            name
            for epoch in range(max(1, math.ceil(epochs)))
            for name in method.learning(list(floating), head, float(epoch))
        }
        by_name = {name: weight for name, weight in floating.items() if name in ever}
        in_head = {name for name in by_name if any(f".{module}." in f".{name}" for module in head)}
        return cls(by_name, in_head)

    def load(self, tensors: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, weight in self.by_name.items():
                weight.copy_(tensors[name])


def fit(
    model: Any,
    head: Head,
    method: Method,
    encoded: Encoded,
    validate: Callable[[], Metrics],
    main_metric: str,
    training: Training,
    run: Run,
    accelerator: Accelerator,
    pad_id: int,
) -> Progress:
    """Trains `model` in place and leaves it with the weights of the best evaluation.

    Resumes from the newest complete checkpoint in the run. Raises RunError where loss or gradient is no number, and
    Interrupted after a signal, once a checkpoint is written.
    """
    device = accelerator.device
    lengths = window_lengths(encoded)
    plan = Plan.of(training, len(lengths))
    weights = Weights.of(model, method, training.epochs)
    optimizer = _optimizer(weights, training)
    progress = _resume(run, weights, optimizer, accelerator)
    order: list[list[int]] = []
    learning_at = -1
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
            step, epoch = progress.step, progress.step // plan.steps_per_epoch
            if epoch != learning_at:
                order = epoch_order(lengths, training.batch_size, training.seed, epoch)
                _unfreeze(model, weights, method, epoch)
                learning_at = epoch
            rows = order[step % plan.steps_per_epoch]
            rate = plan.rate(training.schedule, step)
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * rate
            _train_mode(model, weights)
            torch.manual_seed(_mix(training.seed, step, accelerator.process_index))
            total, count = _backward(model, head, encoded, rows, lengths, training, accelerator, pad_id)
            norm = _clip(weights, count, training.max_grad_norm, accelerator)
            loss = total / count
            if not math.isfinite(loss) or not math.isfinite(norm):
                raise RunError(
                    f"step {step + 1}: the loss is {loss} and the gradient's norm {norm}; the last checkpoint "
                    "is kept; a lower training.lr, or training.precision=float32, mends most such runs"
                )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            progress.step += 1
            progress.rows += len(rows)
            progress.seconds += time.perf_counter() - started
            losses.append(loss)
            bar.set_postfix(loss=f"{loss:.3f}", lr=f"{optimizer.param_groups[0]['lr']:.1e}", refresh=False)
            bar.update()
            last = progress.step == plan.steps
            if accelerator.is_main_process and (last or progress.step % report_every == 0):
                values = {"loss": sum(losses) / len(losses), "lr": training.lr * rate, "grad_norm": norm}
                run.log(progress.step, progress.step / plan.steps_per_epoch, "train", values)
                losses = []
            improved = False
            if last or progress.step % plan.eval_every == 0:
                improved = _evaluate(progress, plan, validate, main_metric, training.patience, run, accelerator)
            stop = accelerator.reduce(torch.tensor(len(received), device=device), "sum") > 0 and not last
            if improved or last or stop or progress.stopped_early or progress.step % plan.save_every == 0:
                _save(run, weights, optimizer, progress, accelerator)
            if stop:
                number = received[0] if received else signal.SIGTERM
                raise Interrupted(
                    f"stopped by {signal.Signals(number).name} at step {progress.step} of {plan.steps}; "
                    f"tl-nlp train {run.folder} goes on from there",
                    number,
                )
    if progress.best_step != progress.step:
        weights.load(checkpoints.read(run.checkpoint_dir(progress.best_step)).weights)
    _freeze_all(model)
    return progress


def _mix(*numbers: int) -> int:
    """One seed out of several."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:7], "big")


def _optimizer(weights: Weights, training: Training) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019); no decay on norms and biases, which are vectors."""
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, weight in weights.by_name.items():
        lr = training.head_lr if training.head_lr is not None and name in weights.in_head else training.lr
        groups.setdefault((lr, training.weight_decay if weight.ndim > 1 else 0.0), []).append(weight)
    return torch.optim.AdamW(
        [{"params": params, "lr": lr, "base_lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()],
        fused=True,
    )


def _unfreeze(model: Any, weights: Weights, method: Method, epoch: int) -> None:
    floating = [name for name, weight in model.named_parameters() if weight.is_floating_point()]
    learning = method.learning(floating, head_modules(model), float(epoch))
    _freeze_all(model)
    for name, weight in weights.by_name.items():
        weight.requires_grad_(name in learning)


def _train_mode(model: Any, weights: Weights) -> None:
    """Dropout acts, but not in a backbone of which nothing learns: its states are features, cached or not."""
    model.train()
    if all(name in weights.in_head for name, weight in weights.by_name.items() if weight.requires_grad):
        model.base_model.eval()


def _freeze_all(model: Any) -> None:
    for weight in model.parameters():
        weight.requires_grad_(False)


def _backward(
    model: Any,
    head: Head,
    encoded: Encoded,
    rows: list[int],
    lengths: list[list[int]],
    training: Training,
    accelerator: Accelerator,
    pad_id: int,
) -> tuple[float, float]:
    """Adds the gradient of the summed loss of this process's rows; returns sum and count over all processes."""
    here = sorted(rows, key=lambda index: -max(lengths[index]))[accelerator.process_index :: accelerator.num_processes]
    sums = torch.zeros(2, device=accelerator.device)
    for pass_rows in passes(here, lengths, training.device_batch_size):
        batch = collate(encoded[pass_rows], pad_id, accelerator.device)
        with autocast(training.precision, accelerator.device):
            loss, count = head.loss(model, batch)
        loss.backward()
        sums += torch.stack([loss.detach(), count.to(loss)])
    total, count = accelerator.reduce(sums, "sum").tolist()
    return total, count


def _clip(weights: Weights, count: float, max_norm: float | None, accelerator: Accelerator) -> float:
    """Makes gradients the mean over what all processes counted, then clips them; returns their norm before."""
    learning = [weight for weight in weights.by_name.values() if weight.requires_grad]
    if accelerator.num_processes > 1:
        for weight in learning:  # a process without rows in this step, or whose rows do not reach the weight
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        flat = torch.cat([weight.grad.flatten() for weight in learning if weight.grad is not None])
        summed = accelerator.reduce(flat, "sum").split([weight.numel() for weight in learning])
        for weight, gradient in zip(learning, summed, strict=True):
            weight.grad = gradient.view_as(weight)
    gradients = [weight.grad for weight in learning if weight.grad is not None]
    torch._foreach_mul_(gradients, 1 / count)
    norm = torch.nn.utils.get_total_norm(gradients)
    if max_norm is not None and norm.isfinite() and norm > max_norm:
        torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).item())
    return float(norm)


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


def _save(
    run: Run, weights: Weights, optimizer: torch.optim.AdamW, progress: Progress, accelerator: Accelerator
) -> None:
    """Writes the checkpoint of this step; keeps the best one and this."""
    if accelerator.is_main_process:
        moments = {
            f"{name}.{key}": value
            for name, weight in weights.by_name.items()
            for key, value in optimizer.state.get(weight, {}).items()
        }
        state = checkpoints.State(dict(weights.by_name), moments, asdict(progress))
        checkpoints.write(run, progress.step, state, keep={progress.step, progress.best_step})
    accelerator.wait_for_everyone()


def _resume(run: Run, weights: Weights, optimizer: torch.optim.AdamW, accelerator: Accelerator) -> Progress:
    """The progress of the newest whole checkpoint, its weights and moments loaded; a fresh one where there is none."""
    state = checkpoints.newest(run)
    if state is None:
        return Progress()
    weights.load(state.weights)
    for name, weight in weights.by_name.items():
        moments = {key: state.moments[f"{name}.{key}"] for key in _MOMENTS if f"{name}.{key}" in state.moments}
        if moments:
            optimizer.state[weight] = {key: value.to(weight.device) for key, value in moments.items()}
    progress = Progress(**state.progress)
    if accelerator.is_main_process:
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
