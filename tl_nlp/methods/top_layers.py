"""The top blocks and the head learn, what is below stays as pretrained."""

from typing import Any

from pydantic import Field

from tl_nlp.errors import RecipeError
from tl_nlp.families import blocks, depths
from tl_nlp.recipe import Method


class TopLayers(Method):
    """The head, the top `n_blocks` blocks, and what stands above them; a decoder's blocks are above its encoder's."""

    n_blocks: int = Field(2, ge=1)

    def check(self, model: Any, head: list[str]) -> None:
        n_there = len(blocks([name for name, _ in model.named_parameters()]))
        if self.n_blocks > n_there:
            raise RecipeError(f"the checkpoint has {n_there} blocks, not {self.n_blocks}", "method.n_blocks")

    def learning(self, weights: list[str], head: list[str], epoch: float) -> set[str]:
        lowest = len(blocks(weights)) - self.n_blocks + 1
        return {name for name, depth in depths(weights, head).items() if depth >= lowest}
