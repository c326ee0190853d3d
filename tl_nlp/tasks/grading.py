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
        grades = np.asarray([self._grades(target) for target in train["target"]])
        low = float(np.nanmin(grades)) if self.low is None else self.low
        high = float(np.nanmax(grades)) if self.high is None else self.high
        if low >= high:
            raise DataError(f"every grade in the training rows is {low:g}; name the scale with task.low and task.high")
        return self.model_copy(update={"low": low, "high": high})

    def head_settings(self) -> dict[str, Any]:
        return {"pooling": self.pooling}

    def faults(self, rows: dict[str, list[Any]]) -> dict[int, str]:
        found = {}
        has_scale = all(getattr(self, end) is not None or rows.get(end) for end in ("low", "high"))
        for number, target in enumerate(rows["target"]):
            try:
                grades = self._grades(target)
                if has_scale:
                    low, high = self._scale_of(rows, number)
                    outside = [grade for grade in grades if grade < low or grade > high]
                    if outside:
                        found[number] = (
                            f"the grade {outside[0]:g} is outside the scale {low:g} to {high:g} (task.low, task.high)"
                        )
            except ValueError as error:
                found[number] = str(error)
        return found

    def outputs(self) -> list[str]:
        return list(self.traits)

    def encode(self, rows: dict[str, list[Any]], tokenizer: Any) -> dict[str, list[Any]]:
        encoded = text_windows(rows["text"], rows.get("pair"), tokenizer, self.max_length, self.max_windows)
        if "target" in rows:
            encoded["labels"] = self.labels_of(rows)
        return encoded

    def labels_of(self, rows: dict[str, list[Any]]) -> list[list[float]]:
        self.refuse_faults(rows)
        return [
            [(grade - low) / (high - low) for grade in self._grades(target)]
            for target, (low, high) in zip(rows["target"], self._scales(rows), strict=True)
        ]

    def _grades(self, target: Any) -> list[float]:
        """One number for each trait, NaN where it is not graded. Raises ValueError."""
        values = target if isinstance(target, dict) else {self.traits[0]: target}
        missing = [trait for trait in self.traits if trait not in values]
        if missing:
            raise ValueError(f"no trait {missing[0]!r} in its target; there are: {', '.join(values)}")
        try:
            grades = [math.nan if values[t] in (None, "") else float(values[t]) for t in self.traits]
        except (TypeError, ValueError):
            raise ValueError(f"the grade {target!r} is no number") from None
        if all(math.isnan(grade) for grade in grades):
            raise ValueError("it has no grade")
        return grades

    def _scale_of(self, rows: dict[str, list[Any]], number: int) -> tuple[float, float]:
        """The low and high of a row: the task's, else its own. Raises ValueError."""
        low = self.low if self.low is not None else rows["low"][number] if rows.get("low") else None
        high = self.high if self.high is not None else rows["high"][number] if rows.get("high") else None
        try:
            scale = float(low), float(high)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            scale = math.nan, math.nan
        if not scale[0] < scale[1]:
            raise ValueError(f"its scale is {low} to {high}; give the columns low and high, low below high")
        return scale

    def _scales(self, rows: dict[str, list[Any]]) -> list[tuple[float, float]]:
        scales = []
        for number, row in enumerate(rows["id"]):
            try:
                scales.append(self._scale_of(rows, number))
            except ValueError as error:
                raise DataError(f"row {row}: {error}") from None
        return scales

    def decode(self, outputs: list[np.ndarray], rows: dict[str, list[Any]], tokenizer: Any) -> list[Prediction]:
        return [
            Scores(dict(zip(self.traits, np.clip(low + shares * (high - low), low, high).tolist(), strict=True)))
            for shares, (low, high) in zip(np.asarray(outputs, float), self._scales(rows), strict=True)
        ]

    def score(self, predictions: list[Prediction], rows: dict[str, list[Any]]) -> Metrics:
        """Means over the traits; with several traits, each trait's own as `qwk_TRAIT` and so on."""
        from tl_nlp.scoring import ScoreMetrics

        self.refuse_faults(rows)
        references = np.asarray([self._grades(target) for target in rows["target"]])
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
