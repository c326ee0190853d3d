"""One optimization step after another. Knows weights, losses and seeds; no text, no evaluation and no file.

What a step computes depends on the recipe alone: gradients are sums over the rows of the step, divided once by what all
processes counted, so `device_batch_size`, padding and the number of processes change nothing but speed. All chance is
drawn from (seed, epoch) or (seed, step), so that a resumed training goes on as if it had never stopped.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from tl_nlp import states
from tl_nlp.batches import Encoded, collate, epoch_order, on_device, passes
from tl_nlp.combinations import needs_whole_steps
from tl_nlp.distillation import Inside, Seen
from tl_nlp.dropout import fast_dropout
from tl_nlp.errors import NotFiniteError, RecipeError, StepMemoryError
from tl_nlp.families import backbone, encoder_of, head_modules, writes
from tl_nlp.hardware import autocast, is_out_of_memory, most_scores, on_host
from tl_nlp.heads import Batch, Head
from tl_nlp.objective import Objective
from tl_nlp.recipe import Training
from tl_nlp.schedule import Plan, Rates
from tl_nlp.weights import Anchor, Weights, optimizer_of


@dataclass
class Taken:
    """What one step was: the mean loss, the norm of its gradient before clipping, rows, numbers that learn, rates."""

    loss: float
    norm: float
    n_rows: int
    n_learning: int
    rates: Rates


@dataclass
class Begun:
    """A step that a GPU may still be computing."""

    step: int
    rows: list[int]
    n_learning: int
    rates: Rates
    numbers: Callable[[], list[float]]  # of its loss the sum and the count, and the norm of its gradient

    def end(self) -> Taken:
        """What it was, once it is done. Raises NotFiniteError where loss or gradient was no number, and then it has
        changed no weight."""
        total, count, norm = self.numbers()
        loss = total / count
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise NotFiniteError(
                f"step {self.step + 1}: the loss is {loss} and the gradient's norm {norm}, at the rates "
                f"{self.rates.backbone:.3g} and {self.rates.head:.3g} for the head",
                loss,
                norm,
                self.rows,
            )
        return Taken(loss, norm, len(self.rows), self.n_learning, self.rates)


class Steps:
    """Takes one optimization step after another.

    `examples(epoch)` gives the encoded rows of an epoch, of whose windows `lengths` are the tokens. To a `teacher` what
    goes on inside the model is held. `n_above` are the encoder's top blocks in which weights learn at any time, where
    states can stand for what is below (`states.can_be_entered`); else None.
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
        teacher: Inside | None = None,
    ):
        self.model, self.head, self.plan, self.pad_id = model, head, plan, pad_id
        self.examples, self.lengths, self.accelerator = examples, lengths, accelerator
        self.recipe, self.training, self.device = plan.recipe, plan.recipe.training, accelerator.device
        self.objective = objective.to(self.device)
        self.teacher = teacher
        self.weights = Weights.of(model, plan, teacher.weights if teacher else {})
        self.optimizer = optimizer_of(self.weights, self.training)
        self.anchor = Anchor(self.weights, self.training)
        size = self.training.device_batch_size
        self.device_batch_size = size if isinstance(size, int) else 1
        self._most_pairs = _most_pairs(model, self.training)
        self.names = [name for name, weight in model.named_parameters() if weight.is_floating_point()]
        self.head_modules = head_modules(model)
        n_above, learning = self.weights.n_above, self.weights.of_model.values()
        is_entered = n_above is not None and states.can_be_entered(model, n_above, learning)
        self.n_above = n_above if is_entered else None
        self._order: tuple[int, list[list[int]]] = (-1, [])
        self._learning: set[str] | None = None
        self._n_learning = 0

    def take(self, step: int, rates: Rates | None = None) -> Taken:
        """One step, at the plan's rates or at others; see `begin` and `Begun.end`."""
        return self.begin(step, rates).end()

    def begin(self, step: int, rates: Rates | None = None) -> Begun:
        """Tells the device all of a step; a GPU is asked for no number of it, so that the next can begin before it is
        done, but by several processes and by an optimizer that is not fused.

        Where it does not fit in memory, `device_batch_size` is halved until it does, and stays so.

        Raises StepMemoryError where one row is too much.
        """
        epoch, place = divmod(step, self.plan.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = epoch, epoch_order(self.lengths, self.training.batch_size, self.training.seed, epoch)
        rows = self._order[1][place]
        self.unfreeze(step)
        rates = self._set_rates(step, rates)
        while True:
            _seed(_mix(self.training.seed, step, self.accelerator.process_index), self.device)
            with self.anchor.mixing(_mix(self.training.seed, step, "mixout")):
                total, count, n_failed = self._backward(step, rows)
            if not n_failed:
                break
            self._halve(step, rows)
        norm = self._clip(count)
        self._move(torch.isfinite(total / count) & torch.isfinite(norm))
        self.optimizer.zero_grad(set_to_none=True)
        return Begun(step, rows, self._n_learning, rates, on_host(torch.stack([total, count, norm])))

    def _move(self, is_finite: Tensor) -> None:
        """Moves the weights, where loss and gradient are numbers."""
        if self.training.compute.optimizer == "fused":
            # as torch.amp.GradScaler tells it; the kernel then moves nothing
            self.optimizer.found_inf = (~is_finite).float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif is_finite:
            self.optimizer.step()

    def unfreeze(self, step: int) -> None:
        """Lets learn what the method says for this step.

        Dropout acts, but not in an encoder of which nothing learns, nor in lowest blocks that never do: their states
        are features, kept or not.
        """
        learning = self.plan.learning(self.names, self.head_modules, step)
        has_changed = learning != self._learning
        if has_changed:
            freeze(self.model)
            for name, weight in self.weights.by_name.items():
                weight.requires_grad_(name in learning or name in self.weights.beside)
            self._learning = learning
            self._n_learning = sum(weight.numel() for name, weight in self.weights.by_name.items() if name in learning)
        if has_changed or not self.model.training:  # which takes as long as a step of a head alone
            self.model.train()
            n_above = 0 if self.is_alone else self.n_above
            if n_above is not None:
                # a classifier's head stands on the decoder too, where there is one
                states.hold_still((encoder_of if writes(self.model) else backbone)(self.model), n_above)

    def forget(self) -> None:
        """The next step says anew what learns and what drops out."""
        self._learning = None

    @property
    def is_alone(self) -> bool:
        """Whether in the last step nothing but the head learned."""
        return self._learning is not None and self._learning <= self.weights.in_head

    @property
    def epochs_alone(self) -> float:
        """How many whole epochs the head learns alone in, from the first."""
        if self.weights.by_name.keys() == self.weights.in_head:
            return math.inf
        return self.plan.first_steps // self.plan.steps_per_epoch

    def _set_rates(self, step: int, rates: Rates | None) -> Rates:
        """Gives every group its share of the backbone's or the head's rate; by default those of the plan."""
        rates = rates or self.plan.rates(step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["share"] * (rates.head if group["is_head"] else rates.backbone)
            group["betas"] = (self.plan.momentum(step), group["betas"][1])
        return rates

    def _backward(self, step: int, rows: list[int]) -> tuple[Tensor, Tensor, int]:
        """Adds the gradient of the summed loss of this process's rows; returns sum and count over all processes, in
        float64, and how many of these had too little memory."""
        by_length = sorted(rows, key=lambda index: -max(self.lengths[index]))
        here = by_length[self.accelerator.process_index :: self.accelerator.num_processes]
        sums, n_failed = torch.zeros(2, device=self.device), 0
        try:
            for pass_rows in self.passes(step, here):
                sums += self._pass(step, pass_rows)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            n_failed = 1
        if self.accelerator.num_processes > 1:
            *sums, failed = self.accelerator.reduce(torch.cat([sums, sums.new_full((1,), n_failed)]), "sum")
            n_failed = int(failed)  # all halve where one must
        total, count = (one.double() for one in sums)
        return total, count, n_failed

    def passes(self, step: int, rows: list[int]) -> Iterator[list[int]]:
        """The rows of each forward pass of a step; see `batches.passes`. There is no attention to limit where a head
        alone reads states that are kept."""
        most_pairs = self._most_pairs
        if self.is_alone and self.examples(step // self.plan.steps_per_epoch)[rows[:1]].get("n_above") == [0]:
            most_pairs = math.inf
        return passes(rows, self.lengths, self.device_batch_size, most_pairs)

    def _pass(self, step: int, rows: list[int]) -> Tensor:
        """Adds the gradient of the summed loss of rows in one pass; returns sum and count. Apart, so that nothing of a
        pass that has failed stays in memory."""
        is_fast = self.training.compute.dropout == "auto"
        with (
            fast_dropout(self.device) if is_fast else nullcontext()
        ):  # its backward pass too, which draws again under gradient checkpointing
            loss, count = self.loss(step, rows)
            loss.backward()
        return torch.stack([loss.detach(), loss.new_zeros(()) + count])

    def _halve(self, step: int, rows: list[int]) -> None:
        """Half as many sequences in a pass, and nothing kept of the step so far."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        largest = max(sum(len(self.lengths[row]) for row in one) for one in self.passes(step, rows))
        size = min(self.device_batch_size, largest) // 2
        needs = needs_whole_steps(self.training)
        if size < 1 or needs:
            longest = max(max(self.lengths[row]) for row in rows)
            why = f", and {min(needs)} needs the rows of a step in one pass" if needs else ""
            raise StepMemoryError(
                f"step {step + 1}: out of memory with {self.device_batch_size} sequences of at most {longest} tokens "
                f"in one pass{why}; a lower task.max_length or training.batch_size, or "
                "training.gradient_checkpointing=true, takes less"
            )
        self.device_batch_size = size

    def loss(self, step: int, rows: list[int]) -> tuple[Tensor, Tensor | float]:
        """The sum of the loss over what it counts in these rows, and that count."""
        epoch = step // self.plan.steps_per_epoch
        batch = collate(self.examples(epoch)[rows], self.pad_id, self.device)
        # of a backbone that stands still no state can come nearer to the teacher's
        teacher = None if self.is_alone else self.teacher
        watching: AbstractContextManager[list[Seen]] = teacher.watching(self.model) if teacher else nullcontext([])
        with autocast(self.training.precision, self.device), watching as seen:
            logits = self.head.logits(self.model, batch)
            loss, count = self._of_logits(logits, batch, step)
            if self.training.r_drop:
                again = self.head.logits(self.model, batch)
                loss = (loss + self._of_logits(again, batch, step)[0]) / 2
                loss = loss + self.training.r_drop / 2 * self.head.divergence(logits, again, batch)
            if teacher:
                loss = loss + teacher.loss(seen, batch)
        return loss, count

    def _of_logits(self, logits: Tensor, batch: Batch, step: int) -> tuple[Tensor, Tensor | float]:
        """The loss of logits; under mixup that of shares of two rows (Zhang et al. 2018).

        The heads' last layer is linear, so sharing logits is sharing the states it reads.
        """
        alpha = self.training.augmentation.mixup
        if not alpha:
            return self._of_targets(logits, batch)
        draw = np.random.default_rng(_mix(self.training.seed, step, "mixup"))
        share = float(draw.beta(alpha, alpha))
        partner = on_device(torch.as_tensor(draw.permutation(len(logits))), logits.device)
        mixed = share * logits + (1 - share) * logits[partner]
        partners = {name: batch[name][partner] for name in _TARGETS if name in batch}
        one, count = self._of_targets(mixed, batch)
        other, others = self._of_targets(mixed, {**batch, **partners})
        return share * one + (1 - share) * other, share * count + (1 - share) * others

    def _of_targets(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor | int]:
        """The loss of logits against labels, and against a teacher's answers where there are any."""
        loss, count = self.head.loss(logits, batch, self.objective)
        chosen = self.training.distillation
        if chosen and "soft_targets" in batch:
            soft = self.head.soft_loss(logits, batch, chosen.temperature)
            loss = (1 - chosen.weight) * loss + chosen.weight * soft
        return loss, count

    def _clip(self, count: Tensor) -> Tensor:
        """Pulls, makes gradients the mean over what all processes counted, and clips; returns their norm before, in
        float64."""
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
        self.anchor.pull(count)
        norm = torch.nn.utils.get_total_norm(gradients).double() / count
        max_norm = self.training.max_grad_norm
        shorter = torch.ones_like(norm)
        if max_norm is not None:
            shorter = torch.where((max_norm < norm) & norm.isfinite(), max_norm / (norm + 1e-6), shorter)
        torch._foreach_mul_(gradients, (shorter / count).float())  # in one pass over them, not two
        return norm


_TARGETS: tuple[str, ...] = ("labels", "soft_targets")


def _most_pairs(model: Any, training: Training) -> float:
    """How many pairs of tokens a layer of the encoder may compare in one pass; of a decoder nothing is counted."""
    chosen = training.compute.pass_scores
    n_heads = getattr(encoder_of(model).config, "num_attention_heads", None)
    if n_heads is None or (chosen == "auto" and needs_whole_steps(training)):
        return math.inf
    return (most_scores(model) if chosen == "auto" else chosen) / n_heads


def refuse_split_steps(training: Training, lengths: list[list[int]], size: int, n_processes: int) -> None:
    """Raises RecipeError where the rows of some step could be in two passes, and the loss needs them in one."""
    for key, verb in needs_whole_steps(training).items():
        if n_processes > 1:
            raise RecipeError(f"{verb} the rows of a step, and here they are shared by {n_processes} processes", key)
        most = sum(sorted((len(windows) for windows in lengths), reverse=True)[: training.batch_size])
        if most > size:
            raise RecipeError(
                f"{verb} the rows of a step, which may have {most} windows, and a pass has {size}; "
                f"training.device_batch_size={most}, a lower training.batch_size or a higher task.max_length makes it "
                "one",
                key,
            )


def freeze(model: Any) -> None:
    """No weight learns."""
    for weight in model.parameters():
        weight.requires_grad_(False)


def _seed(seed: int, device: torch.device) -> None:
    """As `torch.manual_seed`, which looks at every kind of device there is, a tenth of a step of a head alone."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)


def _mix(*values: int | str) -> int:
    """One seed out of several values."""
    return int.from_bytes(hashlib.sha256(repr(values).encode()).digest()[:7], "big")
