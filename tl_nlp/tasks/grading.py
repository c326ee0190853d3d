"""Numbers on a scale, for one or several traits: essays, short answers, ratings."""

import bisect
import math
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from tl_nlp.errors import DataError, RecipeError
from tl_nlp.grades import Knots, at, fit_cuts, fit_errors, most_error
from tl_nlp.metrics import Measured, mean_qwk
from tl_nlp.recipe import Pooling, Task
from tl_nlp.types import Metrics, Prediction, Scores
from tl_nlp.windows import text_windows

RATERS = ("rater1", "rater2", "rater3")
Scale = tuple[float, float]
_SCALED_BY = ("group", "low", "high")
_FEWEST = 30  # rows that cuts between grades are fitted to
_TWO_SIDED = 1.96  # standard deviations that 95 of 100 are within


class Grading(Task):
    """A grade between `low` and `high` for each trait; the pair is the question, prompt, reference answer or rubric.

    The model learns grades as shares of the scale, 0 to 1. A scale is `low` to `high`, else the row's own, in columns
    low and high, else that of its group in `scales`. The columns rater1, rater2 and rater3 hold what single people
    gave, to compare the model's errors with theirs.
    """

    head: ClassVar[str] = "regress"
    main_metric: ClassVar[str] = "qwk"
    columns: ClassVar[tuple[str, ...]] = ("low", "high", *RATERS)

    traits: tuple[str, ...] = ("score",)  # several: the target is a struct with these keys, empty where not graded
    low: float | None = None  # default: the rows' column, else the least grade in the training rows
    high: float | None = None
    scales: dict[str, Scale] = {}  # of groups: {"prompt1": [2, 12]}; "" of all others; default: those in the rows
    step: float = Field(1.0, gt=0)  # between two grades, counted from low
    loss: Literal["squared", "huber", "ordinal"] = "squared"  # ordinal: is it above this grade, for each grade
    levels: int | None = Field(None, ge=2)  # that ordinal tells apart; default: the steps of the longest scale
    rounding: Literal["fitted", "nearest"] = "fitted"  # of scores to grades; fitted on validation, for QWK
    cuts: dict[str, dict[str, tuple[float, ...]]] = {}  # fitted: of each trait and group, in points
    errors: dict[str, dict[str, Knots]] = {}  # fitted: how far scores are off, by where on the scale they are
    agreement: float | None = Field(None, gt=0, le=1)  # QWK wanted of what no teacher reads; default: two raters' own
    most_error: float | None = Field(None, ge=0)  # fitted: of the scale, from which on a teacher should read
    max_windows: int = Field(8, ge=1)
    pooling: Pooling = "checkpoint"

    @model_validator(mode="after")
    def _scale(self) -> "Grading":
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise RecipeError(f"the scale ends at {self.high:g}, not above its low {self.low:g}", "high")
        for group, (low, high) in self.scales.items():
            if low >= high:
                raise RecipeError(f"the scale of {group!r} ends at {high:g}, not above its low {low:g}", "scales")
        if self.levels is not None and self.loss != "ordinal":
            raise RecipeError("goes with task.loss=ordinal", "levels")
        if not self.traits or len(set(self.traits)) != len(self.traits):
            raise RecipeError("traits are one or more different names", "traits")
        return self

    def resolve(self, rows: Any) -> "Grading":
        task = self._with_scale(rows)
        if task.loss != "ordinal" or task.levels is not None:
            return task
        columns = {name: rows["train"][name][:] for name in rows["train"].column_names if name in ("id", *_SCALED_BY)}
        longest = max(task.n_levels(low, high) for low, high in set(task.scales_of(columns)))
        return task.model_copy(update={"levels": longest})

    def _with_scale(self, rows: Any) -> "Grading":
        if (self.low is not None and self.high is not None) or self.scales:
            return self
        if all({"low", "high"} <= set(split.column_names) for split in rows.values()):
            return self.model_copy(update={"scales": _scales_in(rows)})
        grades = np.asarray([self._grades(target) for target in rows["train"]["target"]])
        low = float(np.nanmin(grades)) if self.low is None else self.low
        high = float(np.nanmax(grades)) if self.high is None else self.high
        if low >= high:
            raise DataError(f"every grade in the training rows is {low:g}; name the scale with task.low and task.high")
        return self.model_copy(update={"low": low, "high": high})

    def n_levels(self, low: float, high: float) -> int:
        """How many grades a scale has."""
        return round((high - low) / self.step) + 1

    @property
    def head_kind(self) -> str:
        return "ordinal" if self.loss == "ordinal" else "regress"

    def head_settings(self) -> dict[str, Any]:
        if self.loss == "ordinal":
            return {"pooling": self.pooling, "n_levels": self.levels or 2}
        return {"pooling": self.pooling, "loss": self.loss}

    def faults(self, rows: dict[str, list[Any]]) -> dict[int, str]:
        found = {}
        has_scale = bool(self.scales) or all(getattr(self, end) is not None or rows.get(end) for end in ("low", "high"))
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
                self._ratings(rows, number)
            except ValueError as error:
                found[number] = str(error)
        return found

    def outputs(self) -> list[str]:
        if self.loss != "ordinal":
            return list(self.traits)
        return [f"{trait} above level {level}" for trait in self.traits for level in range(1, self.levels or 2)]

    def encode(self, rows: dict[str, list[Any]], tokenizer: Any) -> dict[str, list[Any]]:
        encoded = text_windows(rows["text"], rows.get("pair"), tokenizer, self.max_length, self.max_windows)
        if "target" in rows:
            encoded["labels"] = self.labels_of(rows)
        return encoded

    def labels_of(self, rows: dict[str, list[Any]]) -> list[list[float]]:
        self.refuse_faults(rows)
        return [
            [(grade - low) / (high - low) for grade in self._grades(target)]
            for target, (low, high) in zip(rows["target"], self.scales_of(rows), strict=True)
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

    def _ratings(self, rows: dict[str, list[Any]], number: int) -> list[float]:
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
            if (of_group := _of_group(self.scales, group)) is None:
                raise ValueError(f"its group {group!r} has no scale; task.scales has: {', '.join(self.scales)}")
            return of_group
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

    def decode(self, outputs: list[np.ndarray], rows: dict[str, list[Any]], tokenizer: Any) -> list[Prediction]:
        groups = rows.get("group") or [""] * len(rows["id"])
        return [
            self._decoded(np.clip(low + shares * (high - low), low, high).tolist(), low, high, str(group))
            for shares, (low, high), group in zip(np.asarray(outputs, float), self.scales_of(rows), groups, strict=True)
        ]

    def _decoded(self, scores: list[float], low: float, high: float, group: str) -> Scores:
        grades, margins = {}, {}
        for trait, score in zip(self.traits, scores, strict=True):
            own = _of_group(self.cuts.get(trait, {}), group)
            if own is not None and len(own) == self.n_levels(low, high) - 1:
                steps = bisect.bisect_right(own, score)
            else:
                steps = round((score - low) / self.step)
            grades[trait] = min(round(low + steps * self.step, 9), high)
            if knots := _of_group(self.errors.get(trait, {}), group):
                margins[trait] = _TWO_SIDED * (high - low) * at(knots, (score - low) / (high - low))
        unsure = None
        if self.most_error is not None and margins:
            unsure = max(margins.values()) > _TWO_SIDED * (high - low) * self.most_error * (1 + 1e-9)
        return Scores(dict(zip(self.traits, scores, strict=True)), grades, margins or None, unsure)

    def calibrated(self, outputs: list[np.ndarray], rows: dict[str, list[Any]]) -> "Grading":
        """With cuts between grades, and how far scores are off, for each group of `_FEWEST` rows and more, and over all
        rows for other groups (cuts: where all have one scale); and with what a teacher should read."""
        if self.errors:
            return self
        truth, shares = np.asarray(self.labels_of(rows)), np.clip(np.asarray(outputs, float), 0, 1)
        scales = self.scales_of(rows)
        groups = np.asarray([str(group) for group in rows.get("group") or [""] * len(truth)])
        cuts: dict[str, dict[str, tuple[float, ...]]] = {trait: {} for trait in self.traits}
        errors: dict[str, dict[str, Knots]] = {trait: {} for trait in self.traits}
        for column, trait in enumerate(self.traits):
            known = ~np.isnan(truth[:, column])
            for group in {*groups.tolist(), ""}:
                there = np.flatnonzero(known & ((groups == group) | (group == "")))
                if len(there) < _FEWEST:
                    continue
                ours, theirs = shares[there, column], truth[there, column]
                errors[trait][group] = fit_errors(ours, ours - theirs)
                if self.rounding == "fitted" and not self.cuts and len({scales[place] for place in there}) == 1:
                    low, high = scales[there[0]]
                    n_steps = self.n_levels(low, high) - 1
                    fitted = low + fit_cuts(np.rint(theirs * n_steps), ours * n_steps, n_steps + 1) * self.step
                    cuts[trait][group] = tuple(round(cut, 4) for cut in fitted.tolist())
        fitted_task = self.model_copy(
            update={"cuts": self.cuts or {t: c for t, c in cuts.items() if c}, "errors": errors}
        )
        return fitted_task._with_band(outputs, rows)

    def _with_band(self, outputs: list[np.ndarray], rows: dict[str, list[Any]]) -> "Grading":
        """With the expected error from which on a teacher should read, so that the rest agrees as `agreement` asks."""
        if len(self.traits) > 1 or not self.errors[self.traits[0]]:
            return self
        lows, highs = np.asarray(self.scales_of(rows)).T
        groups = [str(group) for group in rows.get("group") or ["all"] * len(lows)]
        level = self.agreement
        if level is None:
            raters = np.asarray([self._ratings(rows, number) for number in range(len(lows))])
            known = np.flatnonzero(~np.isnan(raters).any(axis=1))
            if raters.shape[1] < 2 or len(known) < _FEWEST:
                return self
            one, other = raters[known, :2].T / self.step
            level = round(float(mean_qwk(one, other, [groups[place] for place in known])), 4)
        (trait,) = self.traits
        made = [each for each in self.decode(outputs, rows, None) if isinstance(each, Scores)]
        given = np.asarray([(each.grades or {})[trait] for each in made])
        expected = np.asarray([(each.margins or {})[trait] for each in made]) / _TWO_SIDED / (highs - lows)
        truth = np.asarray([self._grades(target)[0] for target in rows["target"]])
        steps, ours = (np.rint((values - lows) / self.step) for values in (truth, given))
        most = most_error(steps, ours, groups, expected, level)
        return self.model_copy(update={"agreement": level, "most_error": most})

    def score(self, predictions: list[Prediction], rows: dict[str, list[Any]]) -> Metrics:
        """Means over the traits; with several traits, each trait's own as `qwk_TRAIT` and so on."""
        from tl_nlp.scoring import ScoreMetrics

        self.refuse_faults(rows)
        references = np.asarray([self._grades(target) for target in rows["target"]])
        made = [p for p in predictions if isinstance(p, Scores)]
        given = np.asarray([list(p.scores.values()) for p in made])
        grades = np.asarray([list((p.grades or p.scores).values()) for p in made])
        raters = np.asarray([self._ratings(rows, number) for number in range(len(made))])
        has_raters = len(self.traits) == 1 and raters.shape[1] > 1
        lows = np.asarray([low for low, _ in self.scales_of(rows)])
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
                    grades=grades[graded, column],
                    raters=raters[graded] if has_raters else None,
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


def _of_group(values: dict[str, Any], group: str) -> Any:
    """Those of the group, else those of all rows, else None."""
    return values.get(group, values.get(""))
