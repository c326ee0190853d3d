"""Metrics: pure functions of numpy arrays and strings. References come first, predictions second.

Each is `Measured`: a number that can also be asked what it would be if rows counted differently often, which is what
intervals and paired tests are made from. ROUGE and BLEU are 0-100; everything else is on its natural scale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

Weighed = Callable[[np.ndarray], np.ndarray]
"""From how often each row counts, of shape (resamples, rows), to a value for each resample."""


class Measured(float):
    """A metric's value on its rows; `under(weights)` is its value where row `i` counts `weights[:, i]` times."""

    under: Weighed
    rows: np.ndarray | None
    """Where the value is a function of sums over the rows: what each adds, of shape (rows, sums)."""
    of_sums: Weighed | None
    """That function, from sums of shape (resamples, sums)."""

    def __new__(cls, n_rows: int, under: Weighed, rows: Any = None, of_sums: Weighed | None = None) -> Measured:
        self = super().__new__(cls, float(under(np.ones((1, n_rows)))[0]))
        self.under, self.rows, self.of_sums = under, rows, of_sums
        return self

    @classmethod
    def from_sums(cls, rows: np.ndarray, of_sums: Weighed) -> Measured:
        return cls(len(rows), lambda weights: of_sums(weights @ rows), rows, of_sums)

    @classmethod
    def mean_of(cls, parts: Sequence[tuple[np.ndarray, Measured]]) -> Measured:
        """The mean of metrics of parts of the rows, each given with the indicator of its rows."""

        def under(weights: np.ndarray) -> np.ndarray:
            return np.mean([measured.under(weights[:, inside]) for inside, measured in parts], axis=0)

        n_rows = len(parts[0][0])
        if any(measured.rows is None for _, measured in parts):
            return cls(n_rows, under)
        # side by side, each part's sums in columns of their own, zero for rows outside it
        blocks = [np.zeros((n_rows, measured.rows.shape[1])) for _, measured in parts if measured.rows is not None]
        for block, (inside, measured) in zip(blocks, parts, strict=True):
            block[inside] = measured.rows
        edges = np.cumsum([block.shape[1] for block in blocks])[:-1]

        def of_sums(sums: np.ndarray) -> np.ndarray:
            return np.mean(
                [
                    measured.of_sums(own)
                    for own, (_, measured) in zip(np.split(sums, edges, axis=1), parts, strict=True)
                    if measured.of_sums is not None
                ],
                axis=0,
            )

        return cls(n_rows, under, np.concatenate(blocks, axis=1), of_sums)


def mean(values: Any) -> Measured:
    """The mean of a number for each row."""
    column = np.asarray(values, float)
    return Measured.from_sums(np.stack([column, np.ones_like(column)], axis=1), _ratio)


def _ratio(sums: np.ndarray) -> np.ndarray:
    return np.divide(sums[:, 0], sums[:, 1], out=np.zeros(len(sums)), where=sums[:, 1] > 0)


def accuracy(references: Sequence[str], predictions: Sequence[str]) -> Measured:
    """Share of predictions equal to their reference."""
    return mean(np.asarray(references) == np.asarray(predictions))


def indicators(names: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """0/1 of shape (examples, labels) of one label name for each example."""
    return np.asarray(names)[:, None] == np.asarray(labels)


def macro_f1(references: np.ndarray, predictions: np.ndarray) -> Measured:
    """Mean over the labels of F1, 0 for a label that is neither there nor predicted; 0/1 indicators of shape
    (examples, labels)."""
    return Measured.from_sums(_hits(references, predictions), lambda sums: _f1(sums).mean(axis=1))


def micro_f1(references: np.ndarray, predictions: np.ndarray) -> Measured:
    """F1 over all decisions at once; 0/1 indicators of shape (examples, labels)."""
    r, p = np.asarray(references, bool), np.asarray(predictions, bool)
    return Measured.from_sums(
        np.stack([(r & p).sum(1), r.sum(1) + p.sum(1)], axis=1).astype(float), lambda sums: _f1(sums)[:, 0]
    )


def _hits(references: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """For each label whether both have it, then for each label how many of both have it."""
    r, p = np.asarray(references, bool), np.asarray(predictions, bool)
    return np.concatenate([r & p, r.astype(float) + p], axis=1)


def _f1(sums: np.ndarray) -> np.ndarray:
    """2 both / (reference + predicted) for each label, of shape (resamples, labels)."""
    both, either = np.split(sums, 2, axis=1)
    return np.divide(2 * both, either, out=np.zeros_like(both), where=either > 0)


def exact_match(references: np.ndarray, predictions: np.ndarray) -> Measured:
    """Share of examples with every label right; 0/1 indicators of shape (examples, labels)."""
    return mean(np.all(references == predictions, axis=1))


def pearson(references: np.ndarray, predictions: np.ndarray) -> Measured:
    """Pearson's r; 0 where one side is constant."""
    r, p = (np.asarray(side, float) - np.mean(side) for side in (references, predictions))  # centred, to stay exact
    return Measured.from_sums(np.stack([np.ones_like(r), r, p, r * r, p * p, r * p], axis=1), _correlation)


def _correlation(sums: np.ndarray) -> np.ndarray:
    n, r, p, rr, pp, rp = sums.T
    # a product of variances below this is rounding: one side is constant
    spread = np.maximum(n * rr - r * r, 0) * np.maximum(n * pp - p * p, 0)
    is_varied = spread > 1e-24 * np.maximum(n * rr * n * pp, 1e-300)
    return np.divide(n * rp - r * p, np.sqrt(spread), out=np.zeros_like(n), where=is_varied)


def spearman(references: np.ndarray, predictions: np.ndarray) -> Measured:
    """Spearman's rho: Pearson's r of the ranks, ties sharing their mean rank."""
    sides = [np.unique(np.asarray(side, float), return_inverse=True)[1] for side in (references, predictions)]

    def ranks(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Mean ranks among rows that count `weights` times, less the middle one; of shape (resamples, rows)."""
        order = np.argsort(values, kind="stable")
        starts = np.flatnonzero(np.diff(values[order], prepend=-1))
        of_value = np.add.reduceat(weights[:, order], starts, axis=1)
        middle = np.cumsum(of_value, axis=1) - of_value / 2
        return middle[:, values] - weights.sum(1, keepdims=True) / 2

    def under(weights: np.ndarray) -> np.ndarray:
        r, p = (ranks(weights, side) for side in sides)
        sums = [weights, weights * r, weights * p, weights * r * r, weights * p * p, weights * r * p]
        return _correlation(np.stack([part.sum(1) for part in sums], axis=1))

    return Measured(len(sides[0]), under)


def rmse(references: np.ndarray, predictions: np.ndarray) -> Measured:
    """Root of the mean squared error, in points of the scale."""
    squares = (np.asarray(references, float) - np.asarray(predictions, float)) ** 2
    return Measured.from_sums(np.stack([squares, np.ones_like(squares)], axis=1), lambda sums: np.sqrt(_ratio(sums)))


def qwk(references: np.ndarray, predictions: np.ndarray) -> Measured:
    """Quadratic weighted kappa (Cohen 1968) of grades that are whole steps; 1 is agreement, 0 chance.

    1 - E[(r - p)^2] / E[(r' - p')^2] with r' and p' drawn independently. Where both sides are constant and equal: 1.
    """
    return mean_qwk(references, predictions, ["all"] * len(references))


def mean_qwk(references: np.ndarray, predictions: np.ndarray, groups: Sequence[str]) -> Measured:
    """Mean over the groups of their QWK: grades of different prompts are never pooled."""
    r, p = np.asarray(references, float), np.asarray(predictions, float)
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    parts = np.stack([np.ones_like(r), r, p, r * r, p * p, (r - p) ** 2], axis=1)
    rows = np.zeros((len(r), 6, len(names)))
    rows[np.arange(len(r)), :, group] = parts

    def kappas(sums: np.ndarray) -> np.ndarray:
        n, sum_r, sum_p, sum_rr, sum_pp, observed = np.moveaxis(sums.reshape(len(sums), 6, len(names)), 1, 0)
        expected = sum_rr + sum_pp - 2 * np.divide(sum_r * sum_p, n, out=np.zeros_like(n), where=n > 0)
        is_varied = expected > 1e-9 * np.maximum(sum_rr + sum_pp, 1e-300)
        kappa = 1 - np.divide(observed, expected, out=np.zeros_like(n), where=is_varied)
        kappa = np.where(is_varied, kappa, observed <= 1e-9)
        there = n > 0  # a resample may miss a group
        return np.sum(kappa * there, axis=1) / np.maximum(there.sum(1), 1)

    return Measured.from_sums(rows.reshape(len(r), -1), kappas)


def mean_over(
    metric: Callable[[np.ndarray, np.ndarray], Measured], r: np.ndarray, p: np.ndarray, groups: Sequence[str]
) -> Measured:
    """Mean over the groups of a metric of numbers."""
    group = np.asarray(groups)
    return Measured.mean_of(
        [(inside, metric(r[inside], p[inside])) for name in np.unique(group) for inside in [group == name]]
    )


def agreement(references: np.ndarray, predictions: np.ndarray, within: float = 0.0) -> Measured:
    """Share of grades that differ by at most `within`: 0 is exact agreement, one step adjacent agreement."""
    gap = np.abs(np.asarray(references, float) - np.asarray(predictions, float))
    return mean(gap <= within + 1e-9)


def smd(references: np.ndarray, predictions: np.ndarray) -> Measured:
    """Standardised mean difference (Williamson et al. 2012): how many standard deviations of the references predictions
    are above them in the mean; 0 where references are constant."""
    r, p = np.asarray(references, float), np.asarray(predictions, float)

    def difference(sums: np.ndarray) -> np.ndarray:
        n, r, rr, gap = sums.T
        variance = np.maximum(n * rr - r * r, 0)
        is_varied = variance > 1e-12 * np.maximum(n * rr, 1e-300)
        return np.divide(gap, np.sqrt(variance), out=np.zeros_like(gap), where=is_varied)

    centred = r - r.mean()
    return Measured.from_sums(np.stack([np.ones_like(r), centred, centred**2, p - r], axis=1), difference)


def prmse(raters: np.ndarray, predictions: np.ndarray) -> Measured:
    """Proportional reduction of the mean squared error against true grades, which two raters or more know only up to
    their own errors (Loukina et al. 2020, https://aclanthology.org/2020.bea-1.2): 1 is perfect, 0 as good as the mean.

    `raters` of shape (examples, raters), all on the scale of the predictions. The variance of a rater's error is that
    of the raters of one example; it is taken off the error of predictions and off the variance of the mean grade. 0
    where nothing is left of the latter.
    """
    grades, p = np.asarray(raters, float), np.asarray(predictions, float)
    n_raters = grades.shape[1]
    own = grades.mean(axis=1)
    within = grades.var(axis=1, ddof=1)
    centred = own - own.mean()
    rows = np.stack([np.ones_like(p), within, centred, centred**2, (own - p) ** 2], axis=1)

    def reduction(sums: np.ndarray) -> np.ndarray:
        n, of_error, m, mm, missed = sums.T
        noise = of_error / n / n_raters  # of a mean over the raters
        true_variance = (mm - m**2 / n) / np.maximum(n - 1, 1) - noise
        error = missed / n - noise
        return np.where(true_variance > 0, 1 - error / np.where(true_variance > 0, true_variance, 1), 0.0)

    return Measured.from_sums(rows, reduction)


def rouge(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, Measured]:
    """Mean ROUGE-1, -2, -L and -Lsum (Lin 2004): F, stemmed, 0-100, for each example the best of its references."""
    per_example = [rouge_scores(theirs, ours) for theirs, ours in zip(references, predictions, strict=True)]
    return {name: mean([scores[name] for scores in per_example]) for name in ROUGE_TYPES}


ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def rouge_scores(references: Sequence[str], prediction: str, types: tuple[str, ...] = ROUGE_TYPES) -> dict[str, float]:
    """ROUGE of one prediction, 0-100: the best of its references for each type."""
    all_scores = [_rouge_scorer(types).score(reference, prediction) for reference in references]
    return {name: 100 * max(scores[name].fmeasure for scores in all_scores) for name in types}


@lru_cache
def _rouge_scorer(types: tuple[str, ...]) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(types), use_stemmer=True)


def equal_texts(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> Measured:
    """The share of predictions that are one of their references but for case and spaces."""

    def plain(text: str) -> str:
        return " ".join(text.lower().split())

    both = zip(references, predictions, strict=True)
    return mean([plain(ours) in map(plain, theirs) for theirs, ours in both])


def chrf(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> Measured:
    """Mean chrF2 of sacrebleu (Popovic 2015), 0-100, for each example the best of its references."""
    from sacrebleu.metrics import CHRF

    scorer = CHRF()
    both = zip(predictions, references, strict=True)
    return mean([scorer.sentence_score(ours, list(theirs)).score for ours, theirs in both])


def bleu(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> Measured:
    """Corpus BLEU of sacrebleu, 0-100."""
    from sacrebleu.metrics import BLEU

    scorer = BLEU(effective_order=True)
    each = [scorer.sentence_score(ours, list(theirs)) for ours, theirs in zip(predictions, references, strict=True)]
    rows = np.asarray([[*one.counts, *one.totals, one.sys_len, one.ref_len] for one in each], float)

    def of_sums(sums: np.ndarray) -> np.ndarray:
        return np.asarray(
            [
                BLEU.compute_bleu(one[:4], one[4:8], one[8], one[9], smooth_method="exp").score
                for one in sums.round().astype(int).tolist()
            ]
        )

    return Measured.from_sums(rows, of_sums)
