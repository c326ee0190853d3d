"""A folder of texts and of the labels people gave them."""

from __future__ import annotations

import json
import os
import re
import threading
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from itertools import chain, combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from tl_nlp.disk import writing
from tl_nlp.errors import DataError, RecipeError
from tl_nlp.labelling.agreement import Agreement, cohen_kappa
from tl_nlp.labelling.strategies import BY_EMBEDDINGS, BY_PROBABILITIES, STRATEGIES, order
from tl_nlp.metrics import accuracy
from tl_nlp.recipe import Recipe, Task
from tl_nlp.rows import columns_of, select
from tl_nlp.statistics import intervals
from tl_nlp.tables import MAX_CHARACTERS, as_text
from tl_nlp.types import COLUMNS, KEEP_TOGETHER, Label
from tl_nlp.writing import write_rows

if TYPE_CHECKING:
    from datasets import Dataset

    from tl_nlp.prediction import Predictor


class Example(NamedTuple):
    """A text that waits for a label."""

    id: str
    text: str
    pair: str | None


_NAME = re.compile(r"\w(?:[\w .-]{0,38}[\w.-])?")
_SETTINGS, _TEXTS, _ORDER, _LOG = "labelling.json", "texts.parquet", "order.json", "labels.jsonl"


class Labelling:
    """A folder of texts and the labels people gave them. Its texts and labels never change; the order may.

    labelling.json  the labels there are, and how many texts were left out
    texts.parquet   id, text, and pair, group and keep_together where the texts have them
    order.json      the rows in the order in which they are asked for
    labels.jsonl    a line for each label, skip and undo: who, when, of which text; only ever added to, and on disk
                    before the call returns

    A line that a crash has torn, or that says nothing of these texts, is passed over (`n_torn`). Sessions of
    one process share one object, which a lock guards; no second process may write.
    """

    def __init__(self, folder: Path):
        """Opens what `create` made. Raises DataError."""
        self.folder = Path(folder)
        self._lock = threading.RLock()
        try:
            self.labels: tuple[str, ...] = tuple(json.loads((self.folder / _SETTINGS).read_text("utf-8"))["labels"])
            self._texts = pyarrow.parquet.read_table(self.folder / _TEXTS)
            self._order: list[int] = json.loads((self.folder / _ORDER).read_text("utf-8"))["rows"]
        except (OSError, ValueError, KeyError, pa.ArrowInvalid) as error:
            raise DataError(
                f"{folder} holds no labelling ({type(error).__name__}); Labelling.create makes one"
            ) from None
        self._ids: list[str] = self._texts["id"].to_pylist()
        self._row_of = {row_id: row for row, row_id in enumerate(self._ids)}
        self._acts: dict[str, list[tuple[str, str | None]]] = {}  # of each labeller, without what was undone
        self.n_torn = 0
        self._read_log()

    @classmethod
    def create(cls, folder: Path, table: pa.Table, recipe: Recipe) -> Labelling:
        """A new folder of the texts of a raw table, to be labelled for a recipe, in random order. Columns have our
        names or the recipe's. Texts that are empty, broken or there already are left out, and counted in
        labelling.json.

        Raises RecipeError for a task without labels to choose one from, DataError for a folder that is not empty, for
        two rows of one id, and where no text is left.
        """
        labels = labels_of(recipe.task)
        folder = Path(folder)
        if folder.exists() and any(folder.iterdir()):
            raise DataError(f"{folder} is not empty; Labelling({str(folder)!r}) opens a labelling that is there")
        rows = select(table, recipe.data, recipe.task.columns).data.table
        names = [name for name in ("id", "text", "pair", "group") if name in rows.column_names]
        texts = pa.table({name: rows[name] for name in names})
        for column in (KEEP_TOGETHER, recipe.data.keep_together):
            if column in table.column_names and KEEP_TOGETHER not in texts.column_names:
                texts = texts.append_column(KEEP_TOGETHER, as_text(table[column]))
        repeated = [row_id for row_id, count in Counter(texts["id"].to_pylist()).items() if count > 1]
        if repeated:
            raise DataError(f"{len(repeated)} ids are there more than once, as {repeated[0]!r}; a label is for one id")
        first: dict[tuple[str, str], int] = {}
        for row, key in enumerate(keys_of(texts)):
            first.setdefault(key, row)
        kept = [row for (text, _), row in first.items() if _is_usable(text)]
        if not kept:
            raise DataError(f"none of the {len(texts)} rows has a text to label")
        texts = texts.take(kept)
        with writing(folder) as partial:
            pyarrow.parquet.write_table(texts, partial / _TEXTS)
            _write_json(partial / _ORDER, _ordered("random", order("random", len(texts))))
            (partial / _LOG).touch()
            _write_json(partial / _SETTINGS, {"format": 1, "labels": labels, "left_out": len(table) - len(texts)})
        return cls(folder)

    def __len__(self) -> int:
        return len(self._ids)

    # ---- labels in

    def next(self, labeller: str, fresh: bool = False) -> Example | None:
        """The first text in order that the labeller has not labelled; `fresh`: nor anybody else. What was skipped comes
        again when nothing else is left, the longest ago first. None where all is labelled."""
        with self._lock:
            own = self._current(checked_name(labeller))
            taken = self.given() if fresh else {}
            skipped = [text_id for text_id, label in own.items() if label is None]
            waiting = (self._ids[row] for row in self._order)
            for text_id in chain((one for one in waiting if one not in own), skipped):
                if text_id not in taken:
                    return self._example(text_id)
            return None

    def label(self, labeller: str, text_id: str, label: str) -> None:
        """Writes down a label; a later one of the same labeller for the same text takes its place. Raises DataError."""
        if label not in self.labels:
            raise DataError(f"no label {label!r}; there are: {', '.join(self.labels)}")
        self._act("label", labeller, text_id, label)

    def skip(self, labeller: str, text_id: str) -> None:
        """Puts a text last for the labeller; a label they gave it no longer counts. Raises DataError."""
        self._act("skip", labeller, text_id, None)

    def undo(self, labeller: str) -> Example | None:
        """Takes the labeller's last label or skip back; the text it was of, or None where there was none."""
        with self._lock:
            acts = self._acts.get(checked_name(labeller), [])
            if not acts:
                return None
            text_id = acts[-1][0]
            self._write_log({"act": "undo", "labeller": labeller, "id": text_id})
            acts.pop()
            return self._example(text_id)

    def _act(self, act: str, labeller: str, text_id: str, label: str | None) -> None:
        with self._lock:
            checked_name(labeller)
            if text_id not in self._row_of:
                raise DataError(f"no text {text_id!r} is here to be labelled")
            line = {"act": act, "labeller": labeller, "id": text_id}
            self._write_log(line if label is None else line | {"label": label})
            self._acts.setdefault(labeller, []).append((text_id, label))

    def _write_log(self, line: dict[str, str]) -> None:
        line["when"] = datetime.now(UTC).isoformat(timespec="seconds")
        path = self.folder / _LOG
        n_bytes = path.stat().st_size if path.is_file() else 0
        try:
            with path.open("ab+") as file:
                if n_bytes:
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":  # torn by a crash: this one is a line of its own
                        file.write(b"\n")
                file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            with suppress(OSError):
                os.truncate(path, n_bytes)
            raise DataError(f"{path} cannot be written, so nothing was recorded: {error.strerror}") from None

    def _read_log(self) -> None:
        """Goes through labels.jsonl once."""
        path = self.folder / _LOG
        content = path.read_bytes() if path.is_file() else b""
        for raw in content.splitlines():
            try:
                line = json.loads(raw)
                act, labeller = line["act"], checked_name(line["labeller"])
                label = line["label"] if act == "label" else None
                if act == "undo":
                    self._acts.get(labeller, []).pop()
                elif line["id"] in self._row_of and (act == "skip" or label in self.labels):
                    self._acts.setdefault(labeller, []).append((line["id"], label))
                else:
                    self.n_torn += 1
            except (ValueError, KeyError, TypeError, IndexError):
                self.n_torn += 1

    # ---- labels out

    @property
    def labellers(self) -> list[str]:
        """Those who have labelled or skipped a text, in the order in which they came."""
        with self._lock:
            return [name for name, acts in self._acts.items() if acts]

    def labels_by(self, labeller: str) -> dict[str, str]:
        """The labels a labeller has given, by id, the last one last."""
        with self._lock:
            return {row: label for row, label in self._current(labeller).items() if label is not None}

    def _current(self, labeller: str) -> dict[str, str | None]:
        """For each text the labeller has seen the last label, None for a skip; in the order of these."""
        current: dict[str, str | None] = {}
        for text_id, label in self._acts.get(labeller, []):
            current.pop(text_id, None)
            current[text_id] = label
        return current

    def given(self) -> dict[str, dict[str, str]]:
        """For each labelled text, by id, the label of each labeller."""
        found: dict[str, dict[str, str]] = {}
        with self._lock:
            for labeller in self.labellers:
                for text_id, label in self.labels_by(labeller).items():
                    found.setdefault(text_id, {})[labeller] = label
        return found

    def agreement(self) -> list[Agreement]:
        """The agreement of each two labellers who have labelled some text both."""
        given, found = self.given().values(), []
        for one, other in combinations(self.labellers, 2):
            both = [(labels[one], labels[other]) for labels in given if one in labels and other in labels]
            if both:
                mine, theirs = zip(*both, strict=True)
                told = intervals({"equal": accuracy(mine, theirs), "kappa": cohen_kappa(mine, theirs)}, len(both))
                found.append(Agreement((one, other), len(both), told["equal"], told["kappa"]))
        return found

    def disagreements(self) -> list[dict[str, Any]]:
        """The rows of `export` whose labellers are not of one mind."""
        return [row for row in self.rows() if not row["agreed"]]

    def rows(self) -> list[dict[str, Any]]:
        """A row for each labelled text, in the order of the texts: its columns, `target` (the label that most labellers
        gave, "" for a draw), `agreed` (whether all gave it), and what each gave."""
        given, found = self.given(), []
        everybody = [name for name in self.labellers if any(name in labels for labels in given.values())]
        rows = sorted(self._row_of[text_id] for text_id in given)
        for text in self._texts.take(pa.array(rows, pa.int64())).to_pylist():
            labels = given[text["id"]]
            (first, count), *more = Counter(labels.values()).most_common()
            is_draw = bool(more) and more[0][1] == count
            target = {"target": "" if is_draw else first, "agreed": not more}
            found.append({**text, **target, **{f"label by {name}": labels.get(name, "") for name in everybody}})
        return found

    def export(self, path: Path) -> int:
        """Writes `rows` as .csv, where no cell is run as a formula, or .jsonl, and says how many. Raises DataError for
        another suffix, and where nothing is labelled."""
        rows = self.rows()
        if not rows:
            raise DataError("no text has a label yet, so there is nothing to write")
        write_rows(Path(path), rows)
        return len(rows)

    # ---- the order

    def reorder(
        self,
        predictor: Predictor | None,
        strategy: str,
        n: int = 100,
        seed: int = 0,
        trained: Dataset | None = None,
    ) -> None:
        """Puts the texts nobody has labelled in the order of a strategy, as a model sees them; labelled ones stand in
        front of them, for a second labeller to answer. `trained`: rows the model learned from, of which k_center keeps
        away too. Only random needs no predictor.

        Raises RecipeError for a strategy that is none, DataError for a model with other labels.
        """
        given = set(self.given())
        labelled = [row for row in self._order if self._ids[row] in given]
        rest = [row for row in self._order if self._ids[row] not in given]
        values: dict[str, np.ndarray | None] = {}
        if strategy != "random" and strategy in STRATEGIES:
            if predictor is None or tuple(predictor.task.outputs()) != self.labels:
                theirs = "none" if predictor is None else ", ".join(predictor.task.outputs())
                raise DataError(f"the texts are labelled with {', '.join(self.labels)}, and the model's are {theirs}")
            values = _seen(predictor, strategy, self._dataset(rest), [self._dataset(labelled), trained])
        ordered = labelled + [rest[place] for place in order(strategy, len(rest), n=n, seed=seed, **values)]
        with self._lock:
            _write_json(self.folder / _ORDER, _ordered(strategy, ordered))
            self._order = ordered

    def _dataset(self, rows: list[int]) -> Dataset:
        from datasets import Dataset
        from datasets.table import InMemoryTable

        return Dataset(InMemoryTable(self._texts.take(pa.array(rows, pa.int64()))))

    def _example(self, text_id: str) -> Example:
        row = self._row_of[text_id]
        pair = self._texts["pair"][row].as_py() if "pair" in self._texts.column_names else None
        return Example(text_id, self._texts["text"][row].as_py(), pair)


def labels_of(task: Task) -> tuple[str, ...]:
    """The labels of a task that gives each text one of them. Raises RecipeError for other tasks."""
    if task.kind != "classification":
        raise RecipeError(f"people label with one of several labels here; task {task.kind} asks for something else")
    if not task.outputs():
        raise RecipeError("names no labels to choose from; set them, or use the recipe of a run", "task.labels")
    return tuple(task.outputs())


def checked_name(labeller: str) -> str:
    """A labeller's name as it is. Raises DataError for one that cannot be a column's."""
    if not _NAME.fullmatch(labeller):
        raise DataError(
            "a labeller's name is 1 to 40 letters, digits, spaces, points and hyphens, the first a letter or a digit"
        )
    return labeller


def keys_of(table: pa.Table) -> list[tuple[str, str]]:
    """(text, pair) of each row, the pair "" where there is none."""
    pairs = pc.fill_null(table["pair"], "").to_pylist() if "pair" in table.column_names else [""] * len(table)
    return list(zip(table["text"].to_pylist(), pairs, strict=True))


def _is_usable(text: str) -> bool:
    return bool(text.strip()) and "\0" not in text and len(text) <= MAX_CHARACTERS


def _seen(predictor: Predictor, strategy: str, rows: Dataset, known: list[Dataset | None]) -> dict[str, Any]:
    """What a strategy reads of rows, and of those whose label is known: the model's probabilities, and the mean of its
    backbone's last states at unit length."""
    from datasets import Dataset

    from tl_nlp.families import without_peft
    from tl_nlp.features import embeddings

    task = predictor.task

    def embedded(some: Dataset) -> np.ndarray:
        predictor.refuse_export("states to order texts by")
        values = columns_of(some, tuple(name for name in (*COLUMNS, *task.columns) if name != "target"))
        encoded = Dataset.from_dict(task.encode(values, predictor.tokenizer))
        model = without_peft(predictor.model)
        states = embeddings(model, encoded, predictor.pad_id, predictor.precision, "features of texts")
        return states / np.linalg.norm(states, axis=1, keepdims=True)

    seen: dict[str, Any] = {}
    if strategy in BY_PROBABILITIES and len(rows):
        answers = [one.probabilities for one in predictor.predict(rows) if isinstance(one, Label)]
        seen["probabilities"] = np.asarray([list(one.values()) for one in answers])
    if strategy in BY_EMBEDDINGS and len(rows):
        seen["embeddings"] = embedded(rows)
    if strategy == "k_center":
        parts = [embedded(some) for some in known if some is not None and len(some)]
        seen["labelled"] = np.concatenate(parts) if parts else None
    return seen


def _ordered(strategy: str, rows: Any) -> dict[str, Any]:
    return {"strategy": strategy, "rows": [int(row) for row in rows]}


def _write_json(path: Path, values: dict[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(values, file, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
