"""Gradual unfreezing: the head first, then block after block from the top."""

import math

from pydantic import Field

from tl_nlp.families import blocks, depths
from tl_nlp.recipe import Method


class Gradual(Method):
    """ULMFiT's schedule (Howard & Ruder 2018, section 3.3, https://arxiv.org/abs/1801.06146), in fractions of epochs.

    The head learns alone for `head_epochs`, then the top block joins, and `every` so many epochs the next one below;
    the embeddings come last. `training.layer_decay` goes with it. Where the epochs end earlier, the lowest blocks stay.
    """

    head_epochs: float = Field(0.5, ge=0)
    every: float = Field(0.25, gt=0)  # epochs from one block to the next

    def learning(self, weights: list[str], head: list[str], epoch: float) -> set[str]:
        # 1e-9: three tenths of an epoch are three times a tenth
        n_thawed = 1 + math.floor(epoch / self.every + 1e-9)
        lowest = len(blocks(weights)) - n_thawed + 1
        return {name for name, depth in depths(weights, head).items() if depth >= lowest}
