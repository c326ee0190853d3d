"""Any number of labels at once: topics, tags, toxic traits."""

from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from tl_nlp.errors import DataError
from tl_nlp.recipe import Pooling, Task
from tl_nlp.statistics import best_threshold
from tl_nlp.types import Labels, Metrics, Prediction
from tl_nlp.windows import text_windows


class Multilabel(Task):
    """Each label is a decision of its own. A target is a list of labels, or `a|b` where the file holds text."""

    head: ClassVar[str] = "multilabel"
    main_metric: ClassVar[str] = "micro_f1"

    labels: tuple[str, ...] = ()  # default: those in the data, in order
    max_windows: int = Field(8, ge=1)
    pooling: Pooling = "checkpoint"
    dropout: float = Field(0.0, ge=0, lt=1)  # of pooled states, before the last layer, in training
    threshold: float | None = Field(None, gt=0, lt=1)  # the probability from which a label is given; default:
    thresholds: dict[str, Annotated[float, Field(gt=0, lt=1)]] = {}  # fitted for each label on validation, 0.5 before

    def resolve(self, rows: Any) -> "Multilabel":
        if self.labels:
            return self
        found = sorted({name for split in rows.values() for target in split["target"] for name in split_labels(target)})
        if not found:
            raise DataError("no row has a label; a target is a list of labels, or a|b in a CSV")
        return self.model_copy(update={"labels": tuple(found)})

    def head_settings(self) -> dict[str, Any]:
        return {"pooling": self.pooling, "max_windows": self.max_windows, "dropout": self.dropout}

    def faults(self, rows: dict[str, list[Any]]) -> dict[int, str]:
        if not self.labels:
            return {}
        unknown = (
            (number, set(split_labels(target)) - set(self.labels)) for number, target in enumerate(rows["target"])
        )
        return {
            number: f"{min(names)!r} is none of the labels {', '.join(self.labels)}"
            for number, names in unknown
            if names
        }

    def outputs(self) -> list[str]:
        return list(self.labels)

    def encode(self, rows: dict[str, list[Any]], tokenizer: Any) -> dict[str, list[Any]]:
        encoded = text_windows(rows["text"], rows.get("pair"), tokenizer, self.max_length, self.max_windows)
        if "target" in rows:
            encoded["labels"] = self.labels_of(rows)
        return encoded

    def labels_of(self, rows: dict[str, list[Any]]) -> list[list[float]]:
        return self._indicators(rows).astype(float).tolist()

    def _indicators(self, rows: dict[str, list[Any]]) -> np.ndarray:
        """0/1 of shape (examples, labels)."""
        self.refuse_faults(rows)
        given = [set(split_labels(target)) for target in rows["target"]]
        return np.asarray([[name in names for name in self.labels] for names in given], np.int8)

    def decode(self, outputs: list[np.ndarray], rows: dict[str, list[Any]], tokenizer: Any) -> list[Prediction]:
        return [
            Labels(
                [
                    name
                    for name, share in zip(self.labels, probabilities, strict=True)
                    if share >= self.threshold_of(name)
                ],
                dict(zip(self.labels, probabilities.tolist(), strict=True)),
            )
            for probabilities in outputs
        ]

    def threshold_of(self, label: str) -> float:
        """The probability from which a label is given."""
        return self.threshold if self.threshold is not None else self.thresholds.get(label, 0.5)

    def calibrated(self, outputs: list[np.ndarray], rows: dict[str, list[Any]]) -> "Multilabel":
        if self.threshold is not None or self.thresholds:
            return self
        truth, shares = self._indicators(rows), np.asarray(outputs)
        fitted = {name: best_threshold(truth[:, place], shares[:, place]) for place, name in enumerate(self.labels)}
        return self.model_copy(update={"thresholds": fitted})

    def score(self, predictions: list[Prediction], rows: dict[str, list[Any]]) -> Metrics:
        from tl_nlp.scoring import LabelsMetrics

        given = {"target": [p.labels for p in predictions if isinstance(p, Labels)], "id": rows["id"]}
        return LabelsMetrics().compute(
            predictions=self._indicators(given).tolist(), references=self._indicators(rows).tolist()
        )


def split_labels(target: Any) -> list[str]:
    """The labels of a target that is a list, or text with `|` between the labels."""
    names = target if isinstance(target, list) else (target or "").split("|")
    return [str(name).strip() for name in names if name is not None and str(name).strip()]
