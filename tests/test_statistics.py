"""Statistics: intervals cover, and tests and calibration equal other people's computations."""

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import bootstrap

from tl_nlp import metrics, statistics


def test_a_metric_under_weights_is_the_metric_of_repeated_rows(draw: np.random.Generator) -> None:
    n = 40
    counts = draw.integers(0, 4, n)
    again = np.repeat(np.arange(n), counts)
    weights = counts[None, :].astype(float)
    labels, given = draw.choice(list("abc"), n), draw.choice(list("abc"), n)
    one, other = draw.integers(0, 2, (n, 3)), draw.integers(0, 2, (n, 3))
    r = draw.integers(0, 6, n).astype(float)
    p = np.clip(r + draw.normal(0, 1, n).round(), 0, 5)
    groups = draw.choice(["x", "y"], n)
    texts = [" ".join(draw.choice(list("abcdefg"), 8)) for _ in range(2 * n)]
    theirs, ours = [[text] for text in texts[:n]], texts[n:]
    inside = np.arange(n) % 2 == 0

    def of(rows: np.ndarray) -> list[metrics.Measured]:
        kept = inside[rows]
        parts = [(side, metrics.rmse(r[rows][side], p[rows][side])) for side in (kept, ~kept)]
        return [
            metrics.accuracy(labels[rows], given[rows]),
            metrics.macro_f1(*(metrics.indicators(side[rows], list("abc")) for side in (labels, given))),
            metrics.macro_f1(one[rows], other[rows]),
            metrics.micro_f1(one[rows], other[rows]),
            metrics.exact_match(one[rows], other[rows]),
            metrics.pearson(r[rows], p[rows]),
            metrics.spearman(r[rows], p[rows]),
            metrics.rmse(r[rows], p[rows]),
            metrics.qwk(r[rows], p[rows]),
            metrics.mean_qwk(r[rows], p[rows], groups[rows]),
            metrics.rouge([theirs[row] for row in rows], [ours[row] for row in rows])["rougeL"],
            metrics.bleu([theirs[row] for row in rows], [ours[row] for row in rows]),
            metrics.Measured.mean_of(parts),
        ]

    for measured, repeated in zip(of(np.arange(n)), of(again), strict=True):
        assert measured.under(weights)[0] == pytest.approx(float(repeated))
        if measured.rows is not None and measured.of_sums is not None:
            assert measured.of_sums(weights @ measured.rows)[0] == pytest.approx(float(repeated))


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "pearson", "rmse"])
def test_95_percent_intervals_hold_the_truth_in_95_of_100_samples(metric: str) -> None:
    """1,000 samples of 200 rows; the truth is the metric of a million rows."""
    draw = np.random.default_rng(1)

    def sample(n: int) -> metrics.Measured:
        if metric in ("accuracy", "macro_f1"):
            r = draw.integers(0, 2, n)
            p = np.where(draw.random(n) < 0.8, r, 1 - r)
            sides = [np.stack([side, 1 - side], axis=1) for side in (r, p)]
            return metrics.accuracy(r, p) if metric == "accuracy" else metrics.macro_f1(*sides)
        r = draw.normal(size=n)
        return getattr(metrics, metric)(r, r + draw.normal(size=n))

    truth = float(sample(1_000_000))
    held = 0
    for _ in range(1000):
        low_high = statistics.intervals({"metric": sample(200)}, 200)["metric"]
        held += low_high["low"] <= truth <= low_high["high"]
    assert 930 <= held <= 970


def test_an_interval_is_that_of_scipy(draw: np.random.Generator) -> None:
    values = draw.random(300)
    ours = statistics.intervals({"mean": metrics.mean(values)}, 300)["mean"]
    theirs = bootstrap((values,), np.mean, n_resamples=5000, method="percentile", rng=0).confidence_interval
    assert ours["low"] == pytest.approx(theirs.low, abs=0.004)
    assert ours["high"] == pytest.approx(theirs.high, abs=0.004)


def test_rows_of_one_author_are_drawn_together(draw: np.random.Generator) -> None:
    """Ten equal rows of each of thirty authors tell no more than thirty rows do."""
    values = draw.integers(0, 2, 30)
    authors = np.repeat(np.arange(30), 10)
    alone = statistics.intervals({"mean": metrics.mean(values)}, 30)["mean"]
    tenfold = statistics.intervals({"mean": metrics.mean(values[authors])}, 300, authors)["mean"]
    assert tenfold == pytest.approx(alone)


def test_a_difference_is_paired() -> None:
    r = np.arange(400) % 2
    wrong = np.zeros(400, bool)
    wrong[:100] = True
    ours, theirs = np.where(wrong, 1 - r, r), np.where(np.roll(wrong, 0) | (np.arange(400) > 379), 1 - r, r)
    found = statistics.difference(metrics.accuracy(r, ours), metrics.accuracy(r, theirs), 400)
    assert found.value == pytest.approx(0.05)
    assert (found.verdict, found.test) == ("better", "McNemar")
    assert found.low == pytest.approx(0.03, abs=0.006)
    assert found.high == pytest.approx(0.07, abs=0.006)
    back = statistics.difference(metrics.accuracy(r, theirs), metrics.accuracy(r, ours), 400)
    assert back.verdict == "worse"
    same = statistics.difference(metrics.accuracy(r, ours), metrics.accuracy(r, ours), 400)
    assert (same.verdict, same.p, str(same)) == ("undecided", 1.0, "+0 [+0, +0]")


def test_mcnemar_is_that_of_statsmodels(draw: np.random.Generator) -> None:
    from statsmodels.stats.contingency_tables import mcnemar

    ours, theirs = draw.random(200) < 0.8, draw.random(200) < 0.7
    table = [[np.sum(ours & theirs), np.sum(ours & ~theirs)], [np.sum(~ours & theirs), np.sum(~ours & ~theirs)]]
    assert statistics.mcnemar(ours, theirs) == pytest.approx(mcnemar(table, exact=True).pvalue)


def test_a_permutation_test_is_even_where_systems_are_alike_and_sure_where_not() -> None:
    draw = np.random.default_rng(2)
    p_values = []
    for _ in range(200):
        r = draw.normal(size=60)
        sides = [metrics.rmse(r, r + draw.normal(size=60)) for _ in range(2)]
        p_values.append(statistics.permutation(*sides))
    assert 0.01 <= np.mean(np.asarray(p_values) <= 0.05) <= 0.1
    r = draw.normal(size=60)
    worse = metrics.rmse(r, r + 3 * draw.normal(size=60))
    assert statistics.permutation(metrics.rmse(r, r + 0.1 * draw.normal(size=60)), worse) < 0.01


def test_calibration_is_what_its_definition_gives(draw: np.random.Generator) -> None:
    logits = draw.normal(size=(500, 3)) * 3
    labels = np.asarray([draw.choice(3, p=softmax(row / 2)) for row in logits])
    probabilities = softmax(logits, axis=1)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    bins = statistics.reliability(confidence, right)
    assert statistics.expected_calibration_error(bins) == pytest.approx(expected)
    assert sum(one.n_rows for one in bins) == 500
    brier = np.mean([sum((row - np.eye(3)[label]) ** 2) for row, label in zip(probabilities, labels, strict=True)])
    assert statistics.brier(probabilities, np.eye(3)[labels]) == pytest.approx(brier)
    np.testing.assert_allclose(statistics.tempered(probabilities, 2.0), softmax(logits / 2, axis=1), atol=1e-9)


def test_the_temperature_is_where_the_likelihood_is_highest(draw: np.random.Generator) -> None:
    import torch

    logits = draw.normal(size=(2000, 4)) * 3
    labels = np.asarray([draw.choice(4, p=softmax(row / 2.5)) for row in logits])
    found = statistics.fit_temperature(softmax(logits, axis=1), labels)
    log_temperature = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], max_iter=100)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(
            torch.from_numpy(logits) / log_temperature.exp(), torch.from_numpy(labels)
        )
        value.backward()
        return value

    optimizer.step(loss)
    assert found == pytest.approx(log_temperature.exp().item(), rel=1e-3)
    assert found == pytest.approx(2.5, rel=0.1)


def test_the_most_confident_are_answered_first() -> None:
    confidence = np.linspace(0, 1, 100)
    curve = statistics.risk_coverage(confidence, confidence > 0.5)
    assert curve[0] == (0.05, 1.0)
    assert curve[-1] == (1.0, 0.5)
    assert len(curve) == 20


def test_intervals_of_qwk_over_small_groups_hold_what_such_samples_have_in_the_mean() -> None:
    """Twelve questions of seven answers each: a resample of seven has fewer different ones, and its QWK is lower."""
    draw = np.random.default_rng(3)
    groups = np.repeat(np.arange(12), 7).astype(str)

    def sample() -> metrics.Measured:
        r = draw.integers(0, 6, len(groups)).astype(float)
        return metrics.mean_qwk(r, np.clip(r + draw.normal(0, 1.2, len(r)).round(), 0, 5), groups)

    made = [sample() for _ in range(300)]
    truth = np.mean([float(one) for one in made])
    found = [statistics.intervals({"qwk": one}, len(groups))["qwk"] for one in made]
    assert all(one["low"] <= one["value"] <= one["high"] for one in found)
    assert np.mean([one["low"] <= truth <= one["high"] for one in found]) >= 0.93


def test_better_is_not_said_where_the_test_says_chance() -> None:
    """Four rows of 84 differ, all in our favour: the interval is above 0, and McNemar's p is 0.125."""
    r = np.zeros(84)
    theirs = r.copy()
    theirs[:4] = 1
    found = statistics.difference(metrics.accuracy(r, r), metrics.accuracy(r, theirs), 84)
    assert found.low > 0
    assert found.p == pytest.approx(0.125)
    assert found.verdict == "undecided"
    assert str(found).endswith("], p 0.12")


def test_a_temperature_of_nothing_but_right_answers_is_one() -> None:
    from tl_nlp.tasks.classification import Classification

    rows = {"id": list("abc"), "text": list("abc"), "target": ["x", "y", "x"]}
    task = Classification(labels=("x", "y")).calibrated(list(np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])), rows)
    assert task.temperature == 1.0
