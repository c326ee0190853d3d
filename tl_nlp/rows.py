"""Raw tables → rows: our column names, mapped targets, ids; what every kind of data ends with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tl_nlp import duplicates
from tl_nlp.errors import DataError
from tl_nlp.rejects import Reject, Rejects
from tl_nlp.splits import apart, fold, split_missing, with_twins
from tl_nlp.tables import MAX_CHARACTERS, NUMBER, as_text
from tl_nlp.types import COLUMNS, KEEP_TOGETHER, TWINS

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from tl_nlp.recipe import Data, Recipe, Rows, Task


def prepare(
    tables: dict[str, pa.Table], data: Data, rejects: Rejects, sources: dict[str, str] | None = None
) -> DatasetDict:
    """The splits of a recipe from raw tables by split name. A missing validation or test split is made from train.

    Adds rows that are left out to `rejects`; `sources` are the files of splits that were read from some. Raises
    DataError for a missing column, an empty split, too many rejects, and given splits that overlap.
    """
    from datasets import Dataset, DatasetDict
    from datasets.table import InMemoryTable

    for split, table in tables.items():
        rejects.source_of[split] = (sources or {}).get(split, split)
        if sources is None:
            rejects.n_rows[split] += len(table)
    tables = {split: _cleaned(table, data, split, rejects) for split, table in tables.items()}
    rejects.refuse_many(data.max_rejects)
    tables = with_twins(tables, data.similarity)
    tables = fold(tables, data) if data.folds else split_missing(apart(tables, data, rejects), data)
    rows = DatasetDict()
    for split, table in _with_ids(tables).items():
        rejects.source_of.setdefault(split, rejects.source_of["train"])
        most = min(data.rows or len(table), data.train_rows or len(table) if split == "train" else len(table))
        if len(table) > most:
            chosen = np.random.default_rng(data.seed).permutation(len(table))[:most]
            table = table.take(np.sort(chosen))
        if not len(table):
            raise DataError(f"split {split} has no rows; check data.where, data.keep_together and the files")
        rows[split] = Dataset(InMemoryTable(table))
    return rows


def _with_ids(tables: dict[str, pa.Table]) -> dict[str, pa.Table]:
    """An id for each row, of which no two are equal: without one of its own its split and its number in the file; one
    that is there again gets a number behind it."""
    counts: Counter[str] = Counter()
    taken: set[str] = set()
    ready = {}
    for split, table in tables.items():
        numbers = table[NUMBER].to_pylist()
        table = table.drop_columns(NUMBER)
        if "id" not in table.column_names:
            table = table.add_column(0, "id", pa.array([f"{split}-{number}" for number in numbers], pa.string()))
        ids = []
        for row in table["id"].to_pylist():
            counts[row] += 1
            own = row
            while own in taken:
                own = f"{row} ({counts[row]})"
                counts[row] += own in taken
            taken.add(own)
            ids.append(own)
        ready[split] = table.set_column(table.column_names.index("id"), "id", pa.array(ids, pa.string()))
    return ready


def usable(rows: DatasetDict, task: Task, most: float, rejects: Rejects) -> DatasetDict:
    """The rows with targets the task can use; others are added to `rejects`. Raises DataError for more than `most`."""
    from datasets import DatasetDict

    kept = DatasetDict()
    for split, theirs in rows.items():
        faults = task.faults(columns_of(theirs, (*COLUMNS, *task.columns)))
        ids, texts, source = theirs["id"], theirs["text"], rejects.source_of.get(split, split)
        rejects += [Reject(source, f"row {ids[n]}", reason, texts[n][:200]) for n, reason in sorted(faults.items())]
        kept[split] = theirs.select([n for n in range(len(theirs)) if n not in faults]) if faults else theirs
    rejects.refuse_many(most)
    return kept


def resolved(recipe: Recipe, rejects: Rejects | None = None) -> tuple[Task, DatasetDict]:
    """The recipe's task with its labels or scale known, and the rows that it can use."""
    rejects = Rejects() if rejects is None else rejects
    most = recipe.data.max_rejects
    rows = usable(recipe.data.load(rejects), recipe.task, most, rejects)
    task = recipe.task.resolve(rows)
    return task, usable(rows, task, most, rejects)


def select(table: pa.Table, data: Data, columns: tuple[str, ...], first: int = 0) -> Dataset:
    """One raw table as rows to predict or evaluate: it names its columns as we do, else as the recipe does. Without ids
    its rows are numbered, from `first` on."""
    from datasets import Dataset
    from datasets.table import InMemoryTable

    sources = {name: name for name in columns} | _sources(data)
    wanted = {name: name if name in table.column_names else source for name, source in sources.items()}
    wanted = {name: source for name, source in wanted.items() if source in table.column_names}
    if "text" not in wanted:
        names = "'text'" if data.text == "text" else f"'text' or {data.text!r}"
        raise DataError(f"no column {names}; there are: {', '.join(table.column_names)}")
    table = _mapped(pa.table({name: table[source] for name, source in wanted.items()}), data, "of this file")
    if "id" not in table.column_names:
        table = table.add_column(0, "id", pa.array([str(first + number) for number in range(len(table))]))
    return Dataset(InMemoryTable(table))


def _sources(data: Data) -> dict[str, str]:
    """Our column names and the recipe's names for them."""
    return {name: getattr(data, name) or name for name in COLUMNS} | data.columns


def _cleaned(table: pa.Table, data: Data, split: str, rejects: Rejects) -> pa.Table:
    """The rows the recipe keeps and that have a text, under our names, each with its number in the file."""
    source = rejects.source_of[split]
    noun = "line" if NUMBER in table.column_names and not source.endswith(".parquet") else "row"
    if NUMBER not in table.column_names:
        table = table.append_column(NUMBER, pa.array(np.arange(1, len(table) + 1)))
    kept = _kept(table, data, split)
    rejects.n_rows[source] -= len(table) - len(kept)
    table = _renamed(kept, data, split)
    text = table["text"]
    faults = {
        "the text is empty": pc.equal(pc.utf8_trim_whitespace(text), ""),
        "the text holds a NUL character": pc.match_substring(text, "\0"),
        f"the text has over {MAX_CHARACTERS:,} characters": pc.greater(pc.utf8_length(text), MAX_CHARACTERS),
    }
    is_good = np.ones(len(table), bool)
    for reason, is_faulty in faults.items():
        faulty = is_faulty.to_numpy()
        for row in np.flatnonzero(faulty & is_good):
            rejects.append(Reject(source, f"{noun} {table[NUMBER][row]}", reason, text[row].as_py()[:200]))
        is_good &= ~faulty
    return table if is_good.all() else table.filter(pa.array(is_good))


def _kept(table: pa.Table, data: Data, split: str) -> pa.Table:
    """The rows that `data.where` names."""
    for column, value in data.where.items():
        _require(table, column, "data.where", split)
        kept = table.filter(pc.equal(as_text(table[column]), value))
        if not len(kept):
            there = ", ".join(repr(str(other)) for other in table[column].unique()[:5].to_pylist())
            raise DataError(f"data.where.{column}: no row of split {split} has {value!r}; it has {there}")
        table = kept
    return table


def _renamed(table: pa.Table, data: Data, split: str) -> pa.Table:
    """With our names for the columns the recipe names; other columns stay for the task that reads them."""
    sources = {}
    for name, source in _sources(data).items():
        given = name in data.columns or name in ("text", "target") or getattr(data, name) is not None
        if given:
            _require(table, source, f"data.columns.{name}" if name in data.columns else f"data.{name}", split)
        if source in table.column_names:
            sources[name] = source
    if data.keep_together is not None:
        _require(table, data.keep_together, "data.keep_together", split)
        sources[KEEP_TOGETHER] = data.keep_together
    taken = {KEEP_TOGETHER, TWINS, *sources, *sources.values()}
    rest = {name: name for name in table.column_names if name not in taken}
    if data.keep_together is not None:
        place = table.column_names.index(data.keep_together)
        table = table.set_column(place, data.keep_together, as_text(table[data.keep_together]))
    return _mapped(pa.table({name: table[source] for name, source in (sources | rest).items()}), data, split)


def _require(table: pa.Table, column: str, key: str, split: str) -> None:
    if column not in table.column_names:
        there = ", ".join(name for name in table.column_names if name != NUMBER)
        raise DataError(f"{key}: no column {column!r} in split {split}; there are: {there}")


def _mapped(table: pa.Table, data: Data, split: str) -> pa.Table:
    """Texts, pairs, groups and ids as text; scalar targets as text too, replaced by `data.values`."""
    for name in COLUMNS:
        if name not in table.column_names:
            continue
        place, column = table.column_names.index(name), table[name]
        if name == "target" and pa.types.is_nested(column.type):
            if pa.types.is_list(column.type) and data.values:
                lists = with_members(column, lambda members: _replaced(as_text(members), data.values))
                table = table.set_column(place, name, lists)
            continue
        if pa.types.is_nested(column.type):
            raise DataError(f"the column for {name} holds {column.type} in split {split}; it takes one of texts")
        column = as_text(column)
        if name == "target" and data.values:
            column = _replaced(column, data.values)
        table = table.set_column(place, name, pc.fill_null(column, ""))
    return table


def with_members(lists: pa.ChunkedArray, replace: Callable[[pa.Array], pa.Array]) -> pa.Array:
    """A column of lists with all their members replaced at once; a null becomes an empty list."""
    array = lists.combine_chunks()
    ends = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False).cumsum()
    return pa.ListArray.from_arrays(pa.array([0, *ends.tolist()], pa.int32()), replace(array.flatten()))


def _replaced(column: pa.ChunkedArray, values: dict[str, str]) -> pa.ChunkedArray:
    positions = pc.index_in(column, pa.array(list(values), pa.string()))
    return pc.coalesce(pc.take(pa.array(list(values.values()), pa.string()), positions), column)


def empty_targets(rows: dict[str, list[Any]]) -> dict[int, str]:
    """For tasks whose targets are texts: which rows have none, and so cannot be learned from or scored."""
    return {
        number: f"its target {target!r} is no text"
        for number, target in enumerate(rows["target"])
        if not isinstance(target, str) or not target.strip()
    }


def all_references(rows: dict[str, list[Any]]) -> list[list[str]]:
    """For each row its target and, where the rows have the column `others`, the further references in it."""
    others = rows.get("others") or [None] * len(rows["target"])
    more = [[text] if isinstance(text, str) else list(text or []) for text in others]
    return [[target, *theirs] for target, theirs in zip(rows["target"], more, strict=True)]


def hashes(rows: Dataset) -> np.ndarray:
    """A 64-bit hash of the words of (text, pair) of each row: equal where only case, marks or tags differ."""
    import hashlib

    pairs = rows["pair"][:] if "pair" in rows.column_names else [""] * len(rows)
    words = pc.binary_join_element_wise(
        duplicates.plain(rows["text"][:]), duplicates.plain(pairs), pa.scalar("\0", pa.large_string())
    )
    digests = b"".join(hashlib.blake2b(one.encode(), digest_size=8).digest() for one in words.to_pylist())
    return np.frombuffer(digests, np.uint64)


def fingerprint(rows: Dataset) -> str:
    """A hash of all columns of the data but the id, rows in their order."""
    import hashlib

    digest = hashlib.sha256()
    for name in sorted(set(rows.column_names) - {"id", TWINS}):
        digest.update(name.encode() + b"\0")
        for chunk in rows.data.table[name].chunks:
            for value in chunk:
                digest.update(repr(value.as_py()).encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()[:16]


def columns_of(rows: Dataset, names: tuple[str, ...]) -> dict[str, list[Any]]:
    """The named columns that there are, as lists."""
    return {name: rows[name][:] for name in names if name in rows.column_names}


def clusters(rows: Rows) -> np.ndarray | None:
    """A number for each row, equal for those that data.keep_together holds together; None without such a column."""
    if KEEP_TOGETHER not in rows:
        return None
    values = [f"={value}" if value not in (None, "") else str(n) for n, value in enumerate(rows[KEEP_TOGETHER])]
    return np.unique(values, return_inverse=True)[1]
