"""Scores of a run, always of what was saved: the artifact is loaded from disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tl_nlp import similarity
from tl_nlp.analysis import analyse
from tl_nlp.baselines import TRANSFER
from tl_nlp.errors import DataError, RunError
from tl_nlp.hub import local
from tl_nlp.metrics import Measured
from tl_nlp.prediction import Predictor
from tl_nlp.rejects import Rejects
from tl_nlp.rows import all_references, clusters, columns_of, fingerprint, hashes, resolved, select
from tl_nlp.run import Run, artifact_folder, data_of, read_recipe
from tl_nlp.statistics import Difference, difference, intervals
from tl_nlp.tables import read_table
from tl_nlp.types import COLUMNS, KEEP_TOGETHER, Label, Labels, Prediction, Scores, Text

if TYPE_CHECKING:
    from datasets import Dataset

    from tl_nlp.recipe import Recipe, Rows, Task


def evaluate(run: Run | str | Path, split: str = "test", file: str | Path | None = None) -> dict[str, Any]:
    """Rows and metrics of a split of the run's data, or of a file: one split object of results.json.

    Where rows of the file were trained on, it says so under `seen_in_training`; its lines that could not be read are
    under `rejects`. Raises DataError for a split or a
    column that is not there.
    """
    folder = run.folder if isinstance(run, Run) else local(run)
    made_here = Run.find(folder)
    artifact = artifact_folder(folder)
    recipe = read_recipe(artifact)
    rejects = Rejects()
    if file is not None:
        rows = select(read_table(Path(file), rejects), recipe.data, recipe.task.columns)
        rejects.refuse_many(recipe.data.max_rejects)
        if "target" not in rows.column_names:
            raise DataError(
                f"{file} has no column 'target' or {recipe.data.target!r} to score against; tl-nlp predict needs none"
            )
    else:
        (rows,) = own_rows(folder, recipe, split)
    predictor = Predictor.load(artifact)
    found = score(predictor.task, predictor.predict(rows), references(predictor.task, rows))
    if rejects:
        found["rejects"] = [str(one) for one in rejects]
    if file is not None:
        seen = np.isin(hashes(rows), made_here.trained_hashes() if made_here else np.empty(0, np.uint64))
        if seen.any():
            places = np.flatnonzero(seen)
            examples = rows[places[:20].tolist()]["id"]
            found["seen_in_training"] = {"rows": len(places), "share": float(seen.mean()), "examples": examples}
    return found


def own_rows(folder: Path, recipe: Recipe, *names: str) -> list[Dataset]:
    """The rows of splits of the data that a run or an artifact was made with. Raises DataError for others."""
    _, splits = resolved(recipe)
    for name in names:
        if name not in splits:
            raise DataError(f"no split {name!r}; there are: {', '.join(splits)}")
        known = data_of(folder).get("splits", {}).get(name, {}).get("fingerprint")
        if known not in (None, fingerprint(splits[name])):
            raise DataError(
                f"the {name} rows are not those {folder} was made with, and some may have been trained on; "
                "put the data back, or score rows of their own with --file"
            )
    return [splits[name] for name in names]


def references(task: Task, rows: Dataset) -> Rows:
    """The columns of rows that scoring needs."""
    return columns_of(rows, (*COLUMNS, *task.columns, KEEP_TOGETHER))


def score(task: Task, predictions: list[Prediction], rows: Rows) -> dict[str, Any]:
    """The split object of results.json: rows, metrics with their intervals, and what lies behind them."""
    measured = task.score(predictions, rows)
    texts = [one.text for one in predictions if isinstance(one, Text)]
    if texts and similarity.is_there():
        measured["similarity"] = similarity.similarity(all_references(rows), texts)
    metrics = intervals(measured, len(predictions), clusters(rows))
    caution = task.caution(measured)
    told = {} if caution is None else {"caution": caution}
    return {"rows": len(predictions), "metrics": metrics, **told, **analyse(task, predictions, rows)}


def compared(task: Task, ours: list[Prediction], theirs: list[Prediction], rows: Rows) -> Difference:
    """How far one list of predictions is above another by the main metric, with the interval of the difference."""
    one, other = (task.score(predictions, rows)[task.main_metric] for predictions in (ours, theirs))
    assert isinstance(one, Measured) and isinstance(other, Measured), "metrics know their resamples"
    return difference(one, other, len(ours), clusters(rows))


def judged(task: Task, ours: list[Prediction], answers: dict[str, list[Prediction]], rows: Rows) -> dict[str, Any]:
    """`baselines`, `verdict` and `negative_transfer` of results.json: the model's answers against the baselines'.

    The verdict is against the baseline with the best main metric. The transfer is called negative where the model is
    not better than the frozen features or TF-IDF.
    """
    n_rows, by_cluster, name = len(ours), clusters(rows), task.main_metric
    baselines: dict[str, Any] = {}
    for other, theirs in answers.items():
        own = {metric: value for metric, value in task.score(theirs, rows).items() if not metric.startswith("human_")}
        baselines[other] = intervals(own, n_rows, by_cluster)
    if not baselines:
        return {"baselines": {}}
    gaps = {other: compared(task, ours, theirs, rows) for other, theirs in answers.items()}
    for other, gap in gaps.items():
        baselines[other]["difference"] = {**asdict(gap), "metric": name, "verdict": gap.verdict}
    best = max(baselines, key=lambda other: baselines[other][name]["value"])
    relation = {"better": "better than", "worse": "worse than", "undecided": "undecided against"}[gaps[best].verdict]
    harmful = [
        f"{other} ({gaps[other]} {name})" for other in TRANSFER if other in gaps and gaps[other].verdict != "better"
    ]
    return {
        "baselines": baselines,
        "verdict": f"{relation} the best baseline ({best}): {gaps[best]} {name}",
        "negative_transfer": f"fine-tuning is not shown to be better than {' and '.join(harmful)}" if harmful else None,
    }


def compare(runs: Sequence[Run | str | Path], split: str = "test") -> dict[str, Any]:
    """The main metric of each run on the rows of a split, and how far the first is above each of the others.

    What the Hub has of a run answers the rows of its own data anew. Raises DataError where the runs were not scored on
    the same rows, or by another task.
    """
    folders = [run.folder if isinstance(run, Run) else local(run) for run in runs]
    task, made, rows = _answered(folders[0], split)
    place_of = {row: place for place, row in enumerate(rows["id"])}
    answers = [made]
    for folder in folders[1:]:
        other, theirs, their_rows = _answered(folder, split)
        if other.kind != task.kind or other.outputs() != task.outputs():
            raise DataError(f"{folder} answers another question ({other.kind}) than {folders[0]} ({task.kind})")
        same = sorted(zip(their_rows["id"], their_rows["text"], map(str, their_rows["target"]), strict=True))
        if same != sorted(zip(rows["id"], rows["text"], map(str, rows["target"]), strict=True)):
            raise DataError(
                f"{folder} was scored on other {split} rows than {folders[0]}; train both with the same data "
                "and data.seed, or evaluate both on one --file"
            )
        in_order: list[Prediction] = list(made)
        for prediction, row in zip(theirs, their_rows["id"], strict=True):
            in_order[place_of[row]] = prediction
        answers.append(in_order)
    names = [str(run.folder if isinstance(run, Run) else run) for run in runs]
    name, by_cluster = task.main_metric, clusters(rows)
    found = [intervals({name: task.score(one, rows)[name]}, len(one), by_cluster) for one in answers]
    gaps = [compared(task, answers[0], one, rows) for one in answers[1:]]
    return {
        "metric": name,
        "split": split,
        "rows": len(made),
        "runs": [{"run": run, **one} for run, one in zip(names, found, strict=True)],
        "differences": [
            {"against": name, "verdict": gap.verdict, **asdict(gap)} for name, gap in zip(names[1:], gaps, strict=True)
        ],
    }


def _answered(folder: Path, split: str) -> tuple[Task, list[Prediction], Rows]:
    """The task of a run, and its predictions for a split: those it has kept, else made now."""
    artifact = artifact_folder(folder)
    recipe, run = read_recipe(artifact), Run.find(folder)
    if run is not None:
        return recipe.task, *read_predictions(run.predictions_file(split), recipe.task)
    (rows,) = own_rows(folder, recipe, split)
    return recipe.task, Predictor.load(artifact).predict(rows), references(recipe.task, rows)


def write_predictions(path: Path, rows: Rows, predictions: list[Prediction]) -> None:
    """A parquet file of the rows' columns (target as `reference`), `prediction` and what else predictions carry."""
    import pyarrow as pa
    import pyarrow.parquet

    table: dict[str, Any] = {name: values for name, values in rows.items() if name != "target"}
    if "target" in rows:
        table["reference"] = [target if isinstance(target, str) else json.dumps(target) for target in rows["target"]]
    parts = [asdict(prediction) for prediction in predictions]
    main, *more = parts[0]
    table["prediction"] = [part[main] for part in parts]
    for name in more:
        if parts[0][name] is not None:
            table[f"predicted_{name}" if name in table else name] = [part[name] for part in parts]
    pyarrow.parquet.write_table(pa.table(table), path)


def read_predictions(path: Path, task: Task) -> tuple[list[Prediction], Rows]:
    """What `write_predictions` wrote: predictions and the rows they are for. Raises RunError."""
    import pyarrow as pa
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path).to_pydict()
        given = table.pop("prediction")
        target = table.pop("reference")
    except (OSError, KeyError, pa.ArrowException) as error:
        raise RunError(f"{path} holds no predictions: {error}") from None
    if task.head in ("multilabel", "regress"):
        table["target"] = [_from_json(value) for value in target]
    else:
        table["target"] = target
    shares = table.pop("probabilities", None)
    chosen = table.pop("predicted_sentences", None) or table.pop("sentences", None)
    written = [chosen, *(table.pop(name, None) for name in ("invented", "unfinished"))]
    scored = [table.pop(name, None) for name in ("grades", "margins", "unsure")]
    made: list[Prediction] = []
    for place, value in enumerate(given):
        if task.head == "classify":
            made.append(Label(value, shares[place]))
        elif task.head == "multilabel":
            made.append(Labels(value, shares[place]))
        elif task.head == "regress":
            made.append(Scores(value, *(more[place] if more else None for more in scored)))
        else:
            made.append(Text(value, *(more[place] if more else None for more in written)))
    return made, table


def _from_json(value: str) -> Any:
    try:
        found = json.loads(value)
    except ValueError:
        return value
    return found if isinstance(found, dict | list) else value
