"""Only the head learns, on features that the frozen backbone computes once."""

from typing import ClassVar, Literal

from tl_nlp.families import in_head
from tl_nlp.recipe import ANY_FORMAT, ENCODER_HEADS, Method


class Head(Method):
    """Linear probing: the backbone is frozen, so its outputs are cached and every further epoch takes milliseconds."""

    heads: ClassVar[tuple[str, ...]] = ENCODER_HEADS
    moves: ClassVar[Literal["head"]] = "head"

    @property
    def loads_in(self) -> tuple[str, ...]:
        return ANY_FORMAT

    def learning(self, weights: list[str], head: list[str], epoch: float) -> set[str]:
        return {name for name in weights if in_head(name, head)}
