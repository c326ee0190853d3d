"""What lies behind a score: classes, confusions, calibration, slices, and the most confident mistakes.

Everything is a value that JSON holds, made from predictions and the rows they are for.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from tl_nlp.metrics import indicators, rouge
from tl_nlp.rows import all_references, clusters
from tl_nlp.scales import RATERS
from tl_nlp.statistics import (
    brier,
    expected_calibration_error,
    intervals,
    reliability,
    risk_coverage,
)
from tl_nlp.types import Label, Labels, Prediction, Scores, Text, pieces

if TYPE_CHECKING:
    from tl_nlp.recipe import Rows, Task

_SMALLEST_SLICE = 20  # rows
_MOST_SLICES = 12
_N_MISTAKES = 20
_OF_SCORES = ("pearson", "mean_pearson", "spearman", "rmse", "length_pearson")  # what grades are cut from
_N_LENGTHS = 4  # quarters of the rows by length


def analyse(task: Task, predictions: list[Prediction], rows: Rows) -> dict[str, Any]:
    """classes and confusion (labels), calibration (where there are probabilities), slices and mistakes (ids), and what
    was written that the text does not have (invented)."""
    found: dict[str, Any] = {"slices": slices(task, predictions, rows), "mistakes": mistakes(task, predictions, rows)}
    labels = list(task.outputs())
    if task.head == "classify":
        given = [one.label for one in predictions if isinstance(one, Label)]
        truth, answers = indicators(rows["target"], labels), indicators(given, labels)
        found["classes"] = _classes(labels, truth, answers)
        found["confusion"] = (truth.astype(int).T @ answers.astype(int)).tolist()
        shares = np.asarray([[one.probabilities[name] for name in labels] for one in predictions])  # type: ignore[union-attr]
        found["calibration"] = _calibration(shares.max(axis=1), (truth & answers).any(axis=1))
        found["calibration"]["brier"] = brier(shares, truth)
    elif task.head == "multilabel":
        truth = np.asarray(task.labels_of(rows)) > 0.5
        answers = np.asarray([[name in one.labels for name in labels] for one in predictions])  # type: ignore[union-attr]
        found["classes"] = _classes(labels, truth, answers)
        shares = np.asarray([[one.probabilities[name] for name in labels] for one in predictions])  # type: ignore[union-attr]
        sure = np.maximum(shares, 1 - shares).ravel()
        found["calibration"] = _calibration(sure, ((shares >= 0.5) == truth).ravel())
        found["calibration"]["brier"] = brier(shares, truth) / len(labels)
    elif task.head == "select":
        found["ceiling"] = _ceiling(task, rows)
    elif task.head == "generate":
        found["invented"] = _invented(predictions, rows)
    elif task.head == "regress":
        found |= _work_saved(task, predictions, rows)
        found["groups"] = _group_differences(task, predictions, rows)
        if any(rows.get(name) for name in RATERS):
            found["raters"] = _raters(rows)
        if getattr(task, "lines", None):
            before = task.score(task.with_length(predictions, rows), rows)  # type: ignore[attr-defined]
            kept = {name: before[name] for name in _OF_SCORES if name in before}
            found["with_length"] = intervals(kept, len(predictions), clusters(rows))
    return found


def _ceiling(task: Task, rows: Rows) -> dict[str, dict[str, float]]:
    """What the metrics would be were the sentences picked that are worth most."""
    worths = [np.asarray(theirs) for theirs in task.labels_of(rows)]
    best = [one.text for one in task.decode(worths, rows, None) if isinstance(one, Text)]
    return intervals(dict(rouge(all_references(rows), best)), len(best), clusters(rows))


def _invented(predictions: list[Prediction], rows: Rows) -> list[dict[str, Any]]:
    """Texts with the most that their source does not have, each cut where that begins and ends: [text, is invented]."""
    made = [(place, one) for place, one in enumerate(predictions) if isinstance(one, Text) and one.invented]
    made.sort(key=lambda pair: -len(pair[1].invented or []))
    return [{"id": rows["id"][place], "pieces": pieces(one)} for place, one in made[:_N_MISTAKES]]


def _work_saved(task: Task, predictions: list[Prediction], rows: Rows) -> dict[str, Any]:
    """work: what share of the texts no teacher need read, and how far their grades agree with the teacher's; and the
    same for other shares, the surest first. {} where validation has not told which these are."""
    made = [one for one in predictions if isinstance(one, Scores) and one.unsure is not None and one.margins]
    if len(made) < len(predictions) or not made:
        return {}
    spread = [high - low for low, high in task.scales_of(rows)]  # type: ignore[attr-defined]
    errors = np.asarray([max((one.margins or {}).values()) / of for one, of in zip(made, spread, strict=True)])
    order = np.argsort(errors, kind="stable")

    def agreement(places: np.ndarray) -> dict[str, float]:
        return _scored(task, predictions, rows, places, "qwk")

    sure = np.flatnonzero([not one.unsure for one in made])
    counts = [round(share * len(made)) for share in np.linspace(0.1, 1, 10)]
    curve = [{"share": n / len(made), **agreement(order[:n])} for n in counts if n >= _SMALLEST_SLICE]
    share = len(sure) / len(made)
    own = agreement(sure) if len(sure) >= _SMALLEST_SLICE else None
    return {"work": {"level": task.agreement, "share": share, "qwk": own, "curve": curve}}  # type: ignore[attr-defined]


def _scored(task: Task, predictions: list[Prediction], rows: Rows, places: np.ndarray, metric: str) -> dict[str, float]:
    """A metric with its interval, of the rows at these places."""
    theirs = {column: [values[place] for place in places] for column, values in rows.items()}
    value = task.score([predictions[place] for place in places], theirs)[metric]
    return intervals({metric: value}, len(places), clusters(theirs))[metric]


def _raters(rows: Rows) -> dict[str, int]:
    """How many rows were graded by two people or more, which human_qwk and prmse are of, by one, and by none."""
    given = zip(*(rows[name] for name in RATERS if rows.get(name)), strict=True)
    counts = [sum(value not in (None, "") for value in theirs) for theirs in given]
    return {"two": sum(n > 1 for n in counts), "one": counts.count(1), "none": counts.count(0)}


def _group_differences(task: Task, predictions: list[Prediction], rows: Rows) -> list[dict[str, Any]]:
    """For each group of enough rows how far scores are above the references in the mean, in standard deviations of the
    group's references, the largest difference first."""
    groups = np.asarray([str(group) for group in rows.get("group") or []])
    found: list[dict[str, Any]] = []
    for group in np.unique(groups).tolist():
        places = np.flatnonzero(groups == group)
        if len(places) >= _SMALLEST_SLICE:
            value = _scored(task, predictions, rows, places, "smd")
            found.append({"name": group, "rows": len(places), "metric": "smd", **value})
    return sorted(found, key=lambda one: -abs(one["value"]))


def _classes(labels: list[str], truth: np.ndarray, answers: np.ndarray) -> dict[str, dict[str, float]]:
    """precision, recall and F1 of each label, and its rows."""
    both, there, said = (truth & answers).sum(0), truth.sum(0), answers.sum(0)
    return {
        label: {
            "rows": int(there[place]),
            "precision": float(both[place] / said[place]) if said[place] else 0.0,
            "recall": float(both[place] / there[place]) if there[place] else 0.0,
            "f1": float(2 * both[place] / (said[place] + there[place])) if said[place] + there[place] else 0.0,
        }
        for place, label in enumerate(labels)
    }


def _calibration(confidence: np.ndarray, is_right: np.ndarray) -> dict[str, Any]:
    bins = reliability(confidence, is_right)
    return {
        "ece": expected_calibration_error(bins),
        "reliability": [asdict(one) for one in bins],
        "risk_coverage": [
            {"answered": share, "accuracy": right} for share, right in risk_coverage(confidence, is_right)
        ],
    }


def slices(task: Task, predictions: list[Prediction], rows: Rows) -> list[dict[str, Any]]:
    """The main metric with its interval on parts of the rows (by group, length and label), the worst first."""
    parts: dict[str, np.ndarray] = {}
    groups = np.asarray([str(group) for group in rows.get("group") or []])
    for group in np.unique(groups):
        parts[f"group {group}"] = groups == group
    words = np.asarray([len(text.split()) for text in rows["text"]])
    edges = np.unique(np.quantile(words, np.linspace(0, 1, _N_LENGTHS + 1)).round())
    for place, (low, high) in enumerate(itertools.pairwise(edges)):
        last = place == len(edges) - 2
        inside = (words >= low) & ((words <= high) if last else (words < high))
        parts[f"{low:.0f} to {high if last else high - 1:.0f} words"] = inside
    if task.head == "classify":
        targets = np.asarray(rows["target"])
        for label in task.outputs():
            parts[f"label {label}"] = targets == label
    found: list[dict[str, Any]] = []
    for name, inside in parts.items():
        places = np.flatnonzero(inside)
        if not _SMALLEST_SLICE <= len(places) < len(words):
            continue
        value = _scored(task, predictions, rows, places, task.main_metric)
        found.append({"name": name, "rows": len(places), "metric": task.main_metric, **value})
    return sorted(found, key=lambda one: one["value"])[:_MOST_SLICES]


def mistakes(task: Task, predictions: list[Prediction], rows: Rows) -> list[dict[str, Any]]:
    """Wrong answers by how sure they were, or by how far off: id, reference, prediction and that number."""
    found: list[tuple[float, int, Any]] = []
    for place, prediction in enumerate(predictions):
        if isinstance(prediction, Label):
            if prediction.label != rows["target"][place]:
                found.append((prediction.probabilities[prediction.label], place, prediction.label))
        elif isinstance(prediction, Labels):
            truth = dict(zip(task.outputs(), _one(task, rows, place), strict=True))
            gap = max(abs(truth[name] - share) for name, share in prediction.probabilities.items())
            if gap > 0.5:
                found.append((gap, place, "|".join(prediction.labels)))
        elif isinstance(prediction, Scores):
            gaps = [
                abs(theirs - ours)
                for theirs, ours in zip(_one(task, rows, place), _shares(task, rows, place, prediction), strict=True)
            ]
            gap = float(np.nanmax(gaps))
            if gap > 0:
                found.append((gap, place, {name: round(score, 3) for name, score in prediction.scores.items()}))
        elif isinstance(prediction, Text):
            continue
    found.sort(key=lambda one: -one[0])
    return [
        {"id": rows["id"][place], "reference": rows["target"][place], "prediction": said, "confidence": round(sure, 4)}
        for sure, place, said in found[:_N_MISTAKES]
    ]


def _one(task: Task, rows: Rows, place: int) -> list[float]:
    return task.labels_of({name: values[place : place + 1] for name, values in rows.items()})[0]


def _shares(task: Task, rows: Rows, place: int, prediction: Scores) -> list[float]:
    """Grades as shares of the row's scale."""
    row = {name: values[place : place + 1] for name, values in rows.items()}
    row["target"] = [dict(prediction.scores)]
    return task.labels_of(row)[0]
