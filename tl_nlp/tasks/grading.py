"""Numbers on a scale, for one or several traits: essays, short answers, ratings."""

import math
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, model_validator

from tl_nlp.errors import DataError, RecipeError
from tl_nlp.metrics import Measured
from tl_nlp.recipe import Pooling, Task
from tl_nlp.types import Metrics, Prediction, Scores
from tl_nlp.windows import text_windows


class Grading(Task):
    """A grade between `low` and `high` for each trait; the pair is the question, prompt or reference answer.

    The model learns grades as shares of the scale, 0 to 1. Rows may bring scales of their own, columns low and high.
    """

    head: ClassVar[str] = "regress"
    main_metric: ClassVar[str] = "qwk"
    columns: ClassVar[tuple[str, ...]] = ("low", "high")

    traits: tuple[str, ...] = ("score",)  # several: the target is a struct with these keys, empty where not graded
    low: float | None = None  # default: the rows' column, else the least grade in the training rows
    high: float | None = None
    step: float = Field(1.0, gt=0)  # between two grades, counted from low, for QWK
    max_windows: int = Field(8, ge=1)
    pooling: Pooling = "checkpoint"

    @model_validator(mode="after")
    def _scale(self) -> "Grading":
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise RecipeError(f"the scale ends at {self.high:g}, not above its low {self.low:g}", "high")
        if not self.traits or len(set(self.traits)) != len(self.traits):
            raise RecipeError("traits are one or more different names", "traits")
        return self

    def resolve(self, rows: Any) -> "Grading":
        if self.low is not None and self.high is not None:
            return self
        if {"low", "high"} <= set(rows["train"].column_names):
            return self
        train = rows["train"]
        grades = np.asarray([self._grades(t, row) for t, row in zip(train["target"], train["id"], strict=True)])
        low = float(np.nanmin(grades)) if self.low is None else self.low
        high = float(np.nanmax(grades)) if self.high is None else self.high
        if low >= high:
            raise DataError(f"every grade in the training rows is {low:g}; name the scale with task.low and task.high")
        return self.model_copy(update={"low": low, "high": high})

    def head_settings(self) -> dict[str, Any]:
        return {"pooling": self.pooling}

    def outputs(self) -> list[str]:
        return list(self.traits)

    def encode(self, rows: dict[str, list[Any]], tokenizer: Any) -> dict[str, list[Any]]:
        encoded = text_windows(rows["text"], rows.get("pair"), tokenizer, self.max_length, self.max_windows)
        if "target" in rows:
            encoded["labels"] = []
            for row, target, (low, high) in zip(rows["id"], rows["target"], self._scales(rows), strict=True):
                grades = self._grades(target, row)
                outside = [grade for grade in grades if grade < low or grade > high]
                if outside:
                    raise DataError(
                        f"row {row}: the grade {outside[0]:g} is outside the scale {low:g} to {high:g}; "
                        "correct the row, or the scale in task.low and task.high"
                    )
                encoded["labels"].append([(grade - low) / (high - low) for grade in grades])
        return encoded

    def _grades(self, target: Any, row: str) -> list[float]:
        """One number for each trait, NaN where it is not graded."""
        values = target if isinstance(target, dict) else {self.traits[0]: target}
        missing = [trait for trait in self.traits if trait not in values]
        if missing:
            raise DataError(f"row {row}: no trait {missing[0]!r} in its target; there are: {', '.join(values)}")
        try:
            grades = [math.nan if values[t] in (None, "") else float(values[t]) for t in self.traits]
        except (TypeError, ValueError):
            raise DataError(f"row {row}: the grade {target!r} is no number") from None
        if all(math.isnan(grade) for grade in grades):
            raise DataError(f"row {row}: it has no grade; grade it or drop it")
        return grades

    def _scales(self, rows: dict[str, list[Any]]) -> list[tuple[float, float]]:
        """The low and high of each row: the task's, else its own."""
        n_rows = len(rows["text"])
        lows = [self.low] * n_rows if self.low is not None else rows.get("low") or [None] * n_rows
        highs = [self.high] * n_rows if self.high is not None else rows.get("high") or [None] * n_rows
        scales = []
        for row, low, high in zip(rows["id"], lows, highs, strict=True):
            try:
                scale = float(low), float(high)
            except (TypeError, ValueError):
                scale = math.nan, math.nan
            if not scale[0] < scale[1]:
                raise DataError(
                    f"row {row}: its scale is {low} to {high}; give the columns low and high, low below high"
                )
            scales.append(scale)
        return scales

    def decode(self, outputs: list[np.ndarray], rows: dict[str, list[Any]], tokenizer: Any) -> list[Prediction]:
        return [
            Scores(dict(zip(self.traits, (low + np.clip(shares, 0, 1) * (high - low)).tolist(), strict=True)))
            for shares, (low, high) in zip(outputs, self._scales(rows), strict=True)
        ]

    def score(self, predictions: list[Prediction], rows: dict[str, list[Any]]) -> Metrics:
        """Means over the traits; with several traits, each trait's own as `qwk_TRAIT` and so on."""
        from tl_nlp.scoring import ScoreMetrics

        references = np.asarray([self._grades(t, row) for t, row in zip(rows["target"], rows["id"], strict=True)])
        given = np.asarray([list(p.scores.values()) for p in predictions if isinstance(p, Scores)])
        lows = np.asarray([low for low, _ in self._scales(rows)])
        groups = np.asarray([str(group) for group in rows.get("group") or ["all"] * len(given)])
        by_trait, inside = {}, {}
        for column, trait in enumerate(self.traits):
            graded = ~np.isnan(references[:, column])
            if graded.any():
                inside[trait] = graded
                by_trait[trait] = ScoreMetrics().compute(
                    predictions=given[graded, column],
                    references=references[graded, column],
                    groups=groups[graded].tolist(),
                    lows=lows[graded],
                    step=self.step,
                )
        if len(self.traits) == 1:
            return by_trait[self.traits[0]]
        names = next(iter(by_trait.values()))
        means: Metrics = {name: Measured.mean_of([(inside[t], by_trait[t][name]) for t in by_trait]) for name in names}
        own: Metrics = {
            f"{name}_{trait}": Measured.mean_of([(inside[trait], value)])
            for trait, values in by_trait.items()
            for name, value in values.items()
        }
        return means | own
