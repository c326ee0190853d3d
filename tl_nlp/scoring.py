"""The metrics as `evaluate.Metric` classes, one for each kind of prediction. Nothing is fetched from the Hub.

Importing `evaluate` takes seconds, so tasks import this module inside `score`.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np

from tl_nlp import metrics
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
    """pearson, spearman and rmse of numbers; qwk (mean over the groups) and qwk_pooled of them in whole steps of
    the scale."""

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
    ) -> Metrics:
        r, p = np.asarray(references), np.asarray(predictions)
        steps_r, steps_p = (np.rint((grades - np.asarray(lows)) / step) for grades in (r, p))
        return {
            "pearson": metrics.pearson(r, p),
            "spearman": metrics.spearman(r, p),
            "rmse": metrics.rmse(r, p),
            "qwk": metrics.mean_qwk(steps_r, steps_p, groups),
            "qwk_pooled": metrics.qwk(steps_r, steps_p),
        }


def all_references(rows: dict[str, list[Any]]) -> list[list[str]]:
    """For each row its target and, where the rows have the column `others`, the further references in it."""
    others = rows.get("others") or [None] * len(rows["target"])
    more = [[text] if isinstance(text, str) else list(text or []) for text in others]
    return [[target, *theirs] for target, theirs in zip(rows["target"], more, strict=True)]


class TextMetrics(_Metric):
    """rouge1, rouge2, rougeL, rougeLsum and bleu of texts, each against any number of references."""

    inputs = {
        "predictions": datasets.Value("string"),
        "references": datasets.Sequence(datasets.Value("string")),
    }

    def _compute(self, predictions: list[str], references: list[list[str]]) -> Metrics:
        return {**metrics.rouge(references, predictions), "bleu": metrics.bleu(references, predictions)}
