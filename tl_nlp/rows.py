"""Raw tables → rows: our column names, mapped targets, filtered and split. What every kind of data ends with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tl_nlp.errors import DataError
from tl_nlp.types import COLUMNS

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from tl_nlp.recipe import Data


KEEP_TOGETHER = "keep_together"
"""Our name for the column that `data.keep_together` names."""


def prepare(tables: dict[str, pa.Table], data: Data) -> DatasetDict:
    """The splits of a recipe from raw tables by split name. A missing validation or test split is made from train.

    Raises DataError for a missing column, an empty split or an empty text.
    """
    from datasets import Dataset, DatasetDict
    from datasets.table import InMemoryTable

    tables = {split: _cleaned(table, data, split) for split, table in tables.items()}
    tables = _split(tables, data)
    rows = DatasetDict()
    for split, table in tables.items():
        if data.rows is not None and len(table) > data.rows:
            chosen = np.random.default_rng(data.seed).permutation(len(table))[: data.rows]
            table = table.take(np.sort(chosen))
        if not len(table):
            raise DataError(f"split {split} has no rows; check data.where, data.keep_together and the files")
        if "id" not in table.column_names:
            table = table.add_column(0, "id", pa.array([f"{split}-{number}" for number in range(len(table))]))
        rows[split] = Dataset(InMemoryTable(table))
    return rows


def select(table: pa.Table, data: Data, columns: tuple[str, ...]) -> Dataset:
    """One raw table as rows to predict or evaluate: it names its columns as we do, else as the recipe does."""
    from datasets import Dataset
    from datasets.table import InMemoryTable

    sources = {name: name for name in columns} | _sources(data)
    wanted = {name: name if name in table.column_names else source for name, source in sources.items()}
    wanted = {name: source for name, source in wanted.items() if source in table.column_names}
    if "text" not in wanted:
        names = "'text'" if data.text == "text" else f"'text' or {data.text!r}"
        raise DataError(f"no column {names}; there are: {', '.join(table.column_names)}")
    table = _mapped(pa.table({name: table[source] for name, source in wanted.items()}), data)
    if "id" not in table.column_names:
        table = table.add_column(0, "id", pa.array([str(number) for number in range(len(table))]))
    return Dataset(InMemoryTable(table))


def _sources(data: Data) -> dict[str, str]:
    """Our column names and the recipe's names for them."""
    return {name: getattr(data, name) or name for name in COLUMNS} | data.columns


def _cleaned(table: pa.Table, data: Data, split: str) -> pa.Table:
    """The rows the recipe keeps, under our names. Raises DataError for an empty text, with its row in the file."""
    numbered = table.append_column(_NUMBER, pa.array(np.arange(1, len(table) + 1)))
    table = _renamed(_kept(numbered, data, split), data, split)
    empty = pc.equal(pc.utf8_trim_whitespace(table["text"]), "")
    n_empty = pc.sum(empty).as_py() or 0
    if n_empty:
        first = table[_NUMBER].filter(empty)[0]
        raise DataError(
            f"split {split}: {n_empty} rows have an empty text, row {first} of the file the first; remove or fill them"
        )
    return table.drop_columns(_NUMBER)


_NUMBER = "row of the file"


def _kept(table: pa.Table, data: Data, split: str) -> pa.Table:
    """The rows that `data.where` names."""
    for column, value in data.where.items():
        _require(table, column, "data.where", split)
        kept = table.filter(pc.equal(_as_text(table[column]), value))
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
    taken = {KEEP_TOGETHER, *sources, *sources.values()}
    rest = {name: name for name in table.column_names if name not in taken}
    return _mapped(pa.table({name: table[source] for name, source in (sources | rest).items()}), data)


def _require(table: pa.Table, column: str, key: str, split: str) -> None:
    if column not in table.column_names:
        there = ", ".join(name for name in table.column_names if name != _NUMBER)
        raise DataError(f"{key}: no column {column!r} in split {split}; there are: {there}")


def _mapped(table: pa.Table, data: Data) -> pa.Table:
    """Texts, pairs, groups and ids as text; scalar targets as text too, replaced by `data.values`."""
    for name in COLUMNS:
        if name not in table.column_names:
            continue
        place, column = table.column_names.index(name), table[name]
        if name == "target" and pa.types.is_nested(column.type):
            if pa.types.is_list(column.type) and data.values:
                lists = with_members(column, lambda members: _replaced(_as_text(members), data.values))
                table = table.set_column(place, name, lists)
            continue
        column = _as_text(column)
        if name == "target" and data.values:
            column = _replaced(column, data.values)
        table = table.set_column(place, name, pc.fill_null(column, ""))
    return table


def with_members(lists: pa.ChunkedArray, replace: Callable[[pa.Array], pa.Array]) -> pa.Array:
    """A column of lists with all their members replaced at once; a null becomes an empty list."""
    array = lists.combine_chunks()
    ends = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False).cumsum()
    return pa.ListArray.from_arrays(pa.array([0, *ends.tolist()], pa.int32()), replace(array.flatten()))


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    whole = pa.types.is_floating(column.type) and pc.all(
        pc.and_(pc.less(pc.abs(column), 2**53), pc.equal(column, pc.floor(column)))
    )
    if whole and whole.as_py():
        column = column.cast(pa.int64())  # 3.0 is the label "3"
    return column.cast(pa.string())


def _replaced(column: pa.ChunkedArray, values: dict[str, str]) -> pa.ChunkedArray:
    positions = pc.index_in(column, pa.array(list(values), pa.string()))
    return pc.coalesce(pc.take(pa.array(list(values.values()), pa.string()), positions), column)


def _split(tables: dict[str, pa.Table], data: Data) -> dict[str, pa.Table]:
    """train, validation and test, what is missing taken from train; then further tests."""
    shares = {
        name: share
        for name, share in (("validation", data.validation_share), ("test", data.test_share))
        if name not in tables
    }
    if shares:
        parts = assign(tables["train"], shares, data.seed)
        cut = {name: tables["train"].filter(pa.array(parts == name)) for name in ("train", *shares)}
        tables = {**tables, **cut}
    return {name: tables[name] for name in dict.fromkeys(("train", "validation", "test", *tables))}


def assign(table: pa.Table, shares: dict[str, float], seed: int) -> np.ndarray:
    """The split name of every row: each of `shares`, the rest train.

    Stratified by target. Rows with equal (text, pair), or with one value of the column keep_together, get one split.
    """
    blocks = _blocks(table)
    strata = _strata(table["target"])
    n_blocks = int(blocks.max(initial=-1)) + 1
    sizes = np.bincount(blocks, minlength=n_blocks)
    block_stratum = np.zeros(n_blocks, int)
    block_stratum[blocks[::-1]] = strata[::-1]  # the stratum of a block's first row
    order = np.random.default_rng(seed).permutation(n_blocks)
    order = order[np.argsort(block_stratum[order], kind="stable")]
    names = ["train", *shares]
    wanted = np.asarray([1 - sum(shares.values()), *shares.values()])
    got, n_rows = np.zeros(len(names)), 0
    part = np.zeros(n_blocks, int)
    for stratum in np.split(order, np.flatnonzero(np.diff(block_stratum[order])) + 1):
        n_rows += sizes[stratum].sum()
        counts = np.maximum(wanted * n_rows - got, 0)  # what earlier strata rounded away is made up for here
        counts[0] = max(counts[0], 0.51)  # of every label at least one row is trained on
        middle = np.cumsum(sizes[stratum]) - sizes[stratum] / 2
        edges = np.cumsum(counts)[:-1] / counts.sum() * sizes[stratum].sum()
        part[stratum] = np.searchsorted(edges, middle, side="right")
        got += np.bincount(part[stratum], weights=sizes[stratum], minlength=len(names))
    return np.asarray(names, dtype=object)[part[blocks]]


def _blocks(table: pa.Table) -> np.ndarray:
    """A number for each row, equal for rows that must share a split; numbers count from 0 without gaps."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    text = _codes(table["text"])
    if "pair" in table.column_names:
        pair = _codes(table["pair"])
        text = np.unique(text.astype(np.int64) * (int(pair.max(initial=0)) + 1) + pair, return_inverse=True)[1]
    if KEEP_TOGETHER not in table.column_names:
        return text
    together = _codes(table[KEEP_TOGETHER])
    alone = pc.equal(pc.fill_null(_as_text(table[KEEP_TOGETHER]), ""), "").to_numpy(zero_copy_only=False)
    together[alone] = len(together) + np.arange(alone.sum())  # rows without a value belong to nobody
    n_texts, n_values = int(text.max(initial=-1)) + 1, int(together.max(initial=-1)) + 1
    edges = coo_array((np.ones(len(text)), (text, n_texts + together)), shape=(n_texts + n_values,) * 2)
    component = connected_components(edges, directed=False)[1][text]
    return np.unique(component, return_inverse=True)[1]


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)


def _strata(target: pa.ChunkedArray) -> np.ndarray:
    """A stratum for each row: its target where targets recur, a tenth of the range of numbers, else one for all."""
    if pa.types.is_nested(target.type):
        return np.zeros(len(target), int)
    codes = _codes(target)
    if codes.max(initial=0) < len(codes) / 5:
        return codes
    try:
        numbers = target.cast(pa.float64()).to_numpy()
    except pa.ArrowInvalid:
        return np.zeros(len(target), int)
    return np.searchsorted(np.quantile(numbers, np.linspace(0.1, 0.9, 9)), numbers)


def refuse_empty_targets(rows: dict[str, list[Any]]) -> None:
    """For tasks whose targets are texts. Raises DataError with the row."""
    for row, target in zip(rows["id"], rows["target"], strict=True):
        if not isinstance(target, str) or not target.strip():
            raise DataError(f"row {row}: its target {target!r} is no text; write it or drop the row")


def fingerprint(rows: Dataset) -> str:
    """A hash of all columns but the id, rows in their order."""
    import hashlib

    digest = hashlib.sha256()
    for name in sorted(set(rows.column_names) - {"id"}):
        digest.update(name.encode() + b"\0")
        for chunk in rows.data.table[name].chunks:
            for value in chunk:
                digest.update(repr(value.as_py()).encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()[:16]


def columns_of(rows: Dataset, names: tuple[str, ...]) -> dict[str, list[Any]]:
    """The named columns that there are, as lists."""
    return {name: rows[name][:] for name in names if name in rows.column_names}
