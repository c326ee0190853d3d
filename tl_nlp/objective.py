"""What a loss asks for beyond the plain likelihood of the labels, and the losses that several heads have."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tl_nlp.errors import RecipeError
from tl_nlp.recipe import Training

_SHARPNESS = 0.1  # of the scale: grades that far apart are clearly of another rank


@dataclass(frozen=True)
class Objective:
    """What a loss asks for beyond the plain likelihood of the labels."""

    label_smoothing: float = 0.0
    focal_gamma: float = 0.0
    weights: Tensor | None = None  # of each output, shape (outputs,)
    log_priors: Tensor | None = None  # tau times the log of each label's share, shape (outputs,)
    ranking: float = 0.0

    @classmethod
    def of(cls, training: Training, outputs: list[str], encoded: Any) -> Objective:
        """What a recipe asks for; `encoded` are the training rows.

        Balanced weights are rows / (outputs * count) for one label out of several, and absent / present for each of
        many. Raises RecipeError for the weight of a label that is none.
        """
        weights = log_priors = None
        if training.class_weights is not None or training.logit_adjustment:
            labels = torch.tensor(encoded["labels"][:])
            n_rows, is_many = len(labels), labels.ndim > 1
            table = labels if is_many else functional.one_hot(labels, len(outputs))
            counts = table.float().sum(0).clamp_min(1)
            balanced = (n_rows - counts).clamp_min(1) / counts if is_many else n_rows / (len(outputs) * counts)
            given = training.class_weights
            if isinstance(given, dict):
                if unknown := [name for name in given if name not in outputs]:
                    raise RecipeError(
                        f"{unknown[0]!r} is none of the labels {', '.join(outputs)}", "training.class_weights"
                    )
                weights = torch.tensor([given.get(name, 1.0) for name in outputs])
            elif given is not None:
                weights = balanced
            if training.logit_adjustment:
                log_priors = training.logit_adjustment * (counts / n_rows).log()
        return cls(training.label_smoothing, training.focal_gamma, weights, log_priors, training.ranking)

    def to(self, device: Any) -> Objective:
        moved = {name: getattr(self, name) for name in ("weights", "log_priors")}
        return replace(self, **{name: value.to(device) for name, value in moved.items() if value is not None})


def divergence(one: Tensor, other: Tensor) -> Tensor:
    """The mean of both Kullback-Leibler divergences of the softmax over the last dimension."""
    log_one, log_other = one.log_softmax(-1), other.log_softmax(-1)
    return ((log_one.exp() - log_other.exp()) * (log_one - log_other)).sum(-1) / 2


def from_teacher(logits: Tensor, teachers: Tensor) -> Tensor:
    """The Kullback-Leibler divergence of a softmax over the last dimension from a teacher's."""
    ours, theirs = logits.log_softmax(-1), teachers.log_softmax(-1)
    return functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)


def yes_or_no(logits: Tensor) -> Tensor:
    """Logits whose softmax over a new last dimension are the sigmoid and what it lacks of one."""
    return torch.stack([logits, torch.zeros_like(logits)], -1)


def listwise(scores: Tensor, labels: Tensor) -> Tensor:
    """How far the order of a step's scores is from that of its labels: the cross-entropy of the softmax over the rows
    (ListNet, Cao et al. 2007; beside regression, Yang et al. 2020), times the rows, summed over the traits."""
    total = scores.new_zeros(())
    for theirs, ours in zip(labels.T, scores.T, strict=True):
        known = ~theirs.isnan()
        targets = (theirs[known] / _SHARPNESS).softmax(0)
        gap = targets * (targets.clamp_min(1e-9).log() - (ours[known] / _SHARPNESS).log_softmax(0))
        total = total + gap.sum() * known.sum()
    return total
