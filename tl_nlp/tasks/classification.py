"""One label out of several: sentiment, intents, topics, stars."""

from typing import Any, ClassVar

import numpy as np
from pydantic import Field, field_validator

from tl_nlp.errors import DataError
from tl_nlp.recipe import Pooling, Task
from tl_nlp.statistics import fit_temperature, tempered
from tl_nlp.types import Label, Metrics, Prediction
from tl_nlp.windows import text_windows


class Classification(Task):
    """Exactly one of the labels for each text. Long texts: the windows' logits are averaged by their lengths."""

    head: ClassVar[str] = "classify"
    main_metric: ClassVar[str] = "accuracy"

    labels: tuple[str, ...] = ()  # default: those in the data, in order
    max_windows: int = Field(8, ge=1)
    pooling: Pooling = "checkpoint"
    dropout: float = Field(0.0, ge=0, lt=1)  # of pooled states, before the last layer, in training
    temperature: float | None = Field(None, gt=0)  # divides logits; default: fitted on validation after the training

    @field_validator("labels")
    @classmethod
    def _distinct(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(labels)) != len(labels) or len(labels) == 1 or "" in labels:
            raise ValueError("labels are two or more different names")
        return labels

    def resolve(self, rows: Any) -> "Classification":
        if self.labels:
            return self
        found = sorted({target for split in rows.values() for target in split.unique("target")} - {""}, key=in_order)
        if len(found) < 2:
            raise DataError(f"the targets are all {''.join(found)!r}; a classification needs two or more labels")
        return self.model_copy(update={"labels": tuple(found)})

    def head_settings(self) -> dict[str, Any]:
        return {"pooling": self.pooling, "max_windows": self.max_windows, "dropout": self.dropout}

    def faults(self, rows: dict[str, list[Any]]) -> dict[int, str]:
        known, mend = set(self.labels), "add it to task.labels, or map it with data.values"
        unknown = f"is none of the labels {', '.join(self.labels)}; {mend}"
        return {
            number: self._fault(target, unknown)
            for number, target in enumerate(rows["target"])
            if not isinstance(target, str) or not target.strip() or (known and target not in known)
        }

    @staticmethod
    def _fault(target: Any, unknown: str) -> str:
        if isinstance(target, str):
            return f"{target!r} {unknown}" if target.strip() else "its target is empty"
        return f"its target is a {type(target).__name__}; task multilabel takes lists of labels, grading traits"

    def outputs(self) -> list[str]:
        return list(self.labels)

    def encode(self, rows: dict[str, list[Any]], tokenizer: Any) -> dict[str, list[Any]]:
        encoded = text_windows(rows["text"], rows.get("pair"), tokenizer, self.max_length, self.max_windows)
        if "target" in rows:
            encoded["labels"] = self.labels_of(rows)
        return encoded

    def labels_of(self, rows: dict[str, list[Any]]) -> list[int]:
        self.refuse_faults(rows)
        return [self.labels.index(target) for target in rows["target"]]

    def decode(self, outputs: list[np.ndarray], rows: dict[str, list[Any]], tokenizer: Any) -> list[Prediction]:
        shares = np.asarray(outputs, float)
        if self.temperature is not None:
            shares = tempered(shares, self.temperature)
        return [
            Label(self.labels[int(row.argmax())], dict(zip(self.labels, row.tolist(), strict=True))) for row in shares
        ]

    def calibrated(self, outputs: list[np.ndarray], rows: dict[str, list[Any]]) -> "Classification":
        if self.temperature is not None:
            return self
        shares, labels = np.asarray(outputs, float), np.asarray(self.labels_of(rows))
        if (shares.argmax(axis=1) == labels).all():  # then the likelihood only grows as the temperature falls
            return self.model_copy(update={"temperature": 1.0})
        fitted = fit_temperature(shares, labels)
        return self.model_copy(update={"temperature": round(fitted, 4)})

    def score(self, predictions: list[Prediction], rows: dict[str, list[Any]]) -> Metrics:
        from tl_nlp.scoring import LabelMetrics

        self.refuse_faults(rows)
        names = [prediction.label for prediction in predictions if isinstance(prediction, Label)]
        return LabelMetrics().compute(predictions=names, references=rows["target"], labels=list(self.labels))


def in_order(label: str) -> tuple[float, str]:
    """Numbers by value, before words."""
    try:
        return float(label), label
    except ValueError:
        return float("inf"), label
