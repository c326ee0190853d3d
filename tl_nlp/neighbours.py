"""Which examples a model holds to be most like a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tl_nlp.errors import DataError
from tl_nlp.families import encoder_of
from tl_nlp.features import embeddings
from tl_nlp.prediction import Predictor
from tl_nlp.rows import columns_of
from tl_nlp.types import COLUMNS

if TYPE_CHECKING:
    from datasets import Dataset

_CHUNK = 10_000  # rows that are encoded at once


@dataclass(frozen=True)
class Neighbour:
    """A row that is like a text, and the cosine between the two."""

    id: str
    text: str
    target: Any
    similarity: float


def nearest(predictor: Predictor, text: str, pair: str | None, rows: Dataset, n: int = 5) -> list[Neighbour]:
    """The rows most like a text, at most `n`, the most like first: by the cosine of the means of the last states that
    the model's encoder has for all tokens, the pair's among them. The states of rows are kept (`feature_cache`).

    Raises DataError for an empty text.
    """
    if not isinstance(text, str) or not text.strip():
        raise DataError("the text is empty; it is like no other")
    predictor.refuse_export("states to compare texts by")
    from datasets import Dataset

    task, encoder = predictor.task, encoder_of(predictor.model)
    names = tuple(name for name in (*COLUMNS, *task.columns) if name != "target")

    def states(values: dict[str, list[Any]]) -> np.ndarray:
        """Of length 1, shape (examples, hidden)."""
        encoded = Dataset.from_dict(task.encode(values, predictor.tokenizer))
        found = embeddings(encoder, encoded, predictor.pad_id, predictor.precision, "embeddings")
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    own = states({"id": ["0"], "text": [text], **({} if pair is None else {"pair": [pair]})})[0]
    cosines = np.concatenate(
        [np.empty(0, np.float32)]
        + [
            states(columns_of(rows.select(range(start, min(start + _CHUNK, len(rows)))), names)) @ own
            for start in range(0, len(rows), _CHUNK)
        ]
    )
    found = []
    for place in np.argsort(-cosines, kind="stable")[:n].tolist():
        row = rows[place]
        found.append(Neighbour(row["id"], row["text"], row.get("target"), float(cosines[place])))
    return found
