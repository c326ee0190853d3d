"""How far what goes on inside a student is from what goes on inside a frozen teacher that reads the same tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tl_nlp.errors import RecipeError
from tl_nlp.families import backbone, projections
from tl_nlp.hardware import inferring
from tl_nlp.heads import Batch, pool
from tl_nlp.recipe import Distillation


@dataclass
class Seen:
    """What one pass of a model was inside."""

    states: tuple[Tensor, ...]  # after each block, the lowest first, each of shape (windows, tokens, width)
    projected: tuple[Tensor, ...]  # queries, keys and values of the top block, of that shape; none where not asked for


class Inside:
    """Two losses, each with the weight that the recipe gives it.

    Hidden states: TinyBERT's (Jiao et al. 2020, https://arxiv.org/abs/1909.10351, equation 8). Block m of the student's
    M is held to block m N / M of the teacher's N, rounded up, so that the top one is held to the top one. Where widths
    differ a linear map of the student's states is learned, one for all blocks, in `weights`.

    Relations: MiniLM's second (Wang et al. 2021, https://arxiv.org/abs/2012.15828, equations 5 to 8). Of the top blocks
    it is held how queries are like queries, keys like keys and values like values, in as many heads as the teacher
    has; what they are is free, so widths may differ. Raises RecipeError for a family that has them in one layer.
    """

    def __init__(self, teacher: Any, student: Any, choices: Distillation, precision: str, seed: int):
        self.teacher, self.choices, self.precision = teacher.requires_grad_(False), choices, precision
        ours, theirs = (backbone(model).config.hidden_size for model in (student, teacher))
        self.weights: dict[str, nn.Parameter] = {}
        if choices.hidden and ours != theirs:
            drawn = torch.randn(theirs, ours, generator=torch.Generator().manual_seed(seed)) / math.sqrt(ours)
            self.weights[_MAP] = nn.Parameter(drawn.to(next(student.parameters()).device))
        if choices.relations:
            for model in (student, teacher):
                if not projections(backbone(model)):
                    raise RecipeError(
                        f"queries, keys and values of the family {backbone(model).config.model_type!r} are not in "
                        "layers of their own; training.distillation.hidden holds its states",
                        "training.distillation.relations",
                    )
            self._n_heads = math.gcd(backbone(teacher).config.num_attention_heads, ours)

    @contextmanager
    def watching(self, model: Any) -> Iterator[list[Seen]]:
        """Within the block what every pass of the model is inside is added to what this gives."""
        passes: list[Seen] = []
        latest: dict[int, Tensor] = {}
        body = backbone(model)
        parts = projections(body) if self.choices.relations else []

        def ask(_: Any, inputs: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return inputs, {**named, "output_hidden_states": True}

        def tell(_: Any, inputs: Any, outputs: Any) -> None:
            passes.append(Seen(outputs.hidden_states[1:], tuple(latest[place] for place in range(len(parts)))))

        hooks = [body.register_forward_pre_hook(ask, with_kwargs=True), body.register_forward_hook(tell)]
        hooks += [
            part.register_forward_hook(lambda _, inputs, output, place=place: latest.__setitem__(place, output))
            for place, part in enumerate(parts)
        ]
        try:
            yield passes
        finally:
            for hook in hooks:
                hook.remove()

    def loss(self, passes: list[Seen], batch: Batch) -> Tensor:
        """The weighted losses of each example, means over its tokens and the passes, summed over the examples and once
        for each label that an example has."""
        mask = batch["attention_mask"]
        rows = batch["rows"].repeat_interleave(mask.shape[1])
        theirs, total = self._of_teacher(batch), mask.new_zeros((), dtype=torch.float)
        for ours in passes:
            gaps = torch.zeros_like(mask, dtype=torch.float)
            if self.choices.hidden:
                gaps = gaps + self.choices.hidden * self._of_states(ours, theirs)
            if self.choices.relations:
                gaps = gaps + self.choices.relations * self._of_relations(ours, theirs, mask)
            of_examples = pool(gaps.flatten().unsqueeze(1), rows, mask.flatten(), batch["n_rows"])
            total = total + of_examples.sum() / len(passes)
        return total * batch["labels"][0].numel()

    def _of_states(self, ours: Seen, theirs: Seen) -> Tensor:
        """Squared errors of shape (windows, tokens), means over the width and the blocks."""
        n_ours, n_theirs = len(ours.states), len(theirs.states)
        gaps = []
        for block, states in enumerate(ours.states, 1):
            wanted = theirs.states[-(-block * n_theirs // n_ours) - 1]
            mapped = functional.linear(states, self.weights[_MAP]) if self.weights else states
            gaps.append((mapped.float() - wanted.float()).square().mean(-1))
        return torch.stack(gaps).mean(0)

    def _of_relations(self, ours: Seen, theirs: Seen, mask: Tensor) -> Tensor:
        """Kullback-Leibler divergences of shape (windows, tokens), means over the heads, summed over the three."""
        found = []
        for one, other in zip(ours.projected, theirs.projected, strict=True):
            log_one, log_other = (self._alike(part, mask) for part in (one, other))
            found.append((log_other.exp() * (log_other - log_one)).sum(-1).mean(1))
        return torch.stack(found).sum(0)

    def _alike(self, part: Tensor, mask: Tensor) -> Tensor:
        """How much each token is like each other, as log-probabilities of shape (windows, heads, tokens, tokens)."""
        heads = part.float().unflatten(-1, (self._n_heads, -1)).transpose(1, 2)
        scores = heads @ heads.transpose(-1, -2) / math.sqrt(heads.shape[-1])
        return scores.masked_fill(mask[:, None, None] == 0, _NEVER).log_softmax(-1)

    def _of_teacher(self, batch: Batch) -> Seen:
        inputs = {name: batch[name] for name in _INPUTS if name in batch}
        with inferring(self.teacher, self.precision), self.watching(self.teacher) as passes:
            backbone(self.teacher)(**inputs)
        # of inference, which autograd does not take
        return Seen(*(tuple(part.clone() for part in parts) for parts in (passes[0].states, passes[0].projected)))


_MAP = "hidden_states.weight"
_NEVER = -1e9
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
