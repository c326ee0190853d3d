"""The metrics as `evaluate.Metric` classes, one for each kind of prediction. Nothing is fetched from the Hub.

Importing `evaluate` takes seconds, so tasks import this module inside `score`.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np

from tl_nlp import metrics
from tl_nlp.faithfulness import fragments, invented, novel, repeated, words_of
from tl_nlp.metrics import Measured
from tl_nlp.types import Metrics


class _Metric(evaluate.Metric):
    """In memory, and described by its docstring."""

    inputs: dict[str, Any]

    def __init__(self, **kwargs: Any):
        super().__init__(keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=type(self).__doc__ or "",
            citation="",
            inputs_description=", ".join(self.inputs),
            features=datasets.Features(self.inputs),
        )


class LabelMetrics(_Metric):
    """accuracy and macro_f1 of label names."""

    inputs = {"predictions": datasets.Value("string"), "references": datasets.Value("string")}

    def _compute(self, predictions: list[str], references: list[str], labels: list[str]) -> Metrics:
        return {
            "accuracy": metrics.accuracy(references, predictions),
            "macro_f1": metrics.macro_f1(*(metrics.indicators(side, labels) for side in (references, predictions))),
        }


class LabelsMetrics(_Metric):
    """micro_f1, macro_f1 and exact_match of 0/1 indicators, one column a label."""

    inputs = {
        "predictions": datasets.Sequence(datasets.Value("int8")),
        "references": datasets.Sequence(datasets.Value("int8")),
    }

    def _compute(self, predictions: list[list[int]], references: list[list[int]]) -> Metrics:
        r, p = np.asarray(references), np.asarray(predictions)
        return {
            "micro_f1": metrics.micro_f1(r, p),
            "macro_f1": metrics.macro_f1(r, p),
            "exact_match": metrics.exact_match(r, p),
        }


class ScoreMetrics(_Metric):
    """pearson (mean_pearson over the groups), spearman, rmse and smd of numbers; of the grades they are taken for, in
    whole steps of the scale, qwk (mean over the groups), qwk_pooled, and how often they are equal or one step apart.

    With `length`, the log of each text's words: length_pearson, how far scores go with it, and for comparison
    reference_length_pearson, how far references do (means over the groups).

    With `raters`, grades of two people or more for each row (NaN where one has given none): how far these agree, as
    human_qwk and so on, and prmse. Of more than two raters the first two are compared.
    """

    inputs = {
        "predictions": datasets.Value("float64"),
        "references": datasets.Value("float64"),
        "groups": datasets.Value("string"),
        "lows": datasets.Value("float64"),
    }

    def _compute(
        self,
        predictions: list[float],
        references: list[float],
        groups: list[str],
        lows: list[float],
        step: float,
        grades: np.ndarray,
        raters: np.ndarray | None = None,
        length: np.ndarray | None = None,
    ) -> Metrics:
        r, p = np.asarray(references), np.asarray(predictions)
        steps_r, steps_p = (np.rint((values - np.asarray(lows)) / step) for values in (r, grades))
        found: Metrics = {
            "pearson": metrics.pearson(r, p),
            "mean_pearson": metrics.mean_over(metrics.pearson, r, p, groups),
            "spearman": metrics.spearman(r, p),
            "rmse": metrics.rmse(r, p),
            "smd": metrics.smd(r, p),
            "qwk": metrics.mean_qwk(steps_r, steps_p, groups),
            "qwk_pooled": metrics.qwk(steps_r, steps_p),
            "exact_agreement": metrics.agreement(steps_r, steps_p),
            "adjacent_agreement": metrics.agreement(steps_r, steps_p, 1),
        }
        if length is not None:
            found["length_pearson"] = metrics.mean_over(metrics.pearson, length, p, groups)
            found["reference_length_pearson"] = metrics.mean_over(metrics.pearson, length, r, groups)
        return found if raters is None else found | _of_people(r, p, np.asarray(groups), raters, step)


def _of_people(r: np.ndarray, p: np.ndarray, groups: np.ndarray, raters: np.ndarray, step: float) -> Metrics:
    """Agreement of two people, and what is left of errors without theirs, on the rows that both have graded.

    Raters may grade on another scale than the target, which may be their sum: each group's are brought to it by the
    line that leads from their mean to the target with the least squared distance.
    """
    known = ~np.isnan(raters).any(axis=1)
    if known.sum() < _FEWEST_RATED:
        return {}
    one, other = raters[known, 0], raters[known, 1]
    theirs = groups[known]
    scaled = raters[known].copy()
    for group in np.unique(theirs):
        inside = theirs == group
        own = scaled[inside].mean(axis=1)
        slope, offset = np.polyfit(own, r[known][inside], 1) if np.ptp(own) > 0 else (1.0, 0.0)
        scaled[inside] = slope * scaled[inside] + offset
    found = {
        "human_qwk": metrics.mean_qwk(one / step, other / step, theirs),
        "human_pearson": metrics.pearson(one, other),
        "human_exact_agreement": metrics.agreement(one, other),
        "human_adjacent_agreement": metrics.agreement(one, other, step),
        "prmse": metrics.prmse(scaled, p[known]),
    }
    return {name: Measured.mean_of([(known, value)]) for name, value in found.items()}


_FEWEST_RATED = 10


class TextMetrics(_Metric):
    """rouge1, rouge2, rougeL, rougeLsum, bleu, chrf and exact_match of texts, each against any number of references;
    and what they do with their `sources`.

    invented is the share of texts with a number, date, name or address that the source does not have, novel_bigrams
    that of their bigrams; repetition is the share of trigrams that a text had before. coverage, density and compression
    are those of Grusky et al. 2018: the share of words that are in pieces of the source, the mean length of the piece
    that a word is in, and how many words of the source there are for one of the text.
    """

    inputs = {
        "predictions": datasets.Value("string"),
        "references": datasets.Sequence(datasets.Value("string")),
    }

    def _compute(self, predictions: list[str], references: list[list[str]], sources: list[str]) -> Metrics:
        return {
            **metrics.rouge(references, predictions),
            "bleu": metrics.bleu(references, predictions),
            "chrf": metrics.chrf(references, predictions),
            "exact_match": metrics.equal_texts(references, predictions),
            **_of_sources(predictions, sources),
        }


def _of_sources(predictions: list[str], sources: list[str]) -> Metrics:
    words = [words_of(text) for text in predictions]
    read = [words_of(source) for source in sources]
    taken = [fragments(ours, theirs) for ours, theirs in zip(words, read, strict=True)]
    counts = [max(len(ours), 1) for ours in words]
    pairs = list(zip(words, read, strict=True))
    return {
        "invented": metrics.mean([bool(invented(*one)) for one in zip(predictions, sources, strict=True)]),
        "novel_bigrams": metrics.mean([_share(*novel(ours, theirs, 2)) for ours, theirs in pairs]),
        "repetition": metrics.mean([_share(*repeated(ours)) for ours in words]),
        "coverage": metrics.mean([sum(lengths) / n for lengths, n in zip(taken, counts, strict=True)]),
        "density": metrics.mean([sum(k * k for k in lengths) / n for lengths, n in zip(taken, counts, strict=True)]),
        "compression": metrics.mean([len(theirs) / n for theirs, n in zip(read, counts, strict=True)]),
    }


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
