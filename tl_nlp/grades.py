"""From scores to grades: where they are cut, how far they may be off, which of them a teacher should read, and what of
them goes with the length of a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tl_nlp.metrics import mean_qwk

Knots = tuple[tuple[float, float], ...]
"""Rising places on the scale, as shares of it, and a value at each; between them it is on the straight line."""
MOST_UNEVEN = 0.15
"""Standard deviations that a group's mean may be off (Williamson et al. 2012)."""


def fit_cuts(truth: np.ndarray, scores: np.ndarray, n_levels: int) -> np.ndarray:
    """Where scores are cut into grades so that QWK with `truth` is highest: n_levels - 1 rising points.

    Both are in steps of the scale, from 0; `truth` is whole. First the best stretch and shift of the usual halves, for
    least squares draws scores to the middle and QWK asks for their whole spread; then each cut by itself, where there
    are rows enough for it.
    """
    halves = np.arange(n_levels - 1) + 0.5

    def kappa(cuts: np.ndarray) -> float:
        grades = np.searchsorted(cuts, scores, side="right")
        expected = np.mean(truth**2) + np.mean(grades**2) - 2 * truth.mean() * grades.mean()
        return 1 - np.mean((truth - grades) ** 2) / expected if expected > 0 else 0.0

    middle = scores.mean()
    best, cuts = kappa(halves), halves
    for stretch in np.linspace(1, 2, 21):
        for shift in np.linspace(-1, 1, 21):
            tried = (halves - middle - shift) / stretch + middle
            if (found := kappa(tried)) > best + _WORTH:
                best, cuts = found, tried
    if len(truth) < _ROWS_PER_CUT * n_levels:
        return cuts
    for place in list(range(n_levels - 1)) * 2:
        low = cuts[place - 1] if place else cuts[place] - 1
        high = cuts[place + 1] if place + 1 < len(cuts) else cuts[place] + 1
        for tried_cut in np.linspace(low, high, 21)[1:-1]:
            tried = np.concatenate([cuts[:place], [tried_cut], cuts[place + 1 :]])
            if (found := kappa(tried)) > best + _WORTH:
                best, cuts = found, tried
    return cuts


_WORTH = 1e-4  # of QWK: less is no reason to leave the halves
_ROWS_PER_CUT = 30


def fit_errors(shares: np.ndarray, missed: np.ndarray) -> Knots:
    """How far a score is off, by where on the scale it is: the root mean square of what was `missed` by the rows with
    the nearest scores. Both are shares of the scale."""
    order = np.argsort(shares, kind="stable")
    n_near = max(_FEWEST_NEAR, len(order) // 8)
    knots = {}
    for place in np.unique(np.linspace(0, len(order) - 1, _N_KNOTS).round().astype(int)):
        start = int(np.clip(place - n_near // 2, 0, max(len(order) - n_near, 0)))
        near = order[start : start + n_near]
        knots[round(float(shares[order[place]]), 4)] = round(float(np.sqrt(np.mean(missed[near] ** 2))), 4)
    return tuple(knots.items())


def at(knots: Knots, share: float) -> float:
    """The value at a place on the scale; beyond the ends that of the nearest one."""
    places, values = zip(*knots, strict=True)
    return float(np.interp(share, places, values))


_N_KNOTS = 12
_FEWEST_NEAR = 20


def most_error(truth: np.ndarray, grades: np.ndarray, groups: Sequence[str], errors: np.ndarray, level: float) -> float:
    """The largest expected error at which the grades that are no further off agree with `truth` to a QWK of `level`
    (mean over the groups); 0 where no share of them does. All in steps of the scale."""
    by_size = np.sort(errors)
    for share in np.linspace(1, 0.05, 20):
        most = float(by_size[max(round(share * len(errors)), 1) - 1])
        taken = errors <= most
        if mean_qwk(truth[taken], grades[taken], np.asarray(groups)[taken].tolist()) >= level:
            return most
    return 0.0


Line = tuple[float, float]
"""How much a score rises with one more unit of the log of words, and the mean of that log."""


def log_words(texts: Sequence[str]) -> np.ndarray:
    return np.log1p([len(text.split()) for text in texts])


def fit_line(shares: np.ndarray, log_length: np.ndarray) -> Line:
    """The line with the least squared distance from scores; level where all texts have one length."""
    spread = log_length - log_length.mean()
    slope = float(spread @ shares / (spread @ spread)) if np.ptp(log_length) > 0 else 0.0
    return round(slope, 6), round(float(log_length.mean()), 6)


def share_counts(shares: np.ndarray, n_levels: int) -> tuple[int, ...]:
    """How many grades are at each of so many levels, or in each of `MOST_BARS` equal parts of a longer scale."""
    n_bars = max(2, min(n_levels, MOST_BARS))
    return tuple(np.bincount(np.rint(shares * (n_bars - 1)).astype(int), minlength=n_bars).tolist())


MOST_BARS = 31


@dataclass(frozen=True)
class Standing:
    """A grade among those that were given: bars by name, the bar it is in, and the shares in lower ones and in its."""

    names: list[str]
    counts: tuple[int, ...]
    place: int
    lower: float
    same: float

    @property
    def n_grades(self) -> int:
        return sum(self.counts)

    @classmethod
    def of(cls, counts: tuple[int, ...], low: float, high: float, grade: float) -> Standing:
        place = round((grade - low) / (high - low) * (len(counts) - 1))
        width = (high - low) / (len(counts) - 1)
        n_grades = max(sum(counts), 1)
        names = [f"{low + number * width:.3g}" for number in range(len(counts))]
        return cls(names, counts, place, sum(counts[:place]) / n_grades, counts[place] / n_grades)
