"""Only biases and norms learn, and the head."""

from typing import ClassVar, Literal

from tl_nlp.families import in_head, is_norm
from tl_nlp.recipe import Method


class Bitfit(Method):
    """BitFit (Ben Zaken et al. 2022, https://arxiv.org/abs/2106.10199), norms included: about 0.1 % of the backbone.

    The artifact is a whole model.
    """

    moves: ClassVar[Literal["biases"]] = "biases"

    def learning(self, weights: list[str], head: list[str], epoch: float) -> set[str]:
        return {name for name in weights if name.endswith("bias") or is_norm(name) or in_head(name, head)}
