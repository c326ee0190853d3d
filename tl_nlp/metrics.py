"""Metrics: pure functions of numpy arrays and strings. References come first, predictions second.

ROUGE and BLEU are 0-100; everything else is on its natural scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np


def accuracy(references: Sequence[str], predictions: Sequence[str]) -> float:
    """Share of predictions equal to their reference."""
    return float(np.mean(np.asarray(references) == np.asarray(predictions)))


def macro_f1(references: Any, predictions: Any, labels: Sequence[str] | None = None) -> float:
    """Mean over the labels of F1; of label names, or of 0/1 indicators of shape (examples, labels)."""
    from sklearn.metrics import f1_score

    return float(f1_score(references, predictions, labels=labels, average="macro", zero_division=0.0))


def micro_f1(references: np.ndarray, predictions: np.ndarray) -> float:
    """F1 over all decisions at once; 0/1 indicators of shape (examples, labels)."""
    from sklearn.metrics import f1_score

    return float(f1_score(references, predictions, average="micro", zero_division=0.0))


def exact_match(references: np.ndarray, predictions: np.ndarray) -> float:
    """Share of examples with every label right; 0/1 indicators of shape (examples, labels)."""
    return float(np.mean(np.all(references == predictions, axis=1)))


def pearson(references: np.ndarray, predictions: np.ndarray) -> float:
    """Pearson's r; 0 where one side is constant."""
    if len(references) < 2 or np.ptp(references) == 0 or np.ptp(predictions) == 0:
        return 0.0
    return float(np.corrcoef(references, predictions)[0, 1])


def spearman(references: np.ndarray, predictions: np.ndarray) -> float:
    """Spearman's rho: Pearson's r of the ranks, ties sharing their mean rank."""
    from scipy.stats import rankdata

    return pearson(rankdata(references), rankdata(predictions))


def rmse(references: np.ndarray, predictions: np.ndarray) -> float:
    """Root of the mean squared error, in points of the scale."""
    return float(np.sqrt(np.mean((np.asarray(references) - np.asarray(predictions)) ** 2)))


def qwk(references: np.ndarray, predictions: np.ndarray) -> float:
    """Quadratic weighted kappa (Cohen 1968) of grades that are whole steps; 1 is agreement, 0 chance.

    1 - E[(r - p)^2] / E[(r' - p')^2] with r' and p' drawn independently. Where both sides are constant and equal: 1.
    """
    r, p = np.asarray(references, float), np.asarray(predictions, float)
    observed = np.mean((r - p) ** 2)
    expected = np.mean(r**2) + np.mean(p**2) - 2 * np.mean(r) * np.mean(p)
    if expected == 0:
        return 1.0 if observed == 0 else 0.0
    return float(1 - observed / expected)


def mean_qwk(references: np.ndarray, predictions: np.ndarray, groups: Sequence[str]) -> float:
    """Mean over the groups of their QWK: grades of different prompts are never pooled."""
    names = np.asarray(groups)
    return float(np.mean([qwk(references[names == name], predictions[names == name]) for name in np.unique(names)]))


def rouge(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
    """Mean ROUGE-1, -2, -L and -Lsum (Lin 2004): F, stemmed, 0-100, for each example the best of its references."""
    per_example = [rouge_scores(theirs, ours) for theirs, ours in zip(references, predictions, strict=True)]
    return {name: float(np.mean([scores[name] for scores in per_example])) for name in ROUGE_TYPES}


ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def rouge_scores(references: Sequence[str], prediction: str, types: tuple[str, ...] = ROUGE_TYPES) -> dict[str, float]:
    """ROUGE of one prediction, 0-100: the best of its references for each type."""
    all_scores = [_rouge_scorer(types).score(reference, prediction) for reference in references]
    return {name: 100 * max(scores[name].fmeasure for scores in all_scores) for name in types}


@lru_cache
def _rouge_scorer(types: tuple[str, ...]) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(types), use_stemmer=True)


def bleu(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> float:
    """Corpus BLEU of sacrebleu, 0-100."""
    from sacrebleu import corpus_bleu

    most = max(len(theirs) for theirs in references)
    streams = [[theirs[min(k, len(theirs) - 1)] for theirs in references] for k in range(most)]
    return float(corpus_bleu(list(predictions), streams).score)
