"""How sure a number is: intervals, paired tests, calibration, growth. Pure functions of numpy arrays.

Resampling is seeded and vectorised: a resample is how often each row counts, and every metric is a function of that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from tl_nlp.metrics import Measured, Weighed

N_RESAMPLES = 1000
LEVEL = 0.95
_BLOCK = 10_000_000  # counts that are in memory at once


def resamples(n_rows: int, clusters: np.ndarray | None = None, n: int = N_RESAMPLES) -> Iterator[np.ndarray]:
    """Bootstrap resamples (Efron 1979) as how often each row is drawn, in blocks of shape (some, rows), `n` in all.

    With `clusters`, a number for each row, whole clusters are drawn: rows of one author are not independent.
    """
    drawn = n_rows if clusters is None else int(clusters.max(initial=-1)) + 1
    generator = np.random.default_rng(0)
    size = max(1, _BLOCK // max(n_rows, 1))
    for start in range(0, n, size):
        some = min(size, n - start)
        picks = generator.integers(0, drawn, (some, drawn)) + np.arange(some)[:, None] * drawn
        counts = np.bincount(picks.ravel(), minlength=some * drawn).reshape(some, drawn).astype(np.float64)
        yield counts if clusters is None else counts[:, clusters]


def intervals(
    metrics: Mapping[str, float], n_rows: int, clusters: np.ndarray | None = None
) -> dict[str, dict[str, float]]:
    """For each metric its value and the low and high of its 95 % interval, all over the same resamples.

    The percentiles of the resampled values, moved by what these are off the value in the mean: the bootstrap's estimate
    of bias (Efron & Tibshirani 1993, chapter 10), which is nought for means and much for QWK of few rows. A number that
    is not `Measured` keeps its value alone.
    """
    measured = {name: value for name, value in metrics.items() if isinstance(value, Measured)}
    drawn = _under({name: value.under for name, value in measured.items()}, n_rows, clusters)
    found = {}
    for name, value in metrics.items():
        found[name] = {"value": float(value)}
        if name in drawn:
            low, high = percentiles(drawn[name] + float(value) - drawn[name].mean())
            found[name] |= {"low": low, "high": high}
    return found


def percentiles(drawn: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of drawn values."""
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _under(values: Mapping[str, Weighed], n_rows: int, clusters: np.ndarray | None) -> dict[str, np.ndarray]:
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in values}
    for weights in resamples(n_rows, clusters):
        for name, under in values.items():
            drawn[name].append(under(weights))
    return {name: np.concatenate(parts) for name, parts in drawn.items()}


@dataclass(frozen=True)
class Difference:
    """How far one system is above another on the same rows: the difference, its interval, and a p-value.

    `test` names what p is of: McNemar's test for right and wrong, else a paired permutation test; None without one.
    """

    value: float
    low: float
    high: float
    p: float | None
    test: str | None

    @property
    def verdict(self) -> str:
        """better or worse where the interval excludes no difference, and p is at most 0.05 where there is a test;
        else undecided."""
        if self.low <= 0 <= self.high or (self.p is not None and self.p > 1 - LEVEL):
            return "undecided"
        return "better" if self.low > 0 else "worse"

    def __str__(self) -> str:
        told = f"{self.value:+.3g} [{self.low:+.3g}, {self.high:+.3g}]"
        is_by_test = self.verdict == "undecided" and not self.low <= 0 <= self.high
        return f"{told}, p {self.p:.2g}" if is_by_test else told


def difference(ours: Measured, theirs: Measured, n_rows: int, clusters: np.ndarray | None = None) -> Difference:
    """Paired bootstrap of one metric of two systems on the same rows, in the same order."""
    drawn = _under({"ours": ours.under, "theirs": theirs.under}, n_rows, clusters)
    value, gaps = float(ours) - float(theirs), drawn["ours"] - drawn["theirs"]
    low, high = percentiles(gaps + value - gaps.mean())
    if ours.rows is None or theirs.rows is None or ours.rows.shape != theirs.rows.shape:
        return Difference(value, low, high, None, None)
    if clusters is None and ours.rows.shape[1] == 2 and _is_binary(ours.rows) and _is_binary(theirs.rows):
        return Difference(value, low, high, mcnemar(ours.rows[:, 0], theirs.rows[:, 0]), "McNemar")
    return Difference(value, low, high, permutation(ours, theirs, clusters), "paired permutation")


def _is_binary(rows: np.ndarray) -> bool:
    return bool(np.isin(rows[:, 0], (0, 1)).all() and (rows[:, 1] == 1).all())


def mcnemar(ours: np.ndarray, theirs: np.ndarray) -> float:
    """p of McNemar's test (1947) that two systems are right equally often, from who was right where: exact binomial."""
    from scipy.stats import binomtest

    only_ours, only_theirs = int(np.sum(ours > theirs)), int(np.sum(ours < theirs))
    if not only_ours + only_theirs:
        return 1.0
    return float(binomtest(only_ours, only_ours + only_theirs).pvalue)


def permutation(ours: Measured, theirs: Measured, clusters: np.ndarray | None = None, n: int = N_RESAMPLES) -> float:
    """p of a paired permutation test: how often swapping the systems' answers row by row (or cluster by cluster) makes
    as large a difference (Noreen 1989), counting the observed one."""
    a, b = ours.rows, theirs.rows
    assert a is not None and b is not None and ours.of_sums is not None, "the metric is a function of sums"
    observed = abs(float(ours) - float(theirs))
    units = np.arange(len(a)) if clusters is None else clusters
    n_units = int(units.max(initial=-1)) + 1
    generator = np.random.default_rng(0)
    size = max(1, _BLOCK // max(len(a), 1))
    as_large = 0
    for start in range(0, n, size):
        swaps = generator.integers(0, 2, (min(size, n - start), n_units))[:, units].astype(np.float64)
        moved = swaps @ (b - a)
        gap = ours.of_sums(a.sum(0) + moved) - ours.of_sums(b.sum(0) - moved)
        as_large += int(np.sum(np.abs(gap) >= observed - 1e-12))
    return (as_large + 1) / (n + 1)


# ---- calibration


@dataclass(frozen=True)
class Bin:
    """Answers of like confidence: how many, their mean confidence, and the share of them that is right."""

    n_rows: int
    confidence: float
    accuracy: float


def reliability(confidence: np.ndarray, is_right: np.ndarray, n_bins: int = 15) -> list[Bin]:
    """The reliability curve: bins of equal width of confidence, empty ones left out."""
    place = np.clip(np.ceil(confidence * n_bins).astype(int) - 1, 0, n_bins - 1)
    groups = [place == number for number in range(n_bins)]
    return [
        Bin(int(group.sum()), float(confidence[group].mean()), float(is_right[group].mean()))
        for group in groups
        if group.any()
    ]


def expected_calibration_error(bins: list[Bin]) -> float:
    """ECE (Guo et al. 2017): the gap between confidence and accuracy, averaged over bins by their rows."""
    total = sum(one.n_rows for one in bins)
    return sum(one.n_rows * abs(one.confidence - one.accuracy) for one in bins) / total


def brier(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Brier score (1950): mean squared distance of probabilities, of shape (examples, labels), to the indicators."""
    return float(np.mean(np.sum((probabilities - np.asarray(labels, float)) ** 2, axis=1)))


def tempered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(logits / temperature) from softmax(logits); of shape (examples, labels)."""
    logits = np.log(np.clip(probabilities, 1e-12, 1)) / temperature
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The temperature with the least negative log-likelihood (Guo et al. 2017), between 0.05 and 20.

    `probabilities` of shape (examples, labels), `labels` the index of each example's label.
    """
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        chosen = tempered(probabilities, float(np.exp(log_temperature)))[np.arange(len(labels)), labels]
        return float(-np.mean(np.log(np.clip(chosen, 1e-12, 1))))

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded").x))


def best_threshold(truth: np.ndarray, shares: np.ndarray) -> float:
    """The probability from which saying yes has the highest F1; of several, that nearest to 0.5, which it is without a
    yes in `truth`."""
    order = np.argsort(-shares, kind="stable")
    said, hits = np.arange(1, len(order) + 1), np.cumsum(truth[order])
    if not len(order) or not hits[-1]:
        return 0.5
    ranked = shares[order]
    is_edge = np.append(ranked[:-1] > ranked[1:], True)
    f1 = np.where(is_edge, 2 * hits / (said + hits[-1]), -1.0)
    following = np.append(ranked[1:], 0.0)
    edges = [
        float(np.clip(0.5, following[place] + 1e-6, ranked[place]))
        for place in np.flatnonzero(np.isclose(f1, f1.max()))
    ]
    best = min(edges, key=lambda edge: abs(edge - 0.5))
    return float(np.clip(best, 1e-6, 1 - 1e-6))


def risk_coverage(confidence: np.ndarray, is_right: np.ndarray) -> list[tuple[float, float]]:
    """(share answered, accuracy of these) when only the most confident are answered, for every twentieth."""
    order = np.argsort(-confidence, kind="stable")
    right = np.cumsum(is_right[order])
    counts = np.unique(np.ceil(np.linspace(0.05, 1, 20) * len(order)).astype(int))
    return [(float(count / len(order)), float(right[count - 1] / count)) for count in counts if count]


# ---- growth


@dataclass(frozen=True)
class PowerLaw:
    """score(n) = ceiling - scale * n ** -rate, as fitted, and as fitted to scores drawn from their intervals."""

    fitted: tuple[float, float, float]
    drawn: np.ndarray  # of shape (draws, 3)

    def at(self, n: float) -> dict[str, float]:
        """The value at `n` rows, with the low and high of its 95 % interval."""
        low, high = percentiles(self.drawn[:, 0] - self.drawn[:, 1] * n ** -self.drawn[:, 2])
        ceiling, scale, rate = self.fitted
        return {"value": ceiling - scale * n**-rate, "low": low, "high": high}

    def gain(self, n: float, more: float) -> dict[str, float]:
        """How far the value at `more` rows is above that at `n`, with the low and high of its 95 % interval."""
        _, scale, rate = self.fitted
        low, high = percentiles(self.drawn[:, 1] * (n ** -self.drawn[:, 2] - more ** -self.drawn[:, 2]))
        return {"value": scale * (n**-rate - more**-rate), "low": low, "high": high}


def fit_power_law(points: list[dict[str, float]], best: float, n_draws: int = 400) -> PowerLaw | None:
    """The power law (Hestness et al. 2017) through scores with intervals at numbers of rows; None for under 4 points.

    Points count by how narrow their interval is, and no law promises more than `best`. The law's own interval is from
    fits to scores drawn from normal distributions, as wide as the intervals and the law's misses together: the misses
    tell of the luck of seeds and of rows drawn for training, of which the intervals know nothing.
    """
    if len(points) < 4:
        return None
    n = np.asarray([point["rows"] for point in points])
    values = np.asarray([point["value"] for point in points])
    widths = np.asarray(
        [(point.get("high", point["value"]) - point.get("low", point["value"])) / 3.92 for point in points]
    )
    widths = np.maximum(widths, 1e-3 * max(1e-9, float(np.abs(values).max())))

    weights = widths**-2.0 / np.sum(widths**-2.0)

    def fit(scores: np.ndarray) -> np.ndarray:
        """(ceiling, scale, rate) for each line of `scores`: for each rate the best line in n ** -rate that neither
        falls nor promises more than `best`; the rate whose line is nearest."""
        laws, errors = [], []
        for rate in np.linspace(0.05, 1.5, 59):
            fallen = n**-rate
            off = fallen - weights @ fallen
            mean = scores @ weights
            scale = np.maximum(-(scores @ (weights * off)) / (weights @ off**2), 0)
            ceiling = mean + scale * (weights @ fallen)
            capped = (best - scores) @ (weights * fallen) / (weights @ fallen**2)
            scale, ceiling = np.where(ceiling > best, capped, scale), np.minimum(ceiling, best)
            errors.append((ceiling[:, None] - scale[:, None] * fallen - scores) ** 2 @ weights)
            laws.append(np.stack([ceiling, scale, np.full_like(scale, rate)], axis=1))
        nearest = np.argmin(errors, axis=0)
        return np.stack(laws)[nearest, np.arange(len(scores))]

    ceiling, scale, rate = fit(values[None])[0].tolist()
    misses = np.sqrt(np.sum((ceiling - scale * n**-rate - values) ** 2) / (len(points) - 2))
    spread = np.sqrt(widths**2 + misses**2)
    drawn = values + spread * np.random.default_rng(0).normal(size=(n_draws, len(n)))
    return PowerLaw((ceiling, scale, rate), fit(drawn))
