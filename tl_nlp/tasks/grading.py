"""Numbers on a scale, for one or several traits: essays, short answers, ratings."""

import bisect
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from tl_nlp.errors import DataError, RecipeError
from tl_nlp.grades import Knots, Line, Standing, at, fit_cuts, fit_errors, fit_line, log_words, most_error, share_counts
from tl_nlp.metrics import Measured, mean_qwk
from tl_nlp.recipe import Pooling
from tl_nlp.rows import columns_of
from tl_nlp.scales import SCALED_BY, Scaled, groups_of, of_group, rows_by_group
from tl_nlp.surface import Family, Language, Standards, fit_standards, measured, names, standardized
from tl_nlp.types import Metrics, Prediction, Scores
from tl_nlp.windows import apart_windows, text_windows

_FEWEST = 30  # rows that cuts between grades are fitted to
_TWO_SIDED = 1.96  # standard deviations that 95 of 100 are within


class Grading(Scaled):
    """A grade between `low` and `high` for each trait; the pair is the question, prompt, reference answer or rubric.

    What single people gave, in the columns rater1, rater2 and rater3, is for comparing the model's errors with theirs.
    """

    head: ClassVar[str] = "regress"
    main_metric: ClassVar[str] = "qwk"

    loss: Literal["squared", "huber", "ordinal"] = "squared"  # ordinal: is it above this grade, for each grade
    levels: int | None = Field(None, ge=2)  # that ordinal tells apart; default: the steps of the longest scale
    rounding: Literal["fitted", "nearest"] = "fitted"  # of scores to grades; fitted on validation, for QWK
    cuts: dict[str, dict[str, tuple[float, ...]]] = {}  # fitted: of each trait and group, in points
    errors: dict[str, dict[str, Knots]] = {}  # fitted: how far scores are off, by where on the scale they are
    agreement: float | None = Field(None, gt=0, le=1)  # QWK wanted of what no teacher reads; default: two raters' own
    most_error: float | None = Field(None, ge=0)  # fitted: of the scale, from which on a teacher should read
    max_windows: int = Field(8, ge=1)
    pooling: Pooling = "checkpoint"
    dropout: float = Field(0.0, ge=0, lt=1)  # of pooled states, before the last layer, in training
    reading: Literal["together", "apart"] = "together"  # of text and pair; apart: compared with it token by token
    surface: tuple[Family, ...] = ()  # what is counted on the text and joined before the last layer
    language: Language = "en"  # whose spelling the errors are counted by
    standards: Standards = {}  # fitted: what is usual of each count, in each group
    length: Literal["keep", "remove"] = "keep"  # remove: scores are levelled, so that they do not rise with length
    lines: dict[str, dict[str, Line]] = {}  # fitted: how scores rise with length, for each trait and group
    given: dict[str, dict[str, tuple[int, ...]]] = {}  # fitted: how often each grade was given, in training

    @model_validator(mode="after")
    def _fits(self) -> "Grading":
        if self.levels is not None and self.loss != "ordinal":
            raise RecipeError("goes with task.loss=ordinal", "levels")
        if self.surface and self.pooling == "checkpoint":
            raise RecipeError(
                "is joined to what is pooled here, and task.pooling=checkpoint leaves that to the checkpoint; "
                "task.pooling=mean",
                "surface",
            )
        if self.reading == "apart" and self.pooling == "checkpoint":
            raise RecipeError("apart compares states, which task.pooling=mean reads", "reading")
        if self.reading == "apart" and (self.pooling != "mean" or self.dropout):
            raise RecipeError("apart pools nothing; task.pooling=mean and task.dropout=0", "reading")
        if len(set(self.surface)) != len(self.surface):
            raise RecipeError("names a family twice", "surface")
        if self.language != "en" and "errors" not in self.surface:
            raise RecipeError('is that of task.surface=["errors"], and no errors are counted here', "language")
        return self

    def resolve(self, rows: Any) -> "Grading":
        task = self.with_scale(rows)._with_standards(rows["train"])._with_given(rows["train"])
        if task.loss != "ordinal" or task.levels is not None:
            return task
        columns = columns_of(rows["train"], ("id", *SCALED_BY))
        longest = max(task.n_levels(low, high) for low, high in set(task.scales_of(columns)))
        return task.model_copy(update={"levels": longest})

    def _with_standards(self, train: Any) -> "Grading":
        if not self.surface or self.standards:
            return self
        rows = columns_of(train, ("text", "pair", "group"))
        if "overlap" in self.surface and "pair" not in rows:
            raise RecipeError("overlap is with the pair, and the rows have none (data.pair)", "task.surface")
        values = measured(rows["text"], rows.get("pair"), self.surface, self.language)
        return self.model_copy(update={"standards": fit_standards(values, rows_by_group(groups_of(rows)), _FEWEST)})

    def _with_given(self, train: Any) -> "Grading":
        if self.given:
            return self
        columns = columns_of(train, ("id", "text", "target", *SCALED_BY))
        shares, scales = np.asarray(self.labels_of(columns)), np.asarray(self.scales_of(columns))
        groups = np.asarray(groups_of(columns))
        given: dict[str, dict[str, tuple[int, ...]]] = {trait: {} for trait in self.traits}
        for group in np.unique(groups).tolist():
            low, high = scales[groups == group][0]
            for trait, theirs in zip(self.traits, shares[groups == group].T, strict=True):
                given[trait][group] = share_counts(theirs[~np.isnan(theirs)], self.n_levels(low, high))
        return self.model_copy(update={"given": given})

    def standing(self, trait: str, grade: float, group: str) -> Standing | None:
        """Where a grade stands among those given to texts of its group; None where none were."""
        rows = {"id": [""], "group": [group]}
        if (counts := self.given.get(trait, {}).get(group)) is None:
            return None
        return Standing.of(counts, *self.scales_of(rows)[0], grade)

    @property
    def head_kind(self) -> str:
        return "ordinal" if self.loss == "ordinal" else "regress"

    def head_settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "compare": self.reading == "apart",
            "pooling": self.pooling,
            "max_windows": self.max_windows,
            "dropout": self.dropout,
        }
        if self.surface:
            settings |= {"n_surface": len(names(self.surface)), "n_groups": max(len(self.standards) - 1, 0)}
        return settings | ({"n_levels": self.levels or 2} if self.loss == "ordinal" else {"loss": self.loss})

    def outputs(self) -> list[str]:
        if self.loss != "ordinal":
            return list(self.traits)
        return [f"{trait} above level {level}" for trait in self.traits for level in range(1, self.levels or 2)]

    def encode(self, rows: dict[str, list[Any]], tokenizer: Any) -> dict[str, list[Any]]:
        if self.reading == "apart":
            encoded = apart_windows(rows["text"], _pairs(rows), tokenizer, self.max_length, self.max_windows)
        else:
            encoded = text_windows(rows["text"], rows.get("pair"), tokenizer, self.max_length, self.max_windows)
        if self.surface:
            groups = groups_of(rows)
            counted = measured(rows["text"], rows.get("pair"), self.surface, self.language)
            encoded["surface"] = standardized(counted, groups, self.standards).tolist()
            places = {group: place for place, group in enumerate(sorted(self.standards))}  # "" is the first
            encoded["group"] = [places.get(group, 0) for group in groups]
        if "target" in rows:
            encoded["labels"] = self.labels_of(rows)
        return encoded

    def decode(self, outputs: list[np.ndarray], rows: dict[str, list[Any]], tokenizer: Any) -> list[Prediction]:
        levelled = np.asarray(outputs, float) - self._of_length(rows)
        return [
            self._decoded(np.clip(low + shares * (high - low), low, high).tolist(), low, high, group)
            for shares, (low, high), group in zip(levelled, self.scales_of(rows), groups_of(rows), strict=True)
        ]

    def _of_length(self, rows: dict[str, list[Any]]) -> np.ndarray:
        """What of each score is taken off for its text's length: shares of shape (examples, traits)."""
        taken = np.zeros((len(rows["text"]), len(self.traits)))
        for column, trait in enumerate(self.traits):
            lines = [of_group(self.lines.get(trait, {}), group) or (0.0, 0.0) for group in groups_of(rows)]
            slopes, centres = np.asarray(lines).T
            taken[:, column] = slopes * (log_words(rows["text"]) - centres)
        return taken

    def with_length(self, predictions: list[Prediction], rows: dict[str, list[Any]]) -> list[Prediction]:
        """The scores as they were before length was taken out of them."""
        lows, highs = np.asarray(self.scales_of(rows)).T
        put_back = self._of_length(rows) * (highs - lows)[:, None]
        return [
            Scores({trait: score + more for (trait, score), more in zip(one.scores.items(), theirs, strict=True)})
            for one, theirs in zip(predictions, put_back.tolist(), strict=True)
            if isinstance(one, Scores)
        ]

    def _decoded(self, scores: list[float], low: float, high: float, group: str) -> Scores:
        grades, margins = {}, {}
        for trait, score in zip(self.traits, scores, strict=True):
            own = of_group(self.cuts.get(trait, {}), group)
            if own is not None and len(own) == self.n_levels(low, high) - 1:
                steps = bisect.bisect_right(own, score)
            else:
                steps = round((score - low) / self.step)
            grades[trait] = min(round(low + steps * self.step, 9), high)
            if knots := of_group(self.errors.get(trait, {}), group):
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
        if self.length == "remove" and not self.lines:
            return self._with_lines(outputs, rows).calibrated(outputs, rows)
        truth, shares = np.asarray(self.labels_of(rows)), np.clip(np.asarray(outputs) - self._of_length(rows), 0, 1)
        scales = self.scales_of(rows)
        inside = rows_by_group(groups_of(rows))
        cuts: dict[str, dict[str, tuple[float, ...]]] = {trait: {} for trait in self.traits}
        errors: dict[str, dict[str, Knots]] = {trait: {} for trait in self.traits}
        for column, trait in enumerate(self.traits):
            known = ~np.isnan(truth[:, column])
            for group, of_it in inside.items():
                there = np.flatnonzero(known & of_it)
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

    def _with_lines(self, outputs: list[np.ndarray], rows: dict[str, list[Any]]) -> "Grading":
        """With how scores rise with length, for each group of `_FEWEST` rows and more, and for all others."""
        shares, length, inside = np.asarray(outputs, float), log_words(rows["text"]), rows_by_group(groups_of(rows))
        lines = {
            trait: {
                name: fit_line(column[there], length[there])
                for name, there in inside.items()
                if there.sum() >= _FEWEST or not name
            }
            for trait, column in zip(self.traits, shares.T, strict=True)
        }
        return self.model_copy(update={"lines": lines})

    def _with_band(self, outputs: list[np.ndarray], rows: dict[str, list[Any]]) -> "Grading":
        """With the expected error from which on a teacher should read, so that the rest agrees as `agreement` asks."""
        if len(self.traits) > 1 or not self.errors[self.traits[0]]:
            return self
        lows, highs = np.asarray(self.scales_of(rows)).T
        groups = groups_of(rows)
        level = self.agreement
        if level is None:
            raters = np.asarray([self.ratings_of(rows, number) for number in range(len(lows))])
            known = np.flatnonzero(~np.isnan(raters).any(axis=1))
            if raters.shape[1] < 2 or len(known) < _FEWEST:
                return self
            one, other = raters[known, :2].T / self.step
            level = round(float(mean_qwk(one, other, [groups[place] for place in known])), 4)
        (trait,) = self.traits
        made = [each for each in self.decode(outputs, rows, None) if isinstance(each, Scores)]
        given = np.asarray([(each.grades or {})[trait] for each in made])
        expected = np.asarray([(each.margins or {})[trait] for each in made]) / _TWO_SIDED / (highs - lows)
        truth = np.asarray([self.grades_of(target)[0] for target in rows["target"]])
        steps, ours = (np.rint((values - lows) / self.step) for values in (truth, given))
        most = most_error(steps, ours, groups, expected, level)
        return self.model_copy(update={"agreement": level, "most_error": most})

    def score(self, predictions: list[Prediction], rows: dict[str, list[Any]]) -> Metrics:
        """Means over the traits; with several traits, each trait's own as `qwk_TRAIT` and so on."""
        from tl_nlp.scoring import ScoreMetrics

        self.refuse_faults(rows)
        references = np.asarray([self.grades_of(target) for target in rows["target"]])
        made = [p for p in predictions if isinstance(p, Scores)]
        given = np.asarray([list(p.scores.values()) for p in made])
        grades = np.asarray([list((p.grades or p.scores).values()) for p in made])
        raters = np.asarray([self.ratings_of(rows, number) for number in range(len(made))])
        has_raters = len(self.traits) == 1 and raters.shape[1] > 1
        lows, length = np.asarray([low for low, _ in self.scales_of(rows)]), log_words(rows["text"])
        groups = np.asarray(groups_of(rows))
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
                    length=length[graded],
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


def _pairs(rows: dict[str, list[Any]]) -> list[str]:
    """The pair of each row. Raises DataError for one without."""
    pairs = rows.get("pair") or [None] * len(rows["text"])
    for row, pair in zip(rows["id"], pairs, strict=True):
        if not pair or not str(pair).strip():
            raise DataError(f"row {row}: it has no pair, and task.reading=apart compares the text with it")
    return [str(pair) for pair in pairs]
