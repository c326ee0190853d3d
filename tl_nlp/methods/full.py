"""All weights learn."""

from tl_nlp.families import in_head, is_embedding
from tl_nlp.recipe import Method


class Full(Method):
    """Fine-tuning of the whole model. With `head_epochs` it is the guide's two stages: first the head, then all."""

    embeddings: bool = True  # false: the backbone's embedding tables stay as pretrained, which is faster on a CPU

    def learning(self, weights: list[str], head: list[str], epoch: float) -> set[str]:
        return {name for name in weights if self.embeddings or in_head(name, head) or not is_embedding(name)}
