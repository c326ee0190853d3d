"""Only the head learns, on features that the frozen backbone computes once."""

from typing import Any, ClassVar

from tl_nlp.errors import RecipeError
from tl_nlp.recipe import Method


class Head(Method):
    """Linear probing: the backbone is frozen, so its outputs are cached and every further epoch takes milliseconds."""

    loads_in: ClassVar[tuple[str, ...]] = ("float32", "bfloat16", "float16", "int8", "nf4")

    def apply(self, model: Any, head: list[str]) -> Any:
        if not head:
            raise RecipeError(
                f"{type(model).__name__} writes text through its embeddings and has no head of its own "
                "to train; methods that fit: full, lora",
                "method",
            )
        return model

    def learning(self, weights: list[str], head: list[str], epoch: float) -> set[str]:
        return {name for name in weights if name.startswith(tuple(f"{module}." for module in head))}
