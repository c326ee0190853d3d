"""What a table is: which of its columns hold what, and which task they make."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tl_nlp.errors import DataError
from tl_nlp.tables import as_text

_LOOKED_AT = 5_000  # rows
_MOST_LABELS = 100
LONG = 120
"""Words a row, from which on grading is of essays."""

_LABELS = ("label", "labels", "target", "class", "category", "sentiment", "intent", "emotion", "topic", "tag", "tags",
           "genre", "polarity")  # fmt: skip
_GRADES = ("grade", "grades", "score", "scores", "stars", "star", "rating", "ratings", "points", "mark", "marks")
_SUMMARIES = ("summary", "summaries", "highlights", "tldr", "subject", "headline", "title")
_PAIRS = ("question", "prompt", "query", "aspect", "reference", "context", "instruction", "premise", "sentence1")
_GROUPS = ("group", "domain", "set", "prompt", "topic", "task")
_IDS = ("id", "ids", "uuid", "guid", "index", "key", "url", "email", "")
_DATES = ("date", "time", "timestamp", "datetime", "created", "updated", "year")
_RATER = re.compile(r"rater_?\d")
_UNSPACED = re.compile("[\u0e00-\u0eff\u3040-\u9fff]")
_DATE = re.compile(r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}\b|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}\b")


@dataclass(frozen=True)
class Guess:
    """What a table is taken for: the kind of task, its columns, and why, in a sentence."""

    task: str
    text: str
    target: str
    why: str
    pair: str | None = None
    group: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)  # of the task: its scale, traits, number of sentences
    n_rows: int = 0
    n_words: float = 0.0  # of text and pair, a row


@dataclass(eq=False)
class _Column:
    """What is seen of a column in the rows that are looked at."""

    name: str
    is_nested: bool
    values: list[Any]  # texts, or lists and objects; those that are there
    share: float  # of the rows that have a value

    def __post_init__(self) -> None:
        self.words = [word.casefold() for word in re.findall(r"[A-Z]?[a-z]+\d*|[A-Z]+|\d+", self.name)] or [""]
        self.distinct = Counter(map(str, self.values))
        self.n_words = float(np.mean([_n_words(one) for one in self.values])) if self.is_text else 0.0
        self.numbers = _numbers(self.values) if self.is_text else None

    @property
    def is_text(self) -> bool:
        return not self.is_nested and bool(self.values)

    @property
    def repeats(self) -> float:
        """How many rows have a value of it, on average."""
        return len(self.values) / max(len(self.distinct), 1)

    def is_named(self, names: tuple[str, ...]) -> bool:
        return any(word in names for word in self.words)

    def unfit(self) -> str | None:
        """Why it is no target, whatever it is named."""
        if self.share < 0.5:
            return "is empty in most rows"
        if len(self.distinct) < 2:
            return "has one value everywhere"
        if self.is_nested:
            return None
        if _RATER.match(self.name.casefold()) or self.name.casefold() in ("low", "high"):
            return "is a rater's or a scale's"
        if np.mean([bool(_DATE.match(one)) for one in self.values]) > 0.9 or (
            self.is_named(_DATES) and self.numbers is not None
        ):
            return "holds dates"
        is_unique = len(self.distinct) > 0.98 * len(self.values) and len(self.values) > 4
        whole = self.numbers is not None and bool((self.numbers == np.floor(self.numbers)).all())
        is_word = self.numbers is None and max(map(len, (one.split() for one in self.values))) == 1
        named = self.words[-1] in _IDS
        if (named and self.repeats < 20) or (is_unique and (is_word or (whole and not self.is_named(_GRADES)))):
            return "names rows"
        return None


def guess(table: pa.Table, *, task: str | None = None, text: str | None = None, target: str | None = None) -> Guess:
    """What a table is for. What the caller knows is taken as it is and the rest is guessed.

    Raises DataError where nothing fits, with what was seen in the columns.
    """
    for name in (text, target):
        if name is not None and name not in table.column_names:
            raise DataError(f"no column {name!r}; there are: {', '.join(table.column_names)}")
    if len(table.column_names) < 2:
        raise DataError(
            f"the table has one column, {''.join(table.column_names)!r}; a training needs texts and beside them a "
            "column of targets: labels, grades, tags or summaries"
        )
    if not len(table):
        raise DataError("the table holds no rows")
    columns = {name: _column(table, name) for name in table.column_names}
    of_text = columns[text] if text is not None else _text(columns, target)
    of_target = columns[target] if target is not None else _target(columns, of_text)
    if of_target is of_text:
        raise DataError(f"{of_text.name!r} cannot be the text and the target; name another column for one of them")
    if not of_target.values:
        raise DataError(f"column {of_target.name!r} is empty, so nothing can be learned from it")
    has_scale = any(_RATER.match(name.casefold()) or name == "high" for name in columns)
    kind, seen = _task(of_target, of_text, has_scale)
    if task is not None and task != kind:
        kind, seen = task, f"{task} was asked for"
        _refuse(task, of_target)
    group = _group(columns, of_text, of_target, kind)
    pair = _pair(columns, of_text, of_target, group)
    settings = _settings(kind, table, of_target, of_text, group)
    beside = f"; {pair.name!r} goes with each text" if pair else ""
    why = f"{of_text.name!r} has the texts ({of_text.n_words:.0f} words a row), {of_target.name!r} {seen}{beside}"
    n_words = of_text.n_words + (pair.n_words if pair else 0)
    names = (pair.name if pair else None, group.name if group else None)
    return Guess(kind, of_text.name, of_target.name, why, *names, settings, len(table), n_words)


def _column(table: pa.Table, name: str) -> _Column:
    column = table[name]
    if len(column) > _LOOKED_AT:
        column = column.take(np.linspace(0, len(column) - 1, _LOOKED_AT).astype(np.int64))
    is_nested = pa.types.is_nested(column.type)
    try:
        values = (column if is_nested else as_text(column)).to_pylist()
    except pa.ArrowException:  # bytes that are no text
        values = [None] * len(column)
    there = [one for one in values if (one if is_nested else one is not None and one.strip())]
    return _Column(name, is_nested, there, len(there) / len(values))


def _n_words(text: str) -> float:
    """Words by spaces; where a script has none, two characters for one."""
    return len(text.split()) + len(_UNSPACED.findall(text)) / 2


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _numbers(values: list[str]) -> np.ndarray | None:
    """The numbers of a column that holds no more of other things than a training leaves out; None for other columns."""
    numbers = np.asarray([_number(one) for one in values])
    is_number = np.isfinite(numbers)
    return numbers[is_number] if is_number.mean() > 0.99 else None


def _text(columns: dict[str, _Column], target: str | None) -> _Column:
    """The column with the most words a row; not one that repeats or is named like a question, where another is left."""
    found = [one for one in columns.values() if one.n_words >= 1.5 and one.numbers is None and one.name != target]
    found = [one for one in found if one.unfit() != "holds dates"]
    if not found:
        most = max(columns.values(), key=lambda one: one.n_words)
        raise DataError(
            f"no column holds texts; that with the most words is {most.name!r}, with {most.n_words:.1f} a row; "
            f"there are: {', '.join(columns)}"
        )
    return max(found, key=lambda one: (one.repeats < 2, not one.is_named(_PAIRS), one.n_words))


def _target(columns: dict[str, _Column], text: _Column) -> _Column:
    reasons, found = [], []
    for one in columns.values():
        if one is text:
            continue
        reason = one.unfit() or _unlike(one, text)
        if reason is None:
            found.append(one)
        else:
            reasons.append(f"{one.name!r} {reason}")
    if not found:
        raise DataError(f"no column can be the target of {text.name!r}: {'; '.join(reasons)}; name one that can")
    return min(enumerate(found), key=lambda place: (_rank(place[1]), -place[0]))[1]  # the last of the best


def _rank(column: _Column) -> tuple[int, int]:
    """How far from a target: by its name, then by what it holds."""
    named = (_LABELS, _GRADES, _SUMMARIES)
    by_name = next((place for place, names in enumerate(named) if column.is_named(names)), len(named))
    is_text = not column.is_nested and column.numbers is None and len(column.distinct) > _MOST_LABELS
    return by_name, int(column.is_named(_PAIRS + _GROUPS)) + 2 * int(is_text)


def _unlike(column: _Column, text: _Column) -> str | None:
    """Why a column is neither labels, grades, tags nor summaries."""
    if column.is_nested or _tags(column) or column.numbers is not None or _few(column):
        return None
    if column.is_named(_PAIRS):
        return "is read like a question"
    if column.n_words >= 2 and column.repeats < 2:
        return None if column.n_words < text.n_words else "is longer than the texts"
    return f"has {len(column.distinct)} different values, too many for labels"


def _few(column: _Column) -> bool:
    return 2 <= len(column.distinct) <= min(_MOST_LABELS, max(2, len(column.values) // 2))


def _tags(column: _Column) -> bool:
    """Whether it holds several labels a row."""
    if column.is_nested:
        return all(isinstance(one, list) and all(isinstance(tag, str | int) for tag in one) for one in column.values)
    parts = {part.strip() for one in column.values for part in one.split("|")}
    n_split = sum("|" in one for one in column.values)
    n_rows = len(column.values)
    return n_split > 0 and n_split >= 0.02 * n_rows and len(parts) <= max(_MOST_LABELS, n_rows / 5)


def _task(target: _Column, text: _Column, has_scale: bool) -> tuple[str, str]:
    """The kind of task of a target, and what is seen of it; `has_scale`: columns beside it are those of grades."""
    n_values, numbers = len(target.distinct), target.numbers
    if _tags(target):
        return "multilabel", "holds several labels a row"
    if target.is_nested:
        if all(isinstance(one, dict) for one in target.values):
            return "grading", "holds a grade for each of several traits"
        raise DataError(f"column {target.name!r} holds neither texts, numbers, lists of labels nor an object of grades")
    is_whole = numbers is not None and bool((numbers == np.rint(numbers)).all())
    is_label = target.is_named(_LABELS) and "target" not in target.words  # which any kind may be named
    is_grade = has_scale or target.is_named(_GRADES) or not _few(target) or not is_whole
    is_grade |= n_values > 20 and not is_label
    if numbers is not None and n_values > 2 and is_grade:
        return "grading", f"holds numbers from {numbers.min():g} to {numbers.max():g}, so grades are learned"
    if _few(target) and (target.n_words < 4 or target.repeats > 4):
        return "classification", f"holds {n_values} different values, so labels are learned"
    if target.n_words < text.n_words:
        return "highlights", f"is shorter ({target.n_words:.0f} words), so sentences are picked that say the same"
    return "summarization", "is no shorter, so texts are learned to be written"


def _refuse(task: str, target: _Column) -> None:
    """Raises DataError where a task that was asked for cannot learn from the target."""
    if task == "grading" and not target.is_nested and target.numbers is None:
        word = next(one for one in target.values if _numbers([one]) is None)
        raise DataError(f"column {target.name!r} holds {word[:40]!r}, which is no number; grading learns numbers")
    if task == "classification" and (target.is_nested or not _few(target)):
        seen = "lists or objects" if target.is_nested else f"{len(target.distinct)} different values"
        raise DataError(
            f"column {target.name!r} has {seen}; classification learns one of at most {_MOST_LABELS} labels"
        )


def _group(columns: dict[str, _Column], text: _Column, target: _Column, task: str) -> _Column | None:
    """The prompt or domain of each row, by which grades have scales and scores are told apart."""
    names = _GROUPS if task == "grading" else _GROUPS[:2]
    found = [
        one
        for one in columns.values()
        if one not in (text, target) and one.is_text and one.is_named(names) and not one.is_named(_DATES)
        and 2 <= len(one.distinct) <= 50 and one.repeats >= 10 and one.n_words < 4 and one.share == 1
    ]  # fmt: skip
    return found[0] if found else None


def _pair(columns: dict[str, _Column], text: _Column, target: _Column, group: _Column | None) -> _Column | None:
    """The question or prompt of each text: named so, or long and the same for many."""
    found = [
        one
        for one in columns.values()
        if one not in (text, target, group) and one.is_text and one.numbers is None and one.share > 0.9
        and one.n_words >= 1 and len(one.distinct) > 1 and one.unfit() is None
        and (one.is_named(_PAIRS) or (one.repeats >= 2 and one.n_words >= 4))
    ]  # fmt: skip
    return max(found, key=lambda one: one.n_words, default=None)


# ---- what the task is told


def _settings(task: str, table: pa.Table, target: _Column, text: _Column, group: _Column | None) -> dict[str, Any]:
    if task == "highlights":
        sentences = [max(1, len(re.findall(r"[.!?](?=\s|$)|\u3002", one))) for one in text.values]
        n_words = sum(_n_words(one) for one in text.values) / sum(sentences)
        return {"n_sentences": int(np.clip(round(target.n_words / max(n_words, 1)), 1, 5))}
    if task != "grading":
        return {}
    if target.is_nested:
        return {"traits": list(dict.fromkeys(name for one in target.values for name in one))}
    if {"low", "high"} <= set(table.column_names):
        return {}
    texts = pc.fill_null(pc.utf8_trim_whitespace(as_text(table[target.name])), "")
    grades = np.asarray([_number(one) for one in texts.to_pylist()])
    known = grades[np.isfinite(grades)]
    low, high = float(known.min()), float(known.max())
    if low >= high:
        raise DataError(f"every grade in {target.name!r} is {low:g}, so nothing can be learned from it")
    step = _step(known - low, high - low)
    if group is not None:
        names = np.asarray([str(one) for one in as_text(table[group.name]).to_pylist()])
        inside = {one: grades[(names == one) & np.isfinite(grades)] for one in np.unique(names).tolist()}
        ends = {one: (float(theirs.min()), float(theirs.max())) for one, theirs in inside.items() if len(theirs)}
        lengths = [end - begin for begin, end in ends.values()]
        # small groups may lack the ends of a common scale; unlike scales differ by much
        if min(lengths) > 0 and max(lengths) >= 1.5 * min(lengths):
            return {"scales": ends, "step": step}
    return {"low": low, "high": high, "step": step}


def _step(above: np.ndarray, length: float) -> float:
    """Between two grades: what all of them are multiples of, else a twentieth of the scale."""
    for scale in (1, 2, 4, 10):
        steps = above * scale
        if np.abs(steps - np.rint(steps)).max() < 1e-6:
            return math.gcd(*np.unique(np.rint(steps)).astype(int).tolist()) / scale
    return float(f"{length / 20:.1g}")
