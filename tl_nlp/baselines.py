"""What a fine-tuned model must beat: cheap models of the same training rows, on the same test rows.

Each answers with the task's own predictions, so the task scores them as it scores the model. Where a baseline has a
choice (how strongly to regularize, how many sentences to take), it is made on the validation rows.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter
from tqdm import tqdm

from tl_nlp.cache import made_of, remembered
from tl_nlp.logistic import falling_back, logistic_regression
from tl_nlp.rows import columns_of
from tl_nlp.scales import groups_of
from tl_nlp.textrank import textrank
from tl_nlp.types import COLUMNS, Prediction, Text

if TYPE_CHECKING:
    from datasets import DatasetDict

    from tl_nlp.recipe import Rows, Task

MAX_ROWS = 200_000  # training rows that baselines learn from, a seeded sample of more
MAX_FROZEN = 20_000  # of these, those whose frozen features are computed
TRANSFER = ("tfidf", "frozen")
"""Baselines that fine-tuning must beat, or the transfer has done harm."""

Answers = dict[str, list[Prediction]]
"""Predictions for the rows of each split."""


@dataclass
class Given:
    """What baselines see: columns of every split, and the checkpoint's frozen features of their rows.

    Of the training rows, `frozen` has those at the places `frozen_rows`.
    """

    task: Task
    splits: dict[str, Rows]
    frozen: dict[str, np.ndarray] = field(default_factory=dict)  # of shape (examples, hidden), or (sentences, hidden)
    frozen_rows: np.ndarray = field(default_factory=lambda: np.empty(0, int))
    _sentences: dict[str, list[list[str]]] = field(default_factory=dict)

    def sentences(self, split: str) -> list[list[str]]:
        """The sentences of each text of a split, told apart once."""
        if split not in self._sentences:
            self._sentences[split] = self.task.sentences_of(self.splits[split])
        return self._sentences[split]

    @cached_property
    def file(self) -> Path | None:
        """Where the cache keeps what baselines answered to this before."""
        return made_of("baselines", self.task, self.splits, self.frozen, self.frozen_rows)

    @property
    def n_rows(self) -> int:
        """Rows that are learned from or answered: none where the answers are kept."""
        is_answered = self.file is not None and self.file.is_file()
        return 0 if is_answered else sum(len(rows["id"]) for rows in self.splits.values())

    @property
    def scored(self) -> dict[str, Rows]:
        """All splits but train."""
        return {split: rows for split, rows in self.splits.items() if split != "train"}


def given(
    task: Task, rows: DatasetDict, frozen: dict[str, np.ndarray], train_rows: np.ndarray, frozen_rows: np.ndarray
) -> Given:
    """`train_rows` are the places of the training rows that baselines learn from, `frozen_rows` those among them of
    which `frozen["train"]` has the features."""
    names = (*COLUMNS, *task.columns)
    parts = {split: theirs.select(train_rows) if split == "train" else theirs for split, theirs in rows.items()}
    columns = {split: columns_of(part, names) for split, part in parts.items()}
    return Given(task, columns, frozen, np.searchsorted(train_rows, frozen_rows))


def answers(known: Given) -> dict[str, Answers]:
    """Each baseline's predictions for every split but train, by its name; kept for the next run on the same rows."""

    def make() -> dict[str, Answers]:
        makers = _MAKERS[known.task.head]
        bar = tqdm(makers, desc="baselines", unit="model", file=sys.stderr)
        with falling_back():
            return {name: makers[name](known) for name in bar if name != "frozen" or known.frozen}

    return remembered(known.file, TypeAdapter(dict[str, Answers], config={"ser_json_inf_nan": "constants"}), make)


# ---- labels and grades


def _majority(known: Given) -> Answers:
    """The commonest label; under several labels those that over half of the rows have; for grades the group's mean."""
    targets = _targets(known, "train")
    if known.task.head != "regress":
        shares = targets.mean(axis=0)
        return _decided(known, {split: [shares] * len(rows["id"]) for split, rows in known.scored.items()})
    overall = np.nanmean(targets, axis=0)
    groups = np.asarray(groups_of(known.splits["train"]))
    means: dict[str, np.ndarray] = {}
    for group in np.unique(groups):
        theirs = targets[groups == group]
        counts = np.sum(~np.isnan(theirs), axis=0)
        means[group] = np.where(counts > 0, np.nansum(theirs, axis=0) / np.maximum(counts, 1), overall)
    return _decided(
        known,
        {
            split: [np.asarray(means.get(group, overall)) for group in groups_of(rows)]
            for split, rows in known.scored.items()
        },
    )


def _decided(known: Given, outputs: dict[str, list[np.ndarray]]) -> Answers:
    """Answers from outputs as the head infers them. What validation teaches a model about its decisions, thresholds
    for one, it teaches a baseline too."""
    decided = known.task.calibrated(outputs["validation"], known.splits["validation"])
    return {split: decided.decode(theirs, known.splits[split], None) for split, theirs in outputs.items()}


def _tfidf(known: Given) -> Answers:
    """TF-IDF of words and pairs of words, and a linear model."""
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(
        sublinear_tf=True, ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", max_features=200_000
    )
    try:
        train = vectorizer.fit_transform(_joined(known.splits["train"]))
    except ValueError:  # not a word in any: nothing to tell rows by
        nothing = {split: csr_matrix((len(rows["id"]), 1)) for split, rows in known.splits.items()}
        return _linear(known, nothing, (1.0,))
    features = {split: vectorizer.transform(_joined(rows)) for split, rows in known.scored.items()}
    return _linear(known, {"train": train, **features}, (1.0, 10.0))


def _frozen(known: Given) -> Answers:
    """The checkpoint's own features, as it was before the training, and a linear model."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(known.frozen["train"])
    features = {split: scaler.transform(theirs) for split, theirs in known.frozen.items()}
    return _linear(known, features, (0.003, 0.03, 0.3), known.frozen_rows)


def _length(known: Given) -> Answers:
    """Grades from the number of words alone, each group by a curve of its own."""
    from scipy.sparse import csr_matrix

    names = {group: place for place, group in enumerate(dict.fromkeys(groups_of(known.splits["train"])))}

    def curve(rows: Rows) -> Any:
        words = np.asarray([len(text.split()) for text in rows["text"]], float)
        terms = np.stack([np.ones_like(words), np.log1p(words), np.sqrt(words) / 10, words / 100], axis=1)
        place = np.asarray([names.get(group, -1) for group in groups_of(rows)])
        own = np.zeros((len(words), (len(names) + 1) * terms.shape[1]))
        own[:, : terms.shape[1]] = terms
        for column in range(terms.shape[1]):
            own[np.arange(len(words)), (place + 1) * terms.shape[1] + column] = terms[:, column]
        return csr_matrix(own)

    return _linear(known, {split: curve(rows) for split, rows in known.splits.items()}, (1.0, 100.0))


def _linear(
    known: Given, features: dict[str, Any], strengths: tuple[float, ...], train_rows: np.ndarray | None = None
) -> Answers:
    """Logistic or ridge regression, of the strength whose predictions the task scores best on validation; learned from
    all training rows or those at the places `train_rows`."""
    task, targets = known.task, _targets(known, "train")
    targets = targets if train_rows is None else targets[train_rows]
    made = []
    for strength in strengths:
        predict = _fitted(task.head, features["train"], targets, strength)
        made.append(_decided(known, {split: list(predict(features[split])) for split in known.scored}))
    return _preferred(known, made)


def _fitted(head: str, features: Any, targets: np.ndarray, strength: float) -> Callable[[Any], np.ndarray]:
    """A function from features to outputs as the head infers them, of shape (examples, outputs)."""
    from sklearn.linear_model import Ridge

    if head == "regress":
        models = []
        for column in targets.T:
            graded = ~np.isnan(column)
            models.append(Ridge(alpha=1 / strength).fit(features[graded], column[graded]))
        return lambda rows: np.stack([model.predict(rows) for model in models], axis=1)
    if head == "classify":
        labels = targets.argmax(axis=1)
        there = np.unique(labels)
        if len(there) == 1:
            return lambda rows: np.repeat(targets[:1], rows.shape[0], axis=0)
        model = logistic_regression(strength, features, len(there)).fit(features, labels)

        def probabilities(rows: Any) -> np.ndarray:
            found = np.zeros((rows.shape[0], targets.shape[1]))
            found[:, there] = model.predict_proba(rows)
            return found

        return probabilities
    deciders = [
        logistic_regression(strength, features).fit(features, column) if 0 < column.sum() < len(column) else None
        for column in targets.T
    ]
    return lambda rows: np.stack(
        [
            np.full(rows.shape[0], column[0]) if decider is None else decider.predict_proba(rows)[:, 1]
            for decider, column in zip(deciders, targets.T, strict=True)
        ],
        axis=1,
    )


def _targets(known: Given, split: str) -> np.ndarray:
    """Targets as the head is to infer them, of shape (examples, outputs): indicators, or shares of the scale."""
    labels = known.task.labels_of(known.splits[split])
    if known.task.head == "classify":
        return np.eye(len(known.task.outputs()))[np.asarray(labels)]
    return np.asarray(labels, float)


def _joined(rows: Rows) -> list[str]:
    """The pair and the text of each row as one text."""
    return [f"{pair} {text}".strip() for pair, text in zip(_pairs(rows), rows["text"], strict=True)]


# ---- summaries


def _lead(known: Given) -> Answers:
    """The first sentences."""
    return _picked(known, lambda sentences: np.arange(len(sentences), 0, -1, dtype=float))


def _textrank(known: Given) -> Answers:
    """The sentences that are most like the others."""
    return _picked(known, textrank)


def _tfidf_sentences(known: Given) -> Answers:
    """TF-IDF of each sentence and where it stands, and a logistic regression."""
    from scipy.sparse import csr_matrix, hstack
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True)
    vectorizer.fit(_flat(known, "train"))
    features = {
        split: hstack([vectorizer.transform(_flat(known, split)), csr_matrix(_places(known, split))]).tocsr()
        for split in known.splits
    }
    return _best_sentences(known, features, (1.0,))


def _frozen_sentences(known: Given) -> Answers:
    """The checkpoint's own features of each sentence, where it stands, and a logistic regression."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(known.frozen["train"])
    features = {
        split: np.hstack([scaler.transform(states), _places(known, split)]) for split, states in known.frozen.items()
    }
    return _best_sentences(known, features, (0.001, 0.01))


def _flat(known: Given, split: str) -> list[str]:
    """All sentences of a split, text by text."""
    return [sentence for theirs in known.sentences(split) for sentence in theirs]


def _places(known: Given, split: str) -> np.ndarray:
    """Where each sentence stands in its text, from its start and as a share of it."""
    sentences = known.sentences(split)
    return np.asarray([[1 / (n + 1), n / len(theirs)] for theirs in sentences for n in range(len(theirs))])


def _best_sentences(known: Given, features: dict[str, Any], strengths: tuple[float, ...]) -> Answers:
    """A logistic regression on whether a sentence is among the best of its text, one for each pair (aspect, question)
    of which there are enough rows; of the strength that the task scores best on validation."""
    train = known.splits["train"]
    counts = Counter(_pairs(train))
    own = {pair for pair, count in counts.items() if count >= _OWN_MODEL}

    def of(split: str) -> np.ndarray:
        """Which model answers for each sentence."""
        texts = zip(_pairs(known.splits[split]), known.sentences(split), strict=True)
        return np.asarray([pair if pair in own else "" for pair, theirs in texts for _ in theirs])

    is_best = []
    for worths in known.task.labels_of(train):
        least = np.sort(worths)[-min(_N_BEST, len(worths))]
        is_best += [worth >= least and worth > 0 for worth in worths]
    best, of_train = np.asarray(is_best), of("train")

    def answers(strength: float) -> Answers:
        models = {}
        for name in {"", *own}:
            mine = np.flatnonzero((of_train == name) | (name == ""))
            if 0 < best[mine].sum() < len(mine):
                model = logistic_regression(strength, features["train"], class_weight="balanced")
                models[name] = model.fit(features["train"][mine], best[mine])
        made = {}
        for split in known.scored:
            of_split = of(split)
            outputs = np.zeros(len(of_split))
            for name in np.unique(of_split):
                if name in models:
                    outputs[of_split == name] = models[name].decision_function(features[split][of_split == name])
            ends = np.cumsum([len(sentences) for sentences in known.sentences(split)])
            made[split] = np.split(outputs, ends[:-1])
        return _within_budget(known, made)

    return _preferred(known, [answers(strength) for strength in strengths])


def _within_budget(known: Given, ranks: dict[str, list[np.ndarray]]) -> Answers:
    """The sentences that the task picks by these ranks, within a budget found on validation where it finds one."""
    task = known.task.calibrated(ranks["validation"], known.splits["validation"])
    return {split: task.decode(ranks[split], rows, None) for split, rows in known.scored.items()}


def _preferred(known: Given, made: list[Answers]) -> Answers:
    """The answers that the task scores best on validation."""
    if len(made) == 1:
        return made[0]
    truth = known.splits["validation"]
    return max(made, key=lambda one: float(known.task.score(one["validation"], truth)[known.task.main_metric]))


_OWN_MODEL = 20  # rows of a pair
_N_BEST = 2  # sentences of a text


def _pairs(rows: Rows) -> list[str]:
    return rows.get("pair") or [""] * len(rows["id"])


def _picked(known: Given, rank: Callable[[list[str]], np.ndarray]) -> Answers:
    """The sentences that rank highest: as many as the task picks, else as many (1 to 3) as validation likes best."""
    task = known.task
    sentences = {split: known.sentences(split) for split in known.scored}
    ranks = {split: [rank(theirs) for theirs in all_theirs] for split, all_theirs in sentences.items()}
    if task.head == "select":
        return _within_budget(known, ranks)
    made: list[Answers] = []
    for n_sentences in (1, 2, 3):
        found: Answers = {}
        for split, all_theirs in sentences.items():
            found[split] = [
                Text(
                    " ".join(theirs[index] for index in np.sort(np.argsort(-theirs_rank, kind="stable")[:n_sentences]))
                )
                for theirs, theirs_rank in zip(all_theirs, ranks[split], strict=True)
            ]
        made.append(found)
    return _preferred(known, made)


_LINEAR: dict[str, Callable[[Given], Answers]] = {"majority": _majority, "tfidf": _tfidf, "frozen": _frozen}
_MAKERS: dict[str, dict[str, Callable[[Given], Answers]]] = {
    "classify": _LINEAR,
    "multilabel": _LINEAR,
    "regress": {"mean": _majority, "length": _length, "tfidf": _tfidf, "frozen": _frozen},
    "select": {"lead": _lead, "textrank": _textrank, "tfidf": _tfidf_sentences, "frozen": _frozen_sentences},
    "generate": {"lead": _lead, "textrank": _textrank},
}
