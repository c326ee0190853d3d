"""What is wrong with the data, before anything is trained on it: findings, each with what mends it, and a cleaned copy.

Sizes, labels, duplicates and cut texts are counted over all rows; languages, personal data and doubtful labels in a
seeded sample of `SAMPLE` rows.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow.compute as pc

from tl_nlp.duplicates import plain
from tl_nlp.rows import KEEP_TOGETHER, block_numbers, columns_of
from tl_nlp.tables import Reject, write_rows
from tl_nlp.types import COLUMNS

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from tl_nlp.recipe import Task

SAMPLE = 5000  # rows that the slower looks take
GLANCE = 300_000  # tokens of these rows that frozen features are computed of, so that long texts cost no more
_EXAMPLES = 20  # ids that a finding shows
_FEW_ROWS = 10  # of a label in training, below which it can hardly be learned
_RARE = 0.1  # of the commonest label's rows
_MUCH_CUT = 0.05  # of the tokens
_OTHER_LANGUAGE = 0.05  # of the rows

Severity = Literal["note", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """Something about the data that a person should know.

    An error makes scores wrong, a warning may, a note does not. `examples` are ids of rows.
    """

    name: str
    severity: Severity
    count: int
    message: str
    mend: str
    examples: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        rows = f" ({', '.join(self.examples[:5])}{', …' if len(self.examples) > 5 else ''})" if self.examples else ""
        return f"{self.severity}: {self.message}{rows}; {self.mend}"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def check(
    rows: DatasetDict,
    task: Task,
    rejects: list[Reject],
    tokens: dict[str, tuple[np.ndarray, np.ndarray]] | None = None,
    features: np.ndarray | None = None,
) -> list[Finding]:
    """All findings, the gravest first.

    `tokens` gives for each split the tokens of every row and how many of them no window holds; `features`, of shape
    (examples, hidden), are the checkpoint's states of the training rows `sampled` names, and tell doubtful labels.
    """
    found = [*_left_out(rejects), *_texts(rows), *_cut(tokens or {}, rows), *_doubles(rows), *_together(rows)]
    found += _constant(rows)
    if named := _label_names(rows, task):
        found += [*_labels(rows, named), *_balance(named)]
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
    if task.head not in ("classify", "multilabel"):
        return {}
    labels = task.labels_of({name: rows[name][:] for name in ("id", "target")})
    names = task.outputs()
    if task.head == "classify":
        return {names[place]: count for place, count in Counter(labels).most_common()}
    totals = np.sum(labels, axis=0).astype(int).tolist()
    return dict(sorted(zip(names, totals, strict=True), key=lambda one: -one[1]))


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
            "rejects.jsonl has them all; mend them in the file",
            [f"{one.source}, {one.place}" for one in rejects if one.reason == reason][:_EXAMPLES],
        )
        for reason, count in reasons.items()
    ]


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


def _cut(tokens: dict[str, tuple[np.ndarray, np.ndarray]], rows: DatasetDict) -> list[Finding]:
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
    parts = _block_numbers(rows)
    found = []
    for split, blocks in parts.items():
        first = np.unique(blocks, return_index=True)[1]
        again = np.setdiff1d(np.arange(len(blocks)), first)
        if len(again):
            mend = "they count double; tl-nlp check RECIPE --fix DIR writes a copy without them"
            message = f"{len(again)} rows of {split} are equal or nearly equal to an earlier one"
            found.append(Finding("duplicates", "note", len(again), message, mend, _ids(rows[split], again)))
    for split, blocks in parts.items():
        if split == "train":
            continue
        leaked = np.flatnonzero(np.isin(blocks, parts["train"]))
        if len(leaked):
            message = f"{len(leaked)} rows of {split} are equal or nearly equal to training rows: scores on it flatter"
            mend = "data.overlap=drop takes them out of training"
            found.append(Finding("overlap", "error", len(leaked), message, mend, _ids(rows[split], leaked)))
    return [*found, *_contradictions(rows["train"], parts["train"])]


def _block_numbers(rows: DatasetDict) -> dict[str, np.ndarray]:
    """For each split a number for each row, equal over all splits where (text, pair) are equal or nearly so."""
    from datasets import concatenate_datasets

    names = [name for name in ("text", "pair") if all(name in split.column_names for split in rows.values())]
    everything = concatenate_datasets([split.select_columns(names) for split in rows.values()])
    numbers = block_numbers(everything.with_format("arrow")[:])
    ends = np.cumsum([len(split) for split in rows.values()])
    return dict(zip(rows, np.split(numbers, ends[:-1]), strict=True))


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
    if KEEP_TOGETHER not in rows["train"].column_names:
        return []
    known = set(rows["train"][KEEP_TOGETHER]) - {None, ""}
    found = []
    for split, theirs in rows.items():
        if split == "train" or KEEP_TOGETHER not in theirs.column_names:
            continue
        leaked = [place for place, value in enumerate(theirs[KEEP_TOGETHER]) if value in known]
        if leaked:
            message = f"{len(leaked)} rows of {split} share their value of data.keep_together with training rows"
            found.append(
                Finding("shared_group", "error", len(leaked), message, "data.overlap=drop", _ids(theirs, leaked))
            )
    return found


def _constant(rows: DatasetDict) -> list[Finding]:
    found = []
    for split, theirs in rows.items():
        first = theirs[0]["target"]
        if all(target == first for target in theirs["target"]):
            message = f"every row of {split} has the target {first!r}: scores on it tell nothing"
            found.append(Finding("one_class", "error", len(theirs), message, "split the rows another way"))
    return found


Named = dict[str, list[list[str]]]
"""For each split the labels of each of its rows."""


def _label_names(rows: DatasetDict, task: Task) -> Named:
    """{} where targets are no labels."""
    if task.head == "classify":
        return {split: [[target] for target in theirs["target"]] for split, theirs in rows.items()}
    if task.head != "multilabel":
        return {}
    names = task.outputs()
    return {
        split: [
            [name for name, is_there in zip(names, line, strict=True) if is_there]
            for line in task.labels_of({column: theirs[column][:] for column in ("id", "target")})
        ]
        for split, theirs in rows.items()
    }


def _labels(rows: DatasetDict, named: Named) -> list[Finding]:
    counts = Counter(label for theirs in named.values() for labels in theirs for label in labels)
    found = []
    for label, other in spellings(counts).items():
        examples = [
            rows[split][place]["id"]
            for split, theirs in named.items()
            for place, labels in enumerate(theirs)
            if label in labels
        ]
        message = f"the label {label!r} ({counts[label]} rows) may be {other!r} ({counts[other]} rows)"
        mend = f'data.values={{"{label}": "{other}"}} makes them one'
        found.append(Finding("label_spelling", "warning", counts[label], message, mend, examples[:_EXAMPLES]))
    return found


def spellings(counts: Counter[str]) -> dict[str, str]:
    """Labels that differ from a commoner one only by case, spaces or marks, or that are rare and misspell one."""
    from difflib import SequenceMatcher

    found: dict[str, str] = {}
    common = [label for label, _ in counts.most_common()]
    words = plain(common).to_pylist()
    for place, label in enumerate(common):
        for other, theirs in zip(common[:place], words, strict=False):
            ours = words[place]
            is_rare = counts[label] <= max(3, 0.05 * counts[other]) and min(len(ours), len(theirs)) > 3
            is_word = not any(letter.isdigit() for letter in ours + theirs)
            if ours == theirs != "" or (is_rare and is_word and SequenceMatcher(None, ours, theirs).ratio() > 0.8):
                found[label] = found.get(other, other)
                break
    return found


def _balance(named: Named) -> list[Finding]:
    found = []
    counts = Counter(label for labels in named["train"] for label in labels)
    most = max(counts.values(), default=0)
    for label, count in counts.items():
        if count < _FEW_ROWS or count < _RARE * most:
            severity: Severity = "warning" if count < _FEW_ROWS else "note"
            message = f"the label {label!r} has {count} training rows, the commonest one {most}"
            mend = "label more of it, or try training.class_weights=balanced"
            found.append(Finding("rare_label", severity, count, message, mend))
    scored = Counter(label for split, theirs in named.items() if split != "train" for one in theirs for label in one)
    for label in sorted(set(scored) - set(counts)):
        message = f"the label {label!r} is in {scored[label]} rows to be scored and in no training row"
        found.append(Finding("unseen_label", "warning", scored[label], message, "train on rows of it, or drop it"))
    return found


def _doubtful(rows: Dataset, task: Task, features: np.ndarray) -> list[Finding]:
    """Rows whose label or grade a linear model on frozen features doubts, the most doubtful first."""
    places = sampled(len(rows))
    targets = np.asarray(task.labels_of(columns_of(rows.select(places), (*COLUMNS, *task.columns))))
    if task.head == "regress":
        doubtful, what = doubtful_grades(features, targets), "grades"
    elif task.head == "multilabel":
        doubtful, what = _first_of([doubtful_labels(features, column.astype(int)) for column in targets.T]), "labels"
    else:
        doubtful, what = doubtful_labels(features, np.unique(targets, return_inverse=True)[1]), "labels"
    if not len(doubtful):
        return []
    message = f"{len(doubtful)} of {len(places)} training {what} looked at are doubtful, the first ones most"
    mend = "look at them; not all are wrong"
    return [Finding("doubtful_labels", "note", len(doubtful), message, mend, _ids(rows, places[doubtful]))]


def _first_of(ranked: list[np.ndarray]) -> np.ndarray:
    """Rows of several rankings in the order of their best place in any."""
    places = sorted((place, row) for rows in ranked for place, row in enumerate(rows.tolist()))
    return np.asarray(list(dict.fromkeys(row for _, row in places)), int)


def doubtful_grades(features: np.ndarray, grades: np.ndarray) -> np.ndarray:
    """Which rows have a grade far from what a ridge regression on `features` that has not seen them (five folds) gives,
    the farthest first.

    `grades` of shape (examples, traits), NaN where there is none. Far is over `_FAR` standard deviations of the
    trait's residuals, from their median absolute deviation, which outliers do not widen (Rousseeuw & Croux 1993).
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import KFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    distance = np.zeros(len(features))
    model = make_pipeline(StandardScaler(), RidgeCV(alphas=[10.0, 100.0, 1000.0, 10000.0]))
    for column in grades.T:
        rows = np.flatnonzero(~np.isnan(column))
        if len(rows) < _FEWEST_GRADES:
            continue
        folds = KFold(_N_FOLDS, shuffle=True, random_state=0)
        residuals = np.abs(column[rows] - cross_val_predict(model, features[rows], column[rows], cv=folds))
        deviation = 1.4826 * np.median(residuals)
        if deviation > 0:
            distance[rows] = np.maximum(distance[rows], residuals / deviation)
    order = np.argsort(-distance, kind="stable")
    return order[distance[order] > _FAR]


_N_FOLDS = 5
_FAR = 3.5  # of a normal distribution's rows 1 in 2,000 is farther
_FEWEST_GRADES = 50


def doubtful_labels(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Which rows may be mislabelled, the most doubtful first, by confident learning (Northcutt et al. 2021).

    Probabilities are those of a logistic regression on `features` that has not seen the row (five folds). Rows that
    reach a label's mean confidence are counted under it; from these counts follows how many rows of each label belong
    to each other one, and as many are taken as doubtful, those first for which the other label is ahead the most.
    Labels of fewer than five rows are left out: each fold needs one.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    kept = np.flatnonzero(np.bincount(labels)[labels] >= _N_FOLDS)
    names, labels = np.unique(labels[kept], return_inverse=True)
    if len(names) < 2:
        return np.empty(0, int)
    features, n_labels = features[kept], len(names)
    folds = StratifiedKFold(_N_FOLDS, shuffle=True, random_state=0)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
    probabilities = cross_val_predict(model, features, labels, cv=folds, method="predict_proba")
    own = probabilities[np.arange(len(labels)), labels]
    usual = np.asarray([own[labels == label].mean() for label in range(n_labels)])
    reached = np.where(probabilities >= usual, probabilities, -np.inf)
    is_sure, likely = np.isfinite(reached.max(axis=1)), reached.argmax(axis=1)
    lead = np.full(len(labels), -np.inf)  # of the other label over the given one, for the rows that are taken
    for label in range(n_labels):
        rows = np.flatnonzero(labels == label)
        counts = np.bincount(likely[rows][is_sure[rows]], minlength=n_labels)
        for other in np.flatnonzero(counts):
            if other == label:
                continue
            ahead = probabilities[rows, other] - own[rows]
            taken = np.argsort(-ahead, kind="stable")[: round(len(rows) * counts[other] / counts.sum())]
            lead[rows[taken]] = np.maximum(lead[rows[taken]], ahead[taken])
    order = np.argsort(-lead, kind="stable")
    return kept[order[lead[order] > 0]]


# ---- personal data and languages


_EMAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
_CARD = re.compile(r"\b(?:\d[ -]?){12,18}\d\b")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}\b")
_SSN = re.compile(r"\b(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}\b")


def _is_card(text: str) -> bool:
    """Luhn's check digit (ISO/IEC 7812)."""
    digits = [int(letter) for letter in text if letter.isdigit()]
    doubled = [digit * 2 - 9 * (digit > 4) for digit in digits[-2::-2]]
    return len(set(digits)) > 1 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _is_iban(text: str) -> bool:
    """The check digits of ISO 13616."""
    letters = text.replace(" ", "")
    return int("".join(str(int(letter, 36)) for letter in letters[4:] + letters[:4])) % 97 == 1


_PATTERNS: dict[str, tuple[re.Pattern[str], Callable[[str], bool]]] = {
    "e-mail address": (_EMAIL, lambda text: True),
    "bank account": (_IBAN, _is_iban),
    "card number": (_CARD, _is_card),
    "social security number": (_SSN, lambda text: True),
}


def personal_data(text: str) -> list[tuple[str, int, int]]:
    """What looks like personal data: its kind, and where it begins and ends."""
    found = [
        (kind, match.start(), match.end())
        for kind, (pattern, is_one) in _PATTERNS.items()
        for match in pattern.finditer(text)
        if is_one(match.group())
    ]
    if sum(letter.isdigit() for letter in text) >= 7:
        from phonenumbers import PhoneNumberMatcher

        inside = [(start, end) for _, start, end in found]
        found += [
            ("phone number", match.start, match.end)
            for match in PhoneNumberMatcher(text, "US")  # numbers of other countries are known by their +
            if not any(start < match.end and match.start < end for start, end in inside)
        ]
    return sorted(found, key=lambda one: one[1])


def _sample(rows: DatasetDict) -> list[tuple[str, str]]:
    """(id, text) of sampled rows of all splits."""
    sizes = [len(split) for split in rows.values()]
    chosen = np.split(sampled(sum(sizes)), np.searchsorted(sampled(sum(sizes)), np.cumsum(sizes)[:-1]))
    starts = np.cumsum([0, *sizes[:-1]])
    texts = []
    for split, places, start in zip(rows.values(), chosen, starts, strict=True):
        part = split[(places - start).tolist()]
        texts += list(zip(part["id"], part["text"], strict=True))
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
        words = text.split(maxsplit=200)[:200]
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


# ---- a cleaned copy


def write_cleaned(rows: DatasetDict, task: Task, folder: Path) -> dict[str, int]:
    """Writes each split to `folder`/SPLIT.jsonl without rejects, duplicates and rows that a test split has too, labels
    that differ by case or spelling made one, personal data masked. Returns how many rows each file has."""
    parts = _block_numbers(rows)
    columns = (*COLUMNS, *task.columns, KEEP_TOGETHER)
    is_labelled = task.head == "classify"
    counts = Counter(target for split in rows.values() for target in split["target"]) if is_labelled else Counter()
    spelling = spellings(counts)
    folder.mkdir(parents=True, exist_ok=True)
    sizes, taken = {}, set()
    for split in reversed(list(rows)):  # a row stays in the split that is scored
        kept = []
        for row, number in zip(rows[split], parts[split].tolist(), strict=True):
            if number in taken:
                continue
            taken.add(number)
            row = {name: row[name] for name in columns if row.get(name) is not None}
            row["text"] = _masked(row["text"])
            if isinstance(row.get("target"), str):
                row["target"] = spelling.get(row["target"], row["target"])
            kept.append(row)
        write_rows(folder / f"{split}.jsonl", kept)
        sizes[split] = len(kept)
    return dict(reversed(sizes.items()))


def _masked(text: str) -> str:
    for kind, start, end in reversed(personal_data(text)):
        text = f"{text[:start]}[{kind}]{text[end:]}"
    return text
