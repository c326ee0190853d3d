"""The weights that learn: which ones, how fast each, pulled to where they began, averaged over the training."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tl_nlp.errors import RecipeError
from tl_nlp.families import blocks, depths, encoder_of, head_modules, in_head
from tl_nlp.recipe import Training
from tl_nlp.schedule import Plan


@dataclass
class Weights:
    """The weights that learn at any time, by name, which of them are the head's, and how deep each lies."""

    by_name: dict[str, torch.nn.Parameter]
    in_head: set[str]
    depths: dict[str, int]  # 0 for embeddings, the most for the head
    n_above: int | None = None  # of the encoder's blocks the top ones from the lowest that learns; see `of`
    beside: set[str] = field(default_factory=set)  # those that only the loss needs, and no artifact holds

    @classmethod
    def of(cls, model: Any, plan: Plan, beside: dict[str, torch.nn.Parameter]) -> Weights:
        """Those of a model that a plan lets learn; `beside` it others learn at the head's rate.

        `n_above` is None where the encoder's lowest block learns, and where nothing learns but a head on it.
        """
        floating = {name: weight for name, weight in model.named_parameters() if weight.is_floating_point()}
        head = head_modules(model)
        ever = plan.learning(list(floating), head, plan.steps - 1)
        by_name = {name: weight for name, weight in floating.items() if name in ever}
        names = [name for name, _ in model.named_parameters()]
        every_depth = depths(names, head)
        lowest = min((every_depth[name] for name in by_name), default=0)
        n_reading = len(blocks([name for name, _ in encoder_of(model).named_parameters()]))
        own = {name for name in by_name if in_head(name, head)}
        return cls(
            {**by_name, **beside},
            own | beside.keys(),
            {name: every_depth[name] for name in by_name},
            max(0, n_reading + 1 - lowest) if lowest > 1 and own != by_name.keys() else None,
            set(beside),
        )

    @property
    def of_model(self) -> dict[str, torch.nn.Parameter]:
        """Those that are the model's."""
        return {name: weight for name, weight in self.by_name.items() if name not in self.beside}

    def load(self, tensors: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, weight in self.by_name.items():
                weight.copy_(tensors[name])

    def copies(self) -> dict[str, Tensor]:
        return {name: weight.detach().clone() for name, weight in self.by_name.items()}

    def not_finite(self) -> list[str]:
        """The names of those that hold NaN or infinity."""
        return [name for name, weight in self.by_name.items() if not bool(torch.isfinite(weight.detach()).all())]

    @contextmanager
    def replaced(self, tensors: dict[str, Tensor] | None) -> Iterator[None]:
        """Within the block the weights are `tensors`, where there are any."""
        if tensors is None:
            yield
            return
        own = self.copies()
        self.load(tensors)
        try:
            yield
        finally:
            self.load(own)

    def pretrained_matrices(self) -> list[str]:
        """Those of the backbone's blocks; only methods that move the backbone have them."""
        return [
            name
            for name, weight in self.by_name.items()
            if name not in self.in_head and weight.ndim > 1 and self.depths[name] > 0
        ]


def optimizer_of(weights: Weights, training: Training) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019), its groups told by `is_head` and by the `share` of the rate that they get.

    With layer-wise decay (Clark et al. 2020) a block's share is `layer_decay` times that of the block above it. Norms
    and biases, which are vectors, do not decay, nor IA3's scales, whose rest is 1, nor what L2-SP pulls. Raises
    RecipeError where a layer-wise decay would do nothing.
    """
    below = {depth for name, depth in weights.depths.items() if name not in weights.in_head}
    if training.layer_decay < 1 and len(below) < 2:
        raise RecipeError("all that learns below the head is in one block", "training.layer_decay")
    n_top = max(below, default=0)
    groups: dict[tuple[bool, float, float], list[torch.nn.Parameter]] = {}
    for name, weight in weights.by_name.items():
        is_head = name in weights.in_head
        share = 1.0 if is_head else training.layer_decay ** (n_top - weights.depths[name])
        decays = weight.ndim > 1 and ".ia3_" not in name and (is_head or not training.l2_sp)
        groups.setdefault((is_head, share, training.weight_decay if decays else 0.0), []).append(weight)
    return torch.optim.AdamW(
        [
            {"params": params, "weight_decay": decay, "is_head": is_head, "share": share}
            for (is_head, share, decay), params in groups.items()
        ],
        fused=training.compute.optimizer == "fused",
        foreach=training.compute.optimizer == "foreach",
    )


class Anchor:
    """The pretrained weights, kept beside those that learn.

    L2-SP (Li et al. 2018, https://arxiv.org/abs/1802.01483, equation 3): the gradient of l2_sp / 2 times the squared
    distance. Mixout (Lee et al. 2020, https://arxiv.org/abs/1909.11299): in every step each element of the blocks'
    matrices is the pretrained one with probability p, and the others are stretched so that the mean stays.
    """

    def __init__(self, weights: Weights, training: Training):
        self.l2_sp, self.mixout = training.l2_sp, training.mixout
        self.weights = weights
        self.pulled = [name for name in weights.by_name if name not in weights.in_head] if self.l2_sp else []
        self.mixed = weights.pretrained_matrices() if self.mixout else []
        self.start = {name: weights.by_name[name].detach().clone() for name in {*self.pulled, *self.mixed}}

    @contextmanager
    def mixing(self, seed: int) -> Iterator[None]:
        """Within the block, forward and backward passes, the weights are mixed with the pretrained ones."""
        learning = [name for name in self.mixed if self.weights.by_name[name].requires_grad]
        own, kept = {}, {}
        for number, name in enumerate(learning):
            weight, start = self.weights.by_name[name].data, self.start[name]
            draw = torch.Generator(weight.device).manual_seed(seed + number)
            kept[name] = torch.rand(weight.shape, generator=draw, device=weight.device) >= self.mixout
            own[name] = weight.clone()
            weight.sub_(start).mul_(kept[name]).div_(1 - self.mixout).add_(start)
        try:
            yield
        finally:
            for name in learning:
                weight = self.weights.by_name[name]
                weight.data.copy_(own[name])
                if weight.grad is not None:
                    weight.grad.mul_(kept[name]).div_(1 - self.mixout)

    def pull(self, count: Tensor) -> None:
        """Adds the gradient of the distance, for each of what a summed loss counted, to what that gave."""
        for name in self.pulled:
            weight = self.weights.by_name[name]
            if weight.grad is not None:
                weight.grad.add_((weight.detach() - self.start[name]) * (self.l2_sp * count).float())


class Average:
    """The mean of weights over the training, which is then what is evaluated and kept.

    ema: moves by 1 - ema towards the weights after every step, from the first one's. average_last: the plain mean of
    the weights at the last so many evaluations (Izmailov et al. 2018, https://arxiv.org/abs/1803.05407).
    """

    def __init__(self, weights: Weights, training: Training):
        self.weights, self.ema = weights, training.ema
        self.last: deque[dict[str, Tensor]] = deque(maxlen=1 if self.ema else training.average_last)
        self.is_on = self.ema is not None or training.average_last > 1

    def after_step(self) -> None:
        if self.ema is not None:
            if not self.last:
                self.last.append(self.weights.copies())
            torch._foreach_lerp_(list(self.last[0].values()), self._now(), 1 - self.ema)

    def before_evaluation(self) -> None:
        if self.is_on and self.ema is None:
            self.last.append(self.weights.copies())

    def value(self) -> dict[str, Tensor] | None:
        """The averaged weights, None where nothing is averaged."""
        if not self.last:
            return None
        return {name: torch.stack([each[name] for each in self.last]).mean(0) for name in self.last[0]}

    def state(self) -> dict[str, Tensor]:
        """All that is kept, for a checkpoint: names are `place:name`."""
        return {f"{place}:{name}": value for place, kept in enumerate(self.last) for name, value in kept.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.last.clear()
        for place in sorted({int(key.partition(":")[0]) for key in state}):
            kept = {name: state[f"{place}:{name}"] for name in self.weights.by_name}
            self.last.append({name: value.to(self.weights.by_name[name].device) for name, value in kept.items()})

    def _now(self) -> list[Tensor]:
        return [weight.detach() for weight in self.weights.by_name.values()]
