"""Scores of a run, always of what was saved: the artifact is loaded from disk."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_nlp.errors import DataError
from tl_nlp.prediction import Predictor
from tl_nlp.rows import columns_of, fingerprint, select
from tl_nlp.run import Run
from tl_nlp.tables import read_table
from tl_nlp.types import COLUMNS, Prediction

if TYPE_CHECKING:
    from datasets import Dataset


def evaluate(run: Run | str | Path, split: str = "test", file: str | Path | None = None) -> dict[str, Any]:
    """Rows and metrics of a split of the run's data, or of a file: one split object of results.json.

    Raises DataError for a split or a column that is not there.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    recipe = run.recipe()
    if file is not None:
        rows = select(read_table(Path(file)), recipe.data, recipe.task.columns)
        if "target" not in rows.column_names:
            raise DataError(
                f"{file} has no column 'target' or {recipe.data.target!r} to score against; tl-nlp predict needs none"
            )
    else:
        splits = recipe.data.load()
        if split not in splits:
            raise DataError(f"no split {split!r}; there are: {', '.join(splits)}")
        rows = splits[split]
        known = run.data().get("splits", {}).get(split, {}).get("fingerprint")
        if known not in (None, fingerprint(rows)):
            raise DataError(
                f"the {split} rows are not those {run.folder} was made with, and some may have been trained on; "
                "put the data back, or score rows of their own with --file"
            )
    return score(Predictor.load(run), rows)[0]


def score(predictor: Predictor, rows: Dataset) -> tuple[dict[str, Any], list[Prediction]]:
    """(split object of results.json, the predictions it scores)."""
    predictions = predictor.predict(rows)
    references = columns_of(rows, (*COLUMNS, *predictor.task.columns))
    metrics = predictor.task.score(predictions, references)
    return {"rows": len(rows), "metrics": {name: {"value": value} for name, value in metrics.items()}}, predictions


def write_predictions(path: Path, rows: Dataset, predictions: list[Prediction]) -> None:
    """A parquet file of id, text (and pair), reference and prediction, and what else the predictions carry."""
    import pyarrow as pa
    import pyarrow.parquet

    table: dict[str, Any] = columns_of(rows, ("id", "text", "pair"))
    if "target" in rows.column_names:
        table["reference"] = [target if isinstance(target, str) else json.dumps(target) for target in rows["target"]]
    parts = [asdict(prediction) for prediction in predictions]
    main, *more = parts[0]
    table["prediction"] = [part[main] for part in parts]
    for name in more:
        if parts[0][name] is not None:
            table[name] = [part[name] for part in parts]
    pyarrow.parquet.write_table(pa.table(table), path)
