"""The values that travel between the parts: predictions, metrics, budgets and the names of the columns."""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

COLUMNS = ("id", "text", "target", "pair", "group")
"""The columns of a row that every part knows; a task may read more (`Task.columns`)."""

IGNORED = -100
"""The label of a token that nothing is learned from."""

KEEP_TOGETHER = "keep_together"
"""Our name for the column that `data.keep_together` names."""

TWINS = "twins"
"""Our name for the column of numbers that are equal where texts are equal or nearly so."""

Metrics = dict[str, float]
"""Metric name to value; ROUGE and BLEU are 0-100, everything else is on its natural scale."""


class PassBudget(NamedTuple):
    """What a model reads in one pass of inference."""

    tokens: int  # at most, padding included
    beside: int = 128  # tokens that take as long as what a pass does beside them: 4.5 ms of MiniLM on 2 cores


@dataclass(frozen=True)
class Label:
    """One of the declared labels."""

    label: str
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Labels:
    """Any number of the declared labels, in their declared order."""

    labels: list[str]
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Scores:
    """A number for each trait, on the scale of the task; and the grade of the scale's steps that it is taken for.

    `margins` are what 95 of 100 such scores are off at most, and whether a teacher should read the text is `unsure`:
    where validation has told.
    """

    scores: dict[str, float]
    grades: dict[str, float] | None = None
    margins: dict[str, float] | None = None
    unsure: bool | None = None


@dataclass(frozen=True)
class Text:
    """A text; where it was picked from the input, `sentences` are the indices of its sentences.

    Where it was written, `invented` has where in it each number, date, name or address begins and ends that the input
    does not have, and it is `unfinished` where it would have gone on.
    """

    text: str
    sentences: list[int] | None = None
    invented: list[list[int]] | None = None
    unfinished: bool | None = None


def pieces(text: Text) -> list[tuple[str, bool]]:
    """A text in pieces, each with whether it is invented."""
    found, at = [], 0
    for start, end in text.invented or []:
        found += [(text.text[at:start], False), (text.text[start:end], True)]
        at = end
    return [(piece, is_invented) for piece, is_invented in [*found, (text.text[at:], False)] if piece]


Prediction = Label | Labels | Scores | Text


def as_json(prediction: Prediction, row_id: str | None = None) -> dict[str, Any]:
    """The prediction as the JSON object of one line of `tl-nlp predict`; absent parts are left out."""
    values = {"id": row_id, **asdict(prediction)}
    return {key: value for key, value in values.items() if value is not None}
