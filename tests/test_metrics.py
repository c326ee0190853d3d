"""Metrics equal the field's own implementations, and the evaluate classes equal the functions."""

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import CHRF
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, cohen_kappa_score, f1_score, root_mean_squared_error

from tl_nlp import metrics
from tl_nlp.scoring import LabelMetrics, LabelsMetrics, ScoreMetrics, TextMetrics


def test_labels_equal_scikit_learn(draw: np.random.Generator) -> None:
    r, p = draw.choice(list("abc"), 200), draw.choice(list("abc"), 200)
    scores = LabelMetrics().compute(references=r, predictions=p, labels=["a", "b", "c"])
    assert scores == {
        "accuracy": pytest.approx(accuracy_score(r, p)),
        "macro_f1": pytest.approx(f1_score(r, p, average="macro")),
    }


def test_indicators_equal_scikit_learn(draw: np.random.Generator) -> None:
    r, p = draw.integers(0, 2, (100, 4)), draw.integers(0, 2, (100, 4))
    scores = LabelsMetrics().compute(references=r.tolist(), predictions=p.tolist())
    assert scores == {
        "micro_f1": pytest.approx(f1_score(r, p, average="micro")),
        "macro_f1": pytest.approx(f1_score(r, p, average="macro")),
        "exact_match": pytest.approx(accuracy_score(r, p)),
    }


def test_grades_equal_scipy_and_scikit_learn(draw: np.random.Generator) -> None:
    r = draw.integers(0, 6, 300).astype(float)
    p = np.clip(r + draw.normal(0, 1, 300), 0, 5)
    groups = draw.choice(["x", "y"], 300)
    scores = ScoreMetrics().compute(references=r, predictions=p, groups=groups, lows=np.zeros(300), step=1.0, grades=p)
    inside = [groups == name for name in ("x", "y")]
    in_group = [
        cohen_kappa_score(r[groups == name], np.rint(p[groups == name]), weights="quadratic") for name in ("x", "y")
    ]
    assert scores == {
        "pearson": pytest.approx(pearsonr(r, p).statistic),
        "spearman": pytest.approx(spearmanr(r, p).statistic),
        "rmse": pytest.approx(root_mean_squared_error(r, p)),
        "qwk": pytest.approx(np.mean(in_group)),
        "qwk_pooled": pytest.approx(cohen_kappa_score(r, np.rint(p), weights="quadratic")),
        "mean_pearson": pytest.approx(np.mean([pearsonr(r[one], p[one]).statistic for one in inside])),
        "smd": pytest.approx((p.mean() - r.mean()) / r.std()),
        "exact_agreement": pytest.approx(accuracy_score(r, np.rint(p))),
        "adjacent_agreement": pytest.approx(np.mean(np.abs(r - np.rint(p)) <= 1)),
    }


def test_constant_grades_have_no_correlation_and_no_warning() -> None:
    constant, varied = np.ones(5), np.arange(5.0)
    assert metrics.pearson(varied, constant) == 0
    assert metrics.qwk(varied, constant) == 0
    assert metrics.qwk(constant, constant) == 1
    assert metrics.qwk(constant, constant * 2) == 0


def test_rouge_is_the_best_of_the_references() -> None:
    scorer = RougeScorer(list(metrics.ROUGE_TYPES), use_stemmer=True)
    references = [["The cats sat.", "A dog ran away."], ["Nothing at all"]]
    predictions = ["the cat sat\non it", "something else at all"]
    scores = TextMetrics().compute(references=references, predictions=predictions, sources=["a cat", "a dog"])
    for name in metrics.ROUGE_TYPES:
        best = [
            max(scorer.score(reference, prediction)[name].fmeasure for reference in theirs)
            for theirs, prediction in zip(references, predictions, strict=True)
        ]
        assert scores[name] == pytest.approx(100 * np.mean(best))
    assert 0 <= scores["bleu"] <= 100
    each = [CHRF().sentence_score(ours, theirs).score for ours, theirs in zip(predictions, references, strict=True)]
    assert scores["chrf"] == pytest.approx(np.mean(each))
    assert metrics.equal_texts([["A  dog", "a cat"], ["x"]], ["a CAT", "y"]) == 0.5
    assert metrics.bleu([["a b c d e"]], ["a b c d e"]) == pytest.approx(100)
