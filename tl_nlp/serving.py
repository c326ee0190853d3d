"""Runs that answer many people at once: models in memory, and one thread that answers what waits together."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from tl_nlp.errors import BusyError, DataError, NoRunError
from tl_nlp.onnx import Exported
from tl_nlp.prediction import Predictor
from tl_nlp.recipe import Recipe
from tl_nlp.run import artifact_folder, is_export, read_recipe
from tl_nlp.types import Prediction

MAX_CHARACTERS = 100_000
"""Of one text, and of its pair."""
MOST_TOGETHER = 64
"""Rows that are answered in one pass."""
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Row:
    """A text that somebody wants an answer for. Raises DataError for one that no answer can be made from."""

    text: str
    pair: str | None = None
    group: str | None = None

    def __post_init__(self) -> None:
        for name, value in {"text": self.text, "pair": self.pair or ""}.items():
            if len(value) > MAX_CHARACTERS:
                raise DataError(f"the {name} has {len(value):,} characters; at most {MAX_CHARACTERS:,} are read")
            if "\0" in value:
                raise DataError(f"the {name} holds a NUL character, which is no text")
        if not self.text.strip():
            raise DataError("the text is empty; there is nothing to predict from")


@dataclass
class _Asked:
    """Rows that wait for their answers from a predictor; or other work with a model, which is alone in its pass."""

    rows: Sequence[Row]
    predictor: Predictor | None = None
    work: Callable[[], Any] | None = None
    future: Future[Any] = field(default_factory=Future)

    def shares_pass_with(self, other: _Asked) -> bool:
        return self.predictor is not None and self.predictor is other.predictor and self.columns == other.columns

    @property
    def columns(self) -> tuple[bool, bool]:
        """Whether there are pairs and groups."""
        return any(row.pair is not None for row in self.rows), any(row.group is not None for row in self.rows)


@dataclass
class Counts:
    """What was done so far."""

    passes: int = 0
    rows: int = 0
    refused: int = 0


class Worker:
    """The one thread that computes with models, so that no two passes ever meet.

    What came while it was busy is answered together, up to `most_together` rows of one predictor: nobody waits for
    others to come, and many at once share a pass. At most `most_waiting` rows wait.
    """

    def __init__(self, most_together: int = MOST_TOGETHER, most_waiting: int = 64):
        self.most_together, self.most_waiting, self.counts = most_together, most_waiting, Counts()
        self._asked: deque[_Asked] = deque()
        self._n_rows = 0
        self._change = threading.Condition()
        self._is_open = True
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)
        self._thread.start()

    @property
    def n_waiting(self) -> int:
        """Rows that nothing has begun with."""
        return self._n_rows

    def predict(self, predictor: Predictor, rows: Sequence[Row]) -> Future[list[Prediction]]:
        """An answer for each row, to come. Raises BusyError where too many wait already."""
        return self._add(_Asked(rows, predictor))

    def do(self, work: Callable[[], _Answer]) -> Future[_Answer]:
        """What `work` returns, to come: for whatever else uses a model. Raises BusyError as `predict` does."""
        return self._add(_Asked((), work=work))

    def stream(self, predictor: Predictor, rows: Sequence[Row]) -> Iterator[Prediction]:
        """An answer for each of many rows; those of other people come in between, and it waits where they are many."""
        for start in range(0, len(rows), self.most_together):
            yield from self._add(_Asked(rows[start : start + self.most_together], predictor), is_patient=True).result()

    def close(self) -> None:
        """Ends the thread behind what it is at; what still waits is cancelled."""
        with self._change:
            self._is_open = False
            for one in self._asked:
                one.future.cancel()
            self._asked.clear()
            self._change.notify_all()
        self._thread.join()

    def _add(self, asked: _Asked, is_patient: bool = False) -> Future[Any]:
        n_rows = max(len(asked.rows), 1)
        with self._change:
            if is_patient:
                self._change.wait_for(lambda: self._has_room(n_rows) or not self._is_open)
            if not self._is_open or not self._has_room(n_rows):
                self.counts.refused += n_rows
                raise BusyError(f"{self._n_rows} texts wait already, which is the most; try again in a moment")
            self._asked.append(asked)
            self._n_rows += n_rows
            self._change.notify_all()
        return asked.future

    def _has_room(self, n_rows: int) -> bool:
        return not self._asked or self._n_rows + n_rows <= self.most_waiting

    def _run(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._asked or not self._is_open)
                if not self._asked:
                    return
                together = self._taken()
                self._change.notify_all()
            self._answer([one for one in together if one.future.set_running_or_notify_cancel()])

    def _taken(self) -> list[_Asked]:
        """Who waits longest, and the others that fit in the same pass."""
        first = self._asked.popleft()
        together, left, n_rows = [first], deque[_Asked](), max(len(first.rows), 1)
        for one in self._asked:
            if one.shares_pass_with(first) and n_rows + len(one.rows) <= self.most_together:
                together.append(one)
                n_rows += len(one.rows)
            else:
                left.append(one)
        self._asked = left
        self._n_rows -= n_rows
        return together

    def _answer(self, together: list[_Asked]) -> None:
        if not together:
            return
        try:
            results = [together[0].work()] if together[0].work else self._predicted(together)
        except Exception as error:
            if len(together) == 1:
                together[0].future.set_exception(error)
            else:  # one of them is to blame, and the others shall not suffer for it
                for one in together:
                    self._answer([one])
            return
        for one, result in zip(together, results, strict=True):
            one.future.set_result(result)

    def _predicted(self, together: list[_Asked]) -> list[list[Prediction]]:
        predictor, (has_pair, has_group) = together[0].predictor, together[0].columns
        assert predictor is not None
        rows = [row for one in together for row in one.rows]
        pairs = [row.pair or "" for row in rows] if has_pair else None
        answers = iter(predictor([row.text for row in rows], pairs, **_groups(rows) if has_group else {}))
        self.counts.passes += 1
        self.counts.rows += len(rows)
        return [list(islice(answers, len(one.rows))) for one in together]


def _groups(rows: Sequence[Row]) -> dict[str, list[str]]:
    return {"group": [row.group or "" for row in rows]}


@dataclass(frozen=True)
class Served:
    """A run that answers, under the name it is asked by."""

    name: str
    folder: Path
    predictor: Predictor

    @property
    def recipe(self) -> Recipe:
        assert self.predictor.recipe is not None, "a predictor loaded from a run knows its recipe"
        return self.predictor.recipe


class Service:
    """The runs that a page or an API answers from, by name, and the worker they share."""

    def __init__(self, folders: Sequence[Path], worker: Worker | None = None):
        self.worker = worker or Worker()
        self.served: dict[str, Served] = {}
        self._bases: dict[str, Predictor] = {}  # by what adapters can share
        self._loading = threading.Lock()
        for folder in folders:
            self._add(folder)

    def __getitem__(self, name: str | None) -> Served:
        """The run of a name; the first for None. Raises NoRunError."""
        if not self.served:
            raise NoRunError("no run is served here yet; train one first")
        if name is None:
            return next(iter(self.served.values()))
        if name not in self.served:
            raise NoRunError(f"no run {name!r} is served here; there are: {', '.join(self.served)}")
        return self.served[name]

    def add(self, folder: Path) -> Served:
        """Serves one more run, as one that was just trained; one that is served already stays as it is."""
        with self._loading:
            for one in self.served.values():
                if one.folder.resolve() == folder.resolve():
                    return one
            return self._add(folder)

    def _add(self, folder: Path) -> Served:
        predictor = self._loaded(folder)
        name = predictor.recipe.name if predictor.recipe else folder.name
        if name in self.served:
            name = f"{name} {folder.name}"
        # a new dict, so that who goes through the old one is not disturbed
        self.served = {**self.served, name: Served(name, folder, predictor)}
        return self.served[name]

    def _loaded(self, folder: Path) -> Predictor:
        """The predictor of a run or artifact. Adapters of PEFT on one checkpoint share it: it is in memory once, and
        the adapter is switched where another one answers."""
        artifact = artifact_folder(folder)
        if is_export(artifact):
            return Predictor.load(folder)
        from tl_nlp.artifact import shared_base

        key = shared_base(read_recipe(artifact))
        if key is not None and key in self._bases:  # which may be at work
            return self.worker.do(lambda: self._bases[key].beside(artifact)).result()
        predictor = Predictor.load(folder)
        if key is not None:
            self._bases[key] = predictor
        return predictor

    def predict(self, run: str | None, row: Row) -> Prediction:
        """One answer, waited for."""
        return self.worker.predict(self[run].predictor, [row]).result()[0]

    @property
    def megabytes(self) -> float:
        """What the weights of all runs take in memory (10^6 bytes); what is shared counts once."""
        return sum(weights_mb(model) for model in {id(p.model): p.model for p in self._predictors()}.values())

    @property
    def megabytes_apart(self) -> float:
        """What they would take if each had a checkpoint of its own: one adapter counts with all of its model."""
        return sum(weights_mb(one.model, one.adapter) for one in self._predictors())

    def _predictors(self) -> list[Predictor]:
        return [one.predictor for one in self.served.values()]


def weights_mb(model: Any, adapter: str | None = None) -> float:
    """MB (10^6 bytes) of a model's weights, of several adapters only one where it is named."""
    if isinstance(model, Exported):
        return model.n_bytes / 1e6
    others = [f".{name}." for name in getattr(model, "peft_config", {}) if adapter is not None and name != adapter]
    return sum(
        weight.numel() * weight.element_size() / 1e6
        for name, weight in model.named_parameters()
        if not any(other in name for other in others)
    )
