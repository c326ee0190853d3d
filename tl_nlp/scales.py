"""Grades on scales: what a row's are, what people gave it, and the scale of each."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import numpy as np
from pydantic import Field, model_validator

from tl_nlp.errors import DataError, RecipeError
from tl_nlp.recipe import Task

RATERS = ("rater1", "rater2", "rater3")
SCALED_BY = ("group", "low", "high")
"""The columns that a row's scale is told by."""
Scale = tuple[float, float]


class Scaled(Task):
    """Base of tasks whose targets are grades between `low` and `high` for each trait, learned as shares of the scale.

    A scale is `low` to `high`, else the row's own, in columns low and high, else that of its group in `scales`. The
    columns rater1, rater2 and rater3 hold what single people gave.
    """

    columns: ClassVar[tuple[str, ...]] = ("low", "high", *RATERS)

    traits: tuple[str, ...] = ("score",)  # several: the target is a struct with these keys, empty where not graded
    low: float | None = None  # default: the rows' column, else the least grade in the training rows
    high: float | None = None
    scales: dict[str, Scale] = {}  # of groups: {"prompt1": [2, 12]}; "" of all others; default: those in the rows
    step: float = Field(1.0, gt=0)  # between two grades, counted from low

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise RecipeError(f"the scale ends at {self.high:g}, not above its low {self.low:g}", "high")
        for group, (low, high) in self.scales.items():
            if low >= high:
                raise RecipeError(f"the scale of {group!r} ends at {high:g}, not above its low {low:g}", "scales")
        if not self.traits or len(set(self.traits)) != len(self.traits):
            raise RecipeError("traits are one or more different names", "traits")
        return self

    def with_scale(self, rows: Any) -> Self:
        if (self.low is not None and self.high is not None) or self.scales:
            return self
        if all({"low", "high"} <= set(split.column_names) for split in rows.values()):
            return self.model_copy(update={"scales": _scales_in(rows)})
        grades = np.asarray([self.grades_of(target) for target in rows["train"]["target"]])
        low = float(np.nanmin(grades)) if self.low is None else self.low
        high = float(np.nanmax(grades)) if self.high is None else self.high
        if low >= high:
            raise DataError(f"every grade in the training rows is {low:g}; name the scale with task.low and task.high")
        return self.model_copy(update={"low": low, "high": high})

    def terms(self) -> dict[str, Any]:
        return {"traits": list(self.traits), "low": self.low, "high": self.high, "scales": self.scales}

    def n_levels(self, low: float, high: float) -> int:
        """How many grades a scale has."""
        return round((high - low) / self.step) + 1

    def faults(self, rows: dict[str, list[Any]]) -> dict[int, str]:
        found = {}
        has_scale = bool(self.scales) or all(getattr(self, end) is not None or rows.get(end) for end in ("low", "high"))
        for number, target in enumerate(rows["target"]):
            try:
                grades = self.grades_of(target)
                if has_scale:
                    low, high = self._scale_of(rows, number)
                    outside = [grade for grade in grades if grade < low or grade > high]
                    if outside:
                        found[number] = (
                            f"the grade {outside[0]:g} is outside the scale {low:g} to {high:g} (task.low, task.high)"
                        )
                self.ratings_of(rows, number)
            except ValueError as error:
                found[number] = str(error)
        return found

    def labels_of(self, rows: dict[str, list[Any]]) -> list[list[float]]:
        self.refuse_faults(rows)
        return [
            [(grade - low) / (high - low) for grade in self.grades_of(target)]
            for target, (low, high) in zip(rows["target"], self.scales_of(rows), strict=True)
        ]

    def grades_of(self, target: Any) -> list[float]:
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

    def ratings_of(self, rows: dict[str, list[Any]], number: int) -> list[float]:
        """What people gave a row, NaN where nothing. Raises ValueError."""
        given = [rows[name][number] for name in RATERS if rows.get(name)]
        try:
            return [math.nan if value in (None, "") else float(value) for value in given]
        except (TypeError, ValueError):
            raise ValueError(f"the grades of its raters, {given}, are not all numbers") from None

    def _scale_of(self, rows: dict[str, list[Any]], number: int) -> tuple[float, float]:
        """The low and high of a row. Raises ValueError."""
        low = self.low if self.low is not None else rows["low"][number] if rows.get("low") else None
        high = self.high if self.high is not None else rows["high"][number] if rows.get("high") else None
        if self.scales and (low is None or high is None):
            group = str(rows["group"][number]) if rows.get("group") else ""
            if (own := of_group(self.scales, group)) is None:
                raise ValueError(f"its group {group!r} has no scale; task.scales has: {', '.join(self.scales)}")
            return own
        try:
            scale = float(low), float(high)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            scale = math.nan, math.nan
        if not scale[0] < scale[1]:
            raise ValueError(f"its scale is {low} to {high}; give the columns low and high, low below high")
        return scale

    def scales_of(self, rows: dict[str, list[Any]]) -> list[tuple[float, float]]:
        """The low and high of each row. Raises DataError."""
        scales = []
        for number, row in enumerate(rows["id"]):
            try:
                scales.append(self._scale_of(rows, number))
            except ValueError as error:
                raise DataError(f"row {row}: {error}") from None
        return scales


def _scales_in(rows: Any) -> dict[str, Scale]:
    """The scales that rows bring, by their groups, so that texts without a row can be graded: under "" where all are
    the same, none where a group has several."""
    found: dict[str, set[Scale]] = {}
    for split in rows.values():
        groups = split["group"] if "group" in split.column_names else [""] * len(split)
        for group, low, high in zip(groups, split["low"], split["high"], strict=True):
            found.setdefault(str(group), set()).add((float(low), float(high)))
    if len(everywhere := set().union(*found.values())) == 1:
        return {"": everywhere.pop()}
    if any(len(scales) > 1 for scales in found.values()):
        return {}
    return {group: scales.pop() for group, scales in sorted(found.items())}


def groups_of(rows: dict[str, list[Any]]) -> list[str]:
    """The group of each row, "" where rows have none."""
    return [str(group) for group in rows.get("group") or [""] * len(rows["text"])]


def rows_by_group(groups: list[str]) -> dict[str, np.ndarray]:
    """Which rows are of each group, and under "" all of them."""
    names = np.asarray(groups)
    return {name: names == name for name in np.unique(names).tolist()} | {"": np.ones(len(names), bool)}


def of_group(values: dict[str, Any], group: str) -> Any:
    """Those of the group, else those of all rows, else None."""
    return values.get(group, values.get(""))
