"""The one path from texts to predictions, for evaluate, predict and the page."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from tqdm import tqdm

from tl_nlp.batches import Columns, Encoded, budgeted, collate, tiled, window_lengths
from tl_nlp.errors import DataError, RunError
from tl_nlp.hub import local
from tl_nlp.onnx import Exported
from tl_nlp.recipe import Recipe, Task
from tl_nlp.rows import columns_of, select
from tl_nlp.run import Run, artifact_folder, is_export, read_recipe
from tl_nlp.types import COLUMNS, PassBudget, Prediction, as_json

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

    from tl_nlp.heads import Head

_CHUNK = 10_000  # rows that are encoded at once
_BAR_FROM = 200  # rows
# many texts are written at once, since a step of a few takes as long, and weights are read anew for each token written
_WRITING = PassBudget(8192, beside=2048)

_Item = TypeVar("_Item")


class Predictor:
    """Predictions of a model for a task. Made from a run or an export with `Predictor.load`, or from a model in memory:
    a model of torch, or `onnx.Exported`, which needs no torch."""

    def __init__(self, model: Any, tokenizer: Any, task: Task, precision: str = "auto", recipe: Recipe | None = None):
        self.model, self.tokenizer, self.task, self.precision, self.recipe = model, tokenizer, task, precision, recipe
        self.adapter: str | None = None  # of several on one model, the one that answers here
        self.pad_id = tokenizer.pad_token_id or 0

    @cached_property
    def head(self) -> Head:
        """What infers from a model of torch."""
        from tl_nlp.heads import head_of

        return head_of(self.task)

    @classmethod
    def load(cls, run: str | Path | Run, precision: str | None = None) -> Predictor:
        """The predictor of a run directory, of an artifact (its model/) or an export, or of owner/name on the Hub.

        It computes in the recipe's `training.precision`, or in the one that is given; an export as it was written.
        Raises RunError, CheckpointError, HubError.
        """
        folder = run.artifact if isinstance(run, Run) else artifact_folder(local(run))
        recipe = read_recipe(folder)
        if is_export(folder):
            exported = Exported.load(folder, recipe.task)
            return cls(exported, exported.tokenizer, recipe.task, recipe=recipe)
        from tl_nlp.artifact import load_trained
        from tl_nlp.hardware import best_device, is_half
        from tl_nlp.model import halved, placed

        model, tokenizer = load_trained(folder)
        device, precision = best_device(), precision or recipe.training.precision
        model = placed(halved(model) if is_half(precision, device) else model, device)
        return cls(model, tokenizer, recipe.task, precision, recipe)

    def beside(self, artifact: Path) -> Predictor:
        """The predictor of another adapter's artifact, on the model of this one: see `artifact.shared_base`."""
        from tl_nlp.artifact import load_beside

        recipe = read_recipe(artifact)
        self.adapter = self.adapter or "default"
        name = f"adapter-{len(self.model.peft_config)}"
        other = Predictor(
            self.model, load_beside(self.model, artifact, name), recipe.task, recipe.training.precision, recipe
        )
        other.adapter = name
        return other

    def __call__(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, **columns: list[Any]
    ) -> list[Prediction]:
        """A prediction for each text. `pairs` and further columns of the task (`low=[0, 0]`) go along with them.

        Raises DataError for an empty text.
        """
        if isinstance(texts, str):
            raise DataError("texts is a list of texts, not one text")
        values: dict[str, list[Any]] = {"id": [str(n) for n in range(len(texts))], "text": list(texts), **columns}
        if pairs is not None:
            values["pair"] = list(pairs)
        return self._predict(values)

    def predict(self, rows: Dataset) -> list[Prediction]:
        """A prediction for each row; memory stays flat."""
        predictions: list[Prediction] = []
        bar = tqdm(total=len(rows), desc="predicting", unit="row", file=sys.stderr, disable=len(rows) < _BAR_FROM)
        with bar:
            for start in range(0, len(rows), _CHUNK):
                chunk = rows.select(range(start, min(start + _CHUNK, len(rows))))
                predictions += self._predict(columns_of(chunk, _names(self.task)), bar)
        return predictions

    def predict_table(self, table: pa.Table) -> list[dict[str, Any]]:
        """A JSON object for each row of a raw table; columns have our names or the recipe's."""
        return [row for rows in self.stream([table]) for row in rows]

    def stream(self, tables: Iterable[pa.Table], n_rows: int = 0) -> Iterator[list[dict[str, Any]]]:
        """As `predict_table`, of raw tables that follow one another, in a memory that does not grow with their number:
        while one is answered the next is read and encoded. `n_rows` of all of them, for the progress bar.

        Raises DataError where a table comes that has an empty text or no column of texts.
        """
        if self.recipe is None:
            raise RunError("only a predictor loaded from a run knows the recipe's column names")
        tokenizer = copy.deepcopy(self.tokenizer)  # one cannot encode while another thread decodes with it
        encoded = ((values, self._encoded(values, tokenizer)) for values in rows_of(tables, self.recipe))
        bar = tqdm(total=n_rows, desc="predicting", unit="row", file=sys.stderr, disable=n_rows < _BAR_FROM)
        with bar:
            for values, columns in _ahead(encoded):
                predictions = self.task.decode(self.infer(columns, bar), values, self.tokenizer)
                yield [as_json(answer, row) for row, answer in zip(values["id"], predictions, strict=True)]

    def _predict(self, values: dict[str, list[Any]], bar: Any = None) -> list[Prediction]:
        _refuse_empty(values)
        if not values["text"]:
            return []
        return self.task.decode(self.infer(self._encoded(values, self.tokenizer), bar), values, self.tokenizer)

    def _encoded(self, values: dict[str, list[Any]], tokenizer: Any) -> Columns:
        return Columns(self.task.encode(values, tokenizer))

    def activate(self) -> None:
        """Switches the model to this predictor's adapter, where it has several."""
        if self.adapter is not None and self.model.active_adapter != self.adapter:
            self.model.set_adapter(self.adapter)

    def passes(self, lengths: Sequence[list[int]]) -> list[list[int]]:
        """The rows of each pass that infers for rows whose windows have so many tokens."""
        if self.task.head == "generate":
            return list(budgeted(lengths, _WRITING))
        if isinstance(self.model, Exported):
            return list(budgeted(lengths, self.model.pass_budget))
        from tl_nlp.hardware import pass_budget

        return list(budgeted(lengths, pass_budget(self.model)))

    def infer(self, encoded: Encoded, bar: Any = None) -> list[np.ndarray]:
        """What the head infers for each encoded row, in their order; each pass keeps within a token budget."""
        lengths = window_lengths(encoded)
        passes = self.passes(lengths)
        outputs: list[np.ndarray] = [np.empty(0)] * len(lengths)
        batches = ({name: values for name, values in encoded[rows].items() if name != "labels"} for rows in passes)
        with self._answering(len(passes)) as answers:
            for rows, found in zip(passes, answers(batches), strict=True):
                for row, output in zip(rows, found, strict=True):
                    outputs[row] = output
                if bar is not None:
                    bar.update(len(rows))
        return outputs

    @contextmanager
    def _answering(self, n_passes: int) -> Iterator[Callable[..., Iterator[Sequence[np.ndarray]]]]:
        """What maps the columns of so many passes to what is inferred for each, while nothing is learned."""
        if isinstance(self.model, Exported):
            with self.model.answering(n_passes) as answers:
                yield answers
            return
        from tl_nlp.first_token import first_token_alone
        from tl_nlp.hardware import in_passes, inferring

        self.activate()
        narrowed = nullcontext() if self.head.by_token else first_token_alone(self.model)
        with inferring(self.model, self.precision) as device, narrowed:

            def infer(columns: dict[str, list[Any]]) -> Sequence[np.ndarray]:
                rows, n_tokens = Columns(columns, columns.get("lengths")), self._n_tokens(columns)

                def of_some(places: list[int]) -> Sequence[np.ndarray]:
                    return self.head.infer(self.model, collate(rows[places], self.pad_id, device, n_tokens))

                return [output for found in in_passes([*range(len(rows))], of_some) for output in found]

            yield partial(map, infer)

    def _n_tokens(self, columns: dict[str, list[Any]]) -> int | None:
        """How many tokens the windows of a pass are padded to; None for what a head alone reads, which is padded to the
        longest."""
        name = "features" if "features" in columns else "input_ids"
        if name == "features" and not columns["n_above"][0]:
            return None
        longest = max(len(window) for windows in columns[name] for window in windows)
        return max(longest, min(tiled(longest), self.task.max_length))

    def refuse_export(self, what: str) -> None:
        """Raises RunError where the model is an export, which answers and does nothing else."""
        if isinstance(self.model, Exported):
            raise RunError(f"an export gives answers and has no {what}; name the run that it was made from")


def rows_of(tables: Iterable[pa.Table], recipe: Recipe) -> Iterator[dict[str, list[Any]]]:
    """The columns of raw tables that are predicted from, under our names; without ids rows are numbered from 0.

    Raises DataError for an empty text and where there is no column of texts.
    """
    n_before = 0
    for table in tables:
        rows = select(table, recipe.data, recipe.task.columns, n_before)
        n_before += len(table)
        values = columns_of(rows, _names(recipe.task))
        _refuse_empty(values)
        if values["text"]:
            yield values


def _names(task: Task) -> tuple[str, ...]:
    """The columns that are read."""
    return tuple(name for name in (*COLUMNS, *task.columns) if name != "target")


def _refuse_empty(values: dict[str, list[Any]]) -> None:
    for row, text in zip(values["id"], values["text"], strict=True):
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"row {row}: the text is empty; there is nothing to predict from")


def _ahead(items: Iterator[_Item]) -> Iterator[_Item]:
    """The items, each of which a thread of its own makes while the one before is used."""
    with ThreadPoolExecutor(1) as maker:
        coming = maker.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = maker.submit(next, items, None)
            yield item
