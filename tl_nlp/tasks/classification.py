"""One label out of several: sentiment, intents, topics, stars."""

from typing import Any, ClassVar

import numpy as np
from pydantic import Field, field_validator

from tl_nlp.errors import DataError
from tl_nlp.recipe import Pooling, Task
from tl_nlp.types import Label, Metrics, Prediction
from tl_nlp.windows import text_windows


class Classification(Task):
    """Exactly one of the labels for each text. Long texts: the windows' logits are averaged by their lengths."""

    head: ClassVar[str] = "classify"
    main_metric: ClassVar[str] = "accuracy"

    labels: tuple[str, ...] = ()  # default: those in the data, in order
    max_windows: int = Field(8, ge=1)
    pooling: Pooling = "checkpoint"

    @field_validator("labels")
    @classmethod
    def _distinct(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(labels)) != len(labels) or len(labels) == 1 or "" in labels:
            raise ValueError("labels are two or more different names")
        return labels

    def resolve(self, rows: Any) -> "Classification":
        if self.labels:
            return self
        found = sorted({target for split in rows.values() for target in split.unique("target")}, key=in_order)
        if "" in found:
            blank = next(row for split in rows.values() for row in split if row["target"] == "")
            raise DataError(f"row {blank['id']}: its target is empty; label the row or drop it with data.where")
        if len(found) < 2:
            raise DataError(f"the targets are all {found[0]!r}; a classification needs two or more labels")
        return self.model_copy(update={"labels": tuple(found)})

    def head_settings(self) -> dict[str, Any]:
        return {"pooling": self.pooling}

    def outputs(self) -> list[str]:
        return list(self.labels)

    def encode(self, rows: dict[str, list[Any]], tokenizer: Any) -> dict[str, list[Any]]:
        encoded = text_windows(rows["text"], rows.get("pair"), tokenizer, self.max_length, self.max_windows)
        if "target" in rows:
            encoded["labels"] = [
                self._index(target, row) for target, row in zip(rows["target"], rows["id"], strict=True)
            ]
        return encoded

    def _index(self, target: str, row: str) -> int:
        if target not in self.labels:
            raise DataError(
                f"row {row}: {target!r} is none of the labels {', '.join(self.labels)}; "
                "add it to task.labels, map it with data.values or drop the row with data.where"
            )
        return self.labels.index(target)

    def decode(self, outputs: list[np.ndarray], rows: dict[str, list[Any]], tokenizer: Any) -> list[Prediction]:
        return [
            Label(self.labels[int(probabilities.argmax())], dict(zip(self.labels, probabilities.tolist(), strict=True)))
            for probabilities in outputs
        ]

    def score(self, predictions: list[Prediction], rows: dict[str, list[Any]]) -> Metrics:
        from tl_nlp.scoring import LabelMetrics

        for target, row in zip(rows["target"], rows["id"], strict=True):
            self._index(target, row)
        names = [prediction.label for prediction in predictions if isinstance(prediction, Label)]
        return LabelMetrics().compute(predictions=names, references=rows["target"], labels=list(self.labels))


def in_order(label: str) -> tuple[float, str]:
    """Numbers by value, before words."""
    try:
        return float(label), label
    except ValueError:
        return float("inf"), label
