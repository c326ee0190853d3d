"""All weights learn."""

from tl_nlp.recipe import Method


class Full(Method):
    """Fine-tuning of the whole model."""

    embeddings: bool = True  # false: the embedding tables stay as pretrained, which is faster on a CPU

    def learning(self, weights: list[str], head: list[str], epoch: float) -> set[str]:
        return {name for name in weights if self.embeddings or not _is_embedding(name)}


def _is_embedding(name: str) -> bool:
    return any("embedding" in part or part in ("shared", "embed_tokens") for part in name.split("."))
