"""How far a student's hidden states are from those of a frozen teacher that reads the same tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tl_nlp.families import backbone
from tl_nlp.hardware import inferring
from tl_nlp.heads import Batch, pool

States = tuple[Tensor, ...]
"""The states after each block, the lowest first, each of shape (windows, tokens, width)."""


class HiddenStates:
    """TinyBERT's loss of hidden states (Jiao et al. 2020, https://arxiv.org/abs/1909.10351, equation 8).

    Block m of the student's M is held to block m N / M of the teacher's N, rounded up, so that the top one is held to
    the top one. Where widths differ a linear map of the student's states is learned, one for all blocks, in `weights`.
    """

    def __init__(self, teacher: Any, student: Any, precision: str, seed: int):
        self.teacher, self.precision = teacher.requires_grad_(False), precision
        ours, theirs = (backbone(model).config.hidden_size for model in (student, teacher))
        self.weights: dict[str, nn.Parameter] = {}
        if ours != theirs:
            drawn = torch.randn(theirs, ours, generator=torch.Generator().manual_seed(seed)) / math.sqrt(ours)
            self.weights[_MAP] = nn.Parameter(drawn.to(next(student.parameters()).device))

    @contextmanager
    def watching(self, student: Any) -> Iterator[list[States]]:
        """Within the block the states of every pass of the student are added to what this gives."""
        passes: list[States] = []
        body = backbone(student)
        asked = body.register_forward_pre_hook(
            lambda _, inputs, named: (inputs, {**named, "output_hidden_states": True}), with_kwargs=True
        )
        told = body.register_forward_hook(lambda _, inputs, outputs: passes.append(outputs.hidden_states[1:]))
        try:
            yield passes
        finally:
            asked.remove()
            told.remove()

    def loss(self, passes: list[States], batch: Batch) -> Tensor:
        """The mean squared error of each example's states, over its tokens, the width, the blocks and the passes,
        summed over the examples and once for each label that an example has."""
        mask, rows = batch["attention_mask"], batch["rows"].repeat_interleave(batch["attention_mask"].shape[1])
        theirs = self._of_teacher(batch)
        total = mask.new_zeros((), dtype=torch.float)
        for ours in passes:
            for block, states in enumerate(ours, 1):
                wanted = theirs[-(-block * len(theirs) // len(ours)) - 1]
                gaps = (self._mapped(states).float() - wanted.float()).square().mean(-1)
                of_examples = pool(gaps.flatten().unsqueeze(1), rows, mask.flatten(), int(batch["n_rows"]))
                total = total + of_examples.sum() / (len(ours) * len(passes))
        return total * batch["labels"][0].numel()

    def _of_teacher(self, batch: Batch) -> States:
        inputs = {name: batch[name] for name in _INPUTS if name in batch}
        with inferring(self.teacher, self.precision):
            found = backbone(self.teacher)(**inputs, output_hidden_states=True).hidden_states[1:]
        return tuple(states.clone() for states in found)  # of inference, which autograd does not take

    def _mapped(self, states: Tensor) -> Tensor:
        return functional.linear(states, self.weights[_MAP]) if self.weights else states


_MAP = "hidden_states.weight"
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
