"""A run and new labels → the recipe of the next run."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from tl_nlp.data.files import Files
from tl_nlp.disk import writing
from tl_nlp.errors import DataError, RecipeError
from tl_nlp.labelling.store import keys_of, labels_of
from tl_nlp.recipe import Recipe, Task
from tl_nlp.rows import columns_of, fingerprint, resolved, select
from tl_nlp.run import Run
from tl_nlp.splits import block_numbers, with_twins
from tl_nlp.tables import as_text, read_table
from tl_nlp.types import COLUMNS, KEEP_TOGETHER, TWINS


class Retraining(NamedTuple):
    """A recipe with new labels among its training rows: how many rows are new, how many were there and have another
    label now, and how many were left out, because validation or a test has the text or because they have no label."""

    recipe: Recipe
    n_new: int
    n_relabelled: int
    n_held_out: int
    n_unlabelled: int


def retrain_recipe(run: Run, labels_file: Path) -> Recipe:
    """The recipe of `retraining`."""
    return retraining(run, labels_file).recipe


def retraining(run: Run, labels_file: Path) -> Retraining:
    """The run's recipe with the rows of a file (as `Labelling.export` writes it) added to its training rows.

    It begins from the checkpoint that the run began from, and learns old and new rows together: going on from trained
    weights generalises worse (Ash & Adams 2020, https://arxiv.org/abs/1910.08475). Validation and tests are the run's
    own rows, so that scores compare; what of the file is a duplicate of one of theirs, or shares its keep_together, is
    left out. A text that is trained on already takes the new label, so the same file may grow and be given again.

    Whatever kind of data the run had, the new recipe reads a file of each split. They are written beside `labels_file`,
    in a folder named after their content: rows of a run stay what they are. Raises RecipeError for another task and for
    folds, DataError for a file without usable labels and for a run whose data has changed.
    """
    recipe = run.recipe()
    labels_of(recipe.task)
    if recipe.data.folds is not None:
        raise RecipeError("makes of every row a test row once, which new labels would change", "data.folds")
    task, splits = resolved(recipe)
    for split, known in run.data().get("splits", {}).items():
        if split not in splits or known["fingerprint"] != fingerprint(splits[split]):
            raise DataError(
                f"the {split} rows are not those {run.folder} was made with, so scores would not compare; "
                "put the data back, or train anew from the recipe"
            )
    labels_file = Path(labels_file)
    tables = {split: rows.with_format("arrow")[:].drop_columns(TWINS) for split, rows in splits.items()}
    found, n_unlabelled = _labelled(labels_file, recipe, task)
    new = _as_rows(found, tables["train"].schema, labels_file)
    is_held_out = _is_held_out(new, [table for split, table in tables.items() if split != "train"], recipe)
    new = new.filter(pa.array(~is_held_out))
    if not len(new):
        raise DataError(f"{labels_file}: validation and tests have all of its {len(is_held_out)} labelled texts")
    targets = dict(zip(keys_of(new), new["target"].to_pylist(), strict=True))
    before = list(zip(keys_of(tables["train"]), tables["train"]["target"].to_pylist(), strict=True))
    is_again = np.asarray([key in targets for key, _ in before])
    n_relabelled = len({key for key, target in before if key in targets and targets[key] != target})
    n_again = len({key for key, _ in before if key in targets})
    tables["train"] = tables["train"].filter(pa.array(~is_again))
    taken = {row_id for table in tables.values() for row_id in table["id"].to_pylist()}
    tables["train"] = pa.concat_tables([tables["train"], _with_own_ids(new, taken)])
    data = _written(tables, labels_file.resolve().parent, recipe)
    renewed = recipe.model_copy(update={"data": data, "task": task})
    return Retraining(renewed, len(new) - n_again, n_relabelled, int(is_held_out.sum()), n_unlabelled)


def _labelled(path: Path, recipe: Recipe, task: Task) -> tuple[pa.Table, int]:
    """The rows of the file that have a label, each (text, pair) once, and how many have none."""
    table = read_table(path)
    if path.suffix == ".csv":  # a cell that a spreadsheet would run was written with an apostrophe before it
        for place, name in enumerate(table.column_names):
            table = table.set_column(place, name, pc.replace_substring_regex(table[name], r"^'([=+\-@\t\r])", r"\1"))
    names = recipe.data.model_copy(update={"values": {}})  # labels are written as the task has them
    rows = select(table, names, task.columns)
    if "target" not in rows.column_names:
        raise DataError(f"{path} has no column 'target' with the labels; Labelling.export writes such a file")
    for column in (KEEP_TOGETHER, recipe.data.keep_together):
        if column in table.column_names and KEEP_TOGETHER not in rows.column_names:
            rows = rows.add_column(KEEP_TOGETHER, as_text(table[column]).to_pylist())
    is_labelled = [
        bool(target.strip() and text.strip()) for target, text in zip(rows["target"], rows["text"], strict=True)
    ]
    if not any(is_labelled):
        raise DataError(f"{path}: none of its {len(rows)} rows has a label")
    rows = rows.select(np.flatnonzero(is_labelled))
    task.refuse_faults(columns_of(rows, (*COLUMNS, *task.columns)))
    ready = rows.with_format("arrow")[:]
    last = {key: row for row, key in enumerate(keys_of(ready))}
    return ready.take(sorted(last.values())), is_labelled.count(False)


def _as_rows(found: pa.Table, schema: pa.Schema, path: Path) -> pa.Table:
    """The found rows with the columns of the training rows; those they lack are null."""
    if "pair" in schema.names and "pair" not in found.column_names:
        raise DataError(f"{path} has no column 'pair', and the run learned from texts with pairs")
    columns = {
        field.name: found[field.name].cast(field.type)
        if field.name in found.column_names
        else pa.nulls(len(found), field.type)
        for field in schema
    }
    return pa.table(columns, schema)


def _is_held_out(new: pa.Table, held: list[pa.Table], recipe: Recipe) -> np.ndarray:
    """For each new row whether it, or nearly it, or one of its keep_together, is in a split that is held out."""
    names = [name for name in ("text", "pair", KEEP_TOGETHER) if name in new.column_names]
    parts = {"held": pa.concat_tables(table.select(names) for table in held), "new": new.select(names)}
    blocks = block_numbers(pa.concat_tables(with_twins(parts, recipe.data.similarity).values()))
    n_held = len(parts["held"])
    return np.isin(blocks[n_held:], blocks[:n_held])


def _with_own_ids(new: pa.Table, taken: set[str]) -> pa.Table:
    """With a number behind ids that other rows have."""
    ids = []
    for row_id in new["id"].to_pylist():
        own, number = row_id, 1
        while own in taken:
            number += 1
            own = f"{row_id} ({number})"
        taken.add(own)
        ids.append(own)
    return new.set_column(new.column_names.index("id"), "id", pa.array(ids, new.schema.field("id").type))


def _written(tables: dict[str, pa.Table], parent: Path, recipe: Recipe) -> Files:
    """The splits as files of a folder named after their content. As parquet, which keeps every type as it was, and with
    the recipe's names for the columns, so that files which the run could read can be read by the next one."""
    given, there = recipe.data, tables["train"].column_names
    named = {name: getattr(given, name) for name in COLUMNS if name in there}
    names = {name: source or name for name, source in named.items()}
    if given.keep_together is not None:
        names[KEEP_TOGETHER] = given.keep_together
        if given.keep_together in [names.get(name, name) for name in there if name != KEEP_TOGETHER]:
            tables = {split: table.drop_columns(KEEP_TOGETHER) for split, table in tables.items()}  # it is there twice
    tables = {
        split: table.rename_columns([names.get(name, name) for name in table.column_names])
        for split, table in tables.items()
    }
    folder = parent / f"rows-{_digest(tables)}"
    if not folder.is_dir():
        with writing(folder) as partial:
            for split, table in tables.items():
                pyarrow.parquet.write_table(table, partial / f"{split}.parquet")
    files = {split: folder / f"{split}.parquet" for split in tables}
    is_once = not set(given.values) & set(recipe.task.outputs())  # what was replaced is not replaced again
    return Files(
        train=files.pop("train"),
        validation=files.pop("validation"),
        test=files.pop("test"),
        tests=files,
        **{name: source for name, source in named.items() if source},
        values=given.values if is_once else {},
        keep_together=given.keep_together,
        similarity=given.similarity,
        overlap=given.overlap,
        max_rejects=given.max_rejects,
        seed=given.seed,
    )


def _digest(tables: dict[str, pa.Table]) -> str:
    from datasets import Dataset
    from datasets.table import InMemoryTable

    digest = hashlib.sha256()
    for split, table in tables.items():
        every = table.rename_columns([f"{name} " for name in table.column_names])  # a fingerprint leaves out the id
        digest.update(f"{split} {fingerprint(Dataset(InMemoryTable(every)))}\0".encode())
    return digest.hexdigest()[:12]
