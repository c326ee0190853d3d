"""What is wrong with the data, before anything is trained on it: findings, each with what mends it, and a cleaned copy.

Sizes, labels, duplicates and cut texts are counted over all rows; languages, personal data and doubtful labels in a
seeded sample of `SAMPLE` rows.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
from pydantic import TypeAdapter

from tl_nlp.cache import made_of, remembered
from tl_nlp.doubts import doubtful_grades, doubtful_labels, first_of
from tl_nlp.duplicates import plain
from tl_nlp.findings import Finding, Severity
from tl_nlp.personal import personal_data
from tl_nlp.rejects import Reject
from tl_nlp.rows import columns_of
from tl_nlp.splits import twins_of
from tl_nlp.types import COLUMNS, KEEP_TOGETHER, TWINS

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from tl_nlp.recipe import Task

Tokens = dict[str, tuple[np.ndarray, np.ndarray]]
SAMPLE = 5000  # rows that the slower looks take
GLANCE = 75_000  # tokens of these rows that a check by itself computes frozen features of
_EXAMPLES = 20  # ids that a finding shows
_FEW_ROWS = 10  # of a label in training, below which it can hardly be learned
_RARE = 0.1  # of the commonest label's rows
_MUCH_CUT = 0.05  # of the tokens
_OTHER_LANGUAGE = 0.05  # of the rows


def check(
    rows: DatasetDict,
    task: Task,
    rejects: list[Reject],
    tokens: Tokens | None = None,
    features: np.ndarray | None = None,
) -> list[Finding]:
    """All findings, the gravest first.

    `tokens` gives for each split the tokens of every row and how many of them no window holds; `features`, of shape
    (examples, hidden), are the checkpoint's states of the training rows `sampled` names, and tell doubtful labels. What
    was found is kept for the next run on the same rows.
    """
    tables = {split: theirs.with_format("arrow")[:] for split, theirs in rows.items()}
    file = made_of("findings", tables, task, rejects, tokens, features)
    return remembered(file, TypeAdapter(list[Finding]), lambda: _found(rows, task, rejects, tokens or {}, features))


def _found(
    rows: DatasetDict, task: Task, rejects: list[Reject], tokens: Tokens, features: np.ndarray | None
) -> list[Finding]:
    found = [*_left_out(rejects), *_ids_again(rows), *_texts(rows), *_cut(tokens, rows)]
    found += [*_doubles(rows), *_together(rows)]
    if task.head in ("generate", "select"):
        found += _longer_targets(rows)
    found += _constant(rows)
    named = {split: _labels_of(theirs, task) for split, theirs in rows.items()}
    if any(named.values()):
        found += [*_labels(rows, named), *_balance(rows, named)]
    if features is not None:
        found += _doubtful(rows["train"], task, features)
    found += [*_personal(rows), *_languages(rows)]
    return sorted(found, key=lambda one: ("error", "warning", "note").index(one.severity))


def sampled(n_rows: int, most: int = SAMPLE) -> np.ndarray:
    """Which of `n_rows` rows are in the sample, in order."""
    if n_rows <= most:
        return np.arange(n_rows)
    return np.sort(np.random.default_rng(0).permutation(n_rows)[:most])


def label_counts(rows: Dataset, task: Task) -> dict[str, int]:
    """How many rows each label has, the commonest first; {} where targets are no labels."""
    return dict(Counter(label for labels in _labels_of(rows, task) for label in labels).most_common())


def _labels_of(rows: Dataset, task: Task) -> list[list[str]]:
    """The labels of each row; [] where targets are no labels."""
    if task.head == "classify":
        return [[target] for target in rows["target"]]
    if task.head != "multilabel":
        return []
    names, given = task.outputs(), task.labels_of({column: rows[column][:] for column in ("id", "target")})
    return [[name for name, is_there in zip(names, line, strict=True) if is_there] for line in given]


def _ids(rows: Dataset, places: Iterable[Any]) -> list[str]:
    return rows[[int(place) for place in places][:_EXAMPLES]]["id"]


def _left_out(rejects: list[Reject]) -> list[Finding]:
    reasons = Counter(one.reason for one in rejects)
    return [
        Finding(
            "rejects",
            "warning",
            count,
            f"{count} rows were left out: {reason}",
            "mend them in the file; a training lists them all in rejects.jsonl",
            [f"{one.source}, {one.place}" for one in rejects if one.reason == reason][:_EXAMPLES],
        )
        for reason, count in reasons.items()
    ]


def _ids_again(rows: DatasetDict) -> list[Finding]:
    known = {row for theirs in rows.values() for row in theirs["id"]}
    again = [row for row in sorted(known) if (base := _AGAIN.fullmatch(row)) and base[1] in known]
    if not again:
        return []
    message = f"{len(again)} rows have an id that another row has, and got a number behind it"
    return [Finding("ids", "note", len(again), message, "data.id names another column", again[:_EXAMPLES])]


_AGAIN = re.compile(r"(.*) \(\d+\)", re.DOTALL)


def _texts(rows: DatasetDict) -> list[Finding]:
    found = []
    for split, theirs in rows.items():
        has_two = pc.match_substring(plain(theirs["text"][:]), " ").to_numpy(zero_copy_only=False)
        short = np.flatnonzero(~has_two)
        if len(short):
            found.append(
                Finding(
                    "near_empty",
                    "note",
                    len(short),
                    f"{len(short)} texts of {split} have one word or none",
                    "see whether they are whole",
                    _ids(theirs, short),
                )
            )
    return found


def _longer_targets(rows: DatasetDict) -> list[Finding]:
    """Summaries that are longer than what they are of."""
    found = []
    for split, theirs in rows.items():
        texts, targets = (pc.utf8_length(plain(theirs[name][:])) for name in ("text", "target"))
        longer = np.flatnonzero(pc.greater(targets, texts).to_numpy(zero_copy_only=False))
        if len(longer):
            message = f"{len(longer)} targets of {split} are longer than their texts"
            mend = "see whether the columns data.text and data.target are the right ones"
            found.append(Finding("longer_targets", "warning", len(longer), message, mend, _ids(theirs, longer)))
    return found


def _cut(tokens: Tokens, rows: DatasetDict) -> list[Finding]:
    found = []
    for split, (lengths, cut) in tokens.items():
        if not cut.any():
            continue
        share, of_rows = cut.sum() / lengths.sum(), (cut > 0).mean()
        found.append(
            Finding(
                "cut",
                "warning" if share > _MUCH_CUT else "note",
                int((cut > 0).sum()),
                f"{100 * share:.1f} % of the tokens of {split}, in {100 * of_rows:.1f} % of its rows, are in no window "
                "and are not seen",
                "raise task.max_length, or task.max_windows where there are windows",
                _ids(rows[split], np.argsort(-cut, kind="stable")[: (cut > 0).sum()]),
            )
        )
    return found


def _doubles(rows: DatasetDict) -> list[Finding]:
    """Rows that are equal or nearly equal, within splits and between them, and those of them with unlike labels."""
    parts = {split: np.asarray(theirs[TWINS]) for split, theirs in twins_of(rows).items()}
    found = []
    for split, blocks in parts.items():
        first = np.unique(blocks, return_index=True)[1]
        again = np.setdiff1d(np.arange(len(blocks)), first)
        if len(again):
            mend = "they count double; tl-nlp check RECIPE --fix DIR writes a copy without them"
            message = f"{len(again)} rows of {split} are equal or nearly equal to an earlier one"
            found.append(Finding("duplicates", "note", len(again), message, mend, _ids(rows[split], again)))
    for earlier, split in _scored_after(rows):
        leaked = np.flatnonzero(np.isin(parts[split], parts[earlier]))
        if len(leaked):
            message = f"{len(leaked)} rows of {split} are equal or nearly equal to rows of {earlier}: scores flatter"
            mend = f"data.overlap=drop takes them out of {earlier}"
            found.append(Finding("overlap", "error", len(leaked), message, mend, _ids(rows[split], leaked)))
    return [*found, *_contradictions(rows["train"], parts["train"])]


def _scored_after(rows: DatasetDict) -> list[tuple[str, str]]:
    """Pairs of splits of which the first is learned from, or chosen by, and the second is scored."""
    names = list(dict.fromkeys(("train", "validation", *rows)))
    return [(one, other) for place, one in enumerate(names[:2]) for other in names[place + 1 :]]


def _contradictions(rows: Dataset, blocks: np.ndarray) -> list[Finding]:
    targets = rows["target"][:]
    if not all(isinstance(target, str) for target in targets):
        return []
    twice = np.flatnonzero(np.bincount(blocks)[blocks] > 1)
    targets_of: dict[int, set[str]] = {}
    for place in twice:
        targets_of.setdefault(int(blocks[place]), set()).add(targets[place])
    unlike = [place for place in twice if len(targets_of[int(blocks[place])]) > 1]
    if not unlike:
        return []
    message = f"{len(unlike)} training rows have an equal or nearly equal text with another target"
    return [
        Finding("contradictions", "warning", len(unlike), message, "decide which target is right", _ids(rows, unlike))
    ]


def _together(rows: DatasetDict) -> list[Finding]:
    if not all(KEEP_TOGETHER in theirs.column_names for theirs in rows.values()):
        return []
    found = []
    for earlier, split in _scored_after(rows):
        known = set(rows[earlier][KEEP_TOGETHER]) - {None, ""}
        leaked = [place for place, value in enumerate(rows[split][KEEP_TOGETHER]) if value in known]
        if leaked:
            message = f"{len(leaked)} rows of {split} share their value of data.keep_together with rows of {earlier}"
            mend = f"data.overlap=drop takes these out of {earlier}"
            found.append(Finding("shared_group", "error", len(leaked), message, mend, _ids(rows[split], leaked)))
    return found


def _constant(rows: DatasetDict) -> list[Finding]:
    found = []
    for split, theirs in rows.items():
        first = theirs[0]["target"]
        if all(target == first for target in theirs["target"]):
            message = f"every row of {split} has the target {first!r}: scores on it tell nothing"
            mend = "split the rows another way"
            found.append(Finding("one_class", "error", len(theirs), message, mend, _ids(theirs, range(len(theirs)))))
    return found


Named = dict[str, list[list[str]]]
"""For each split the labels of each of its rows."""


def _labels(rows: DatasetDict, named: Named) -> list[Finding]:
    counts = Counter(label for theirs in named.values() for labels in theirs for label in labels)
    found = []
    for label, other in spellings(counts).items():
        message = f"the label {label!r} ({counts[label]} rows) may be {other!r} ({counts[other]} rows)"
        mend = f'data.values={{"{label}": "{other}"}} makes them one'
        examples = _rows_with(label, rows, named, rows)
        found.append(Finding("label_spelling", "warning", counts[label], message, mend, examples))
    return found


def spellings(counts: Counter[str], most: float = 0.05) -> dict[str, str]:
    """Labels that differ from a commoner one only by case or spaces; and those that look like a misspelt one, having at
    most the share `most` of its rows."""
    from difflib import SequenceMatcher

    found: dict[str, str] = {}
    common = [label for label, _ in counts.most_common()]
    plainly = [" ".join(label.casefold().split()) for label in common]
    for place, label in enumerate(common):
        for other, theirs in zip(common[:place], plainly, strict=False):
            ours = plainly[place]
            is_rare = counts[label] <= most * max(60, counts[other]) and min(len(ours), len(theirs)) > 3
            is_word = not any(letter.isdigit() for letter in ours + theirs)
            if ours == theirs or (is_rare and is_word and SequenceMatcher(None, ours, theirs).ratio() > 0.8):
                found[label] = found.get(other, other)
                break
    return found


def _balance(rows: DatasetDict, named: Named) -> list[Finding]:
    found = []
    counts = Counter(label for labels in named["train"] for label in labels)
    most = max(counts.values(), default=0)
    for label, count in counts.items():
        if count < _FEW_ROWS or count < _RARE * most:
            severity: Severity = "warning" if count < _FEW_ROWS else "note"
            message = f"the label {label!r} has {count} training rows, the commonest one {most}"
            mend = "label more of it, or try training.class_weights=balanced"
            found.append(
                Finding("rare_label", severity, count, message, mend, _rows_with(label, rows, named, ["train"]))
            )
    scored = Counter(label for split, theirs in named.items() if split != "train" for one in theirs for label in one)
    for label in sorted(set(scored) - set(counts)):
        message = f"the label {label!r} is in {scored[label]} rows to be scored and in no training row"
        theirs = _rows_with(label, rows, named, [split for split in rows if split != "train"])
        mend = "train on rows of it, or drop it"
        found.append(Finding("unseen_label", "warning", scored[label], message, mend, theirs))
    return found


def _rows_with(label: str, rows: DatasetDict, named: Named, splits: Iterable[str]) -> list[str]:
    """Ids of rows that have the label."""
    places = ((split, place) for split in splits for place, labels in enumerate(named[split]) if label in labels)
    return [rows[split][place]["id"] for split, place in itertools.islice(places, _EXAMPLES)]


def _doubtful(rows: Dataset, task: Task, features: np.ndarray) -> list[Finding]:
    """Rows whose label or grade a linear model on frozen features doubts, the most doubtful first."""
    places = sampled(len(rows))
    targets = np.asarray(task.labels_of(columns_of(rows.select(places), (*COLUMNS, *task.columns))))
    what = "grades" if task.head == "regress" else "labels"
    if task.head == "regress":
        doubtful = doubtful_grades(features, targets)
    elif task.head == "multilabel":
        doubtful = first_of([doubtful_labels(features, column.astype(int)) for column in targets.T])
    else:
        doubtful = doubtful_labels(features, np.unique(targets, return_inverse=True)[1])
    if not len(doubtful):
        return []
    message = f"{len(doubtful)} of {len(places)} training {what} looked at are doubtful, the first ones most"
    mend = "look at them; not all are wrong"
    return [Finding("doubtful_labels", "note", len(doubtful), message, mend, _ids(rows, places[doubtful]))]


# ---- personal data and languages


def _sample(rows: DatasetDict) -> list[tuple[str, str]]:
    """(id, pair and text) of sampled rows of all splits."""
    sizes = [len(split) for split in rows.values()]
    chosen = np.split(sampled(sum(sizes)), np.searchsorted(sampled(sum(sizes)), np.cumsum(sizes)[:-1]))
    starts = np.cumsum([0, *sizes[:-1]])
    texts = []
    for split, places, start in zip(rows.values(), chosen, starts, strict=True):
        part = split[(places - start).tolist()]
        pairs = part.get("pair") or [""] * len(places)
        both = (f"{pair}\n{text}" if pair else text for pair, text in zip(pairs, part["text"], strict=True))
        texts += list(zip(part["id"], both, strict=True))
    return texts


def _personal(rows: DatasetDict) -> list[Finding]:
    texts = _sample(rows)
    ids: dict[str, list[str]] = {}
    for row, text in texts:
        for kind in {kind for kind, _, _ in personal_data(text)}:
            ids.setdefault(kind, []).append(row)
    mend = "have you the right to train on them? tl-nlp check RECIPE --fix DIR writes a copy that masks them"
    return [
        Finding(
            "personal_data",
            "warning",
            len(theirs),
            f"{len(theirs)} of {len(texts)} texts looked at hold what looks like a {kind}",
            mend,
            theirs[:_EXAMPLES],
        )
        for kind, theirs in sorted(ids.items())
    ]


@lru_cache
def _language_identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _languages(rows: DatasetDict) -> list[Finding]:
    ids: dict[str, list[str]] = {}
    n_texts = 0
    for row, text in _sample(rows):
        words = text[:4000].split()[:200]
        if len(words) < 5:  # too short to tell
            continue
        language, probability = _language_identifier().classify(" ".join(words))
        if probability > 0.95:
            n_texts += 1
            ids.setdefault(language, []).append(row)
    ranked = sorted(ids.items(), key=lambda one: -len(one[1]))
    return [
        Finding(
            "languages",
            "note",
            len(theirs),
            f"{100 * len(theirs) / n_texts:.0f} % of the texts looked at are in {language!r}, most in {ranked[0][0]!r}",
            "see that the checkpoint knows both; data.where keeps one where a column names it",
            theirs[:_EXAMPLES],
        )
        for language, theirs in ranked[1:]
        if len(theirs) >= _OTHER_LANGUAGE * n_texts
    ]
