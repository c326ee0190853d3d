"""Raw tables → rows: our column names, mapped targets, filtered and split. What every kind of data ends with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tl_nlp import duplicates
from tl_nlp.errors import DataError
from tl_nlp.tables import MAX_CHARACTERS, Reject, keep_few
from tl_nlp.types import COLUMNS

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from tl_nlp.recipe import Data, Recipe, Task


KEEP_TOGETHER = "keep_together"
"""Our name for the column that `data.keep_together` names."""


def prepare(tables: dict[str, pa.Table], data: Data, rejects: list[Reject]) -> DatasetDict:
    """The splits of a recipe from raw tables by split name. A missing validation or test split is made from train.

    Adds rows that are left out to `rejects`. Raises DataError for a missing column, an empty split, too many rejects,
    and given splits that overlap.
    """
    from datasets import Dataset, DatasetDict
    from datasets.table import InMemoryTable

    tables = {split: _cleaned(table, data, split, rejects) for split, table in tables.items()}
    tables = _fold(tables, data) if data.folds else _split(_apart(tables, data, rejects), data)
    rows = DatasetDict()
    for split, table in tables.items():
        table = table.drop_columns(_NUMBER)
        most = min(data.rows or len(table), data.train_rows or len(table) if split == "train" else len(table))
        if len(table) > most:
            chosen = np.random.default_rng(data.seed).permutation(len(table))[:most]
            table = table.take(np.sort(chosen))
        if not len(table):
            raise DataError(f"split {split} has no rows; check data.where, data.keep_together and the files")
        if "id" not in table.column_names:
            table = table.add_column(0, "id", pa.array([f"{split}-{number}" for number in range(len(table))]))
        rows[split] = Dataset(InMemoryTable(table))
    return rows


def usable(rows: DatasetDict, task: Task, most: float, rejects: list[Reject]) -> DatasetDict:
    """The rows with targets the task can use; others are added to `rejects`. Raises DataError for more than `most`."""
    from datasets import DatasetDict

    kept = DatasetDict()
    for split, theirs in rows.items():
        faults = task.faults(columns_of(theirs, (*COLUMNS, *task.columns)))
        ids = theirs["id"]
        texts = theirs["text"]
        found = [Reject(split, f"row {ids[n]}", reason, texts[n][:200]) for n, reason in sorted(faults.items())]
        keep_few(found, len(theirs), most, rejects)
        kept[split] = theirs.select([n for n in range(len(theirs)) if n not in faults]) if faults else theirs
    return kept


def resolved(recipe: Recipe, rejects: list[Reject] | None = None) -> tuple[Task, DatasetDict]:
    """The recipe's task with its labels or scale known, and the rows that it can use."""
    rejects = [] if rejects is None else rejects
    most = recipe.data.max_rejects
    rows = usable(recipe.data.load(rejects), recipe.task, most, rejects)
    task = recipe.task.resolve(rows)
    return task, usable(rows, task, most, rejects)


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


_NUMBER = "row of the file"


def _cleaned(table: pa.Table, data: Data, split: str, rejects: list[Reject]) -> pa.Table:
    """The rows the recipe keeps and that have a text, under our names, each with its number in the file."""
    numbered = table.append_column(_NUMBER, pa.array(np.arange(1, len(table) + 1)))
    table = _renamed(_kept(numbered, data, split), data, split)
    text = table["text"]
    faults = {
        "the text is empty": pc.equal(pc.utf8_trim_whitespace(text), ""),
        "the text holds a NUL character": pc.match_substring(text, "\0"),
        f"the text has over {MAX_CHARACTERS:,} characters": pc.greater(pc.utf8_length(text), MAX_CHARACTERS),
    }
    found, is_good = [], np.ones(len(table), bool)
    for reason, is_faulty in faults.items():
        faulty = is_faulty.to_numpy()
        for row in np.flatnonzero(faulty & is_good):
            found.append(Reject(split, f"row {table[_NUMBER][row]}", reason, text[row].as_py()[:200]))
        is_good &= ~faulty
    keep_few(found, len(table), data.max_rejects, rejects)
    return table.filter(pa.array(is_good)) if found else table


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


def _fold(tables: dict[str, pa.Table], data: Data) -> dict[str, pa.Table]:
    """One file's rows with the fold `data.fold` as test, and of the rest a share as validation. Rows without an id
    have their row in the file for one, so that folds can be put together again."""
    assert data.folds is not None, "there are folds to make"
    if len(tables) > 1:
        raise DataError(f"data.folds splits one set of rows, and there are given splits: {', '.join(tables)}")
    table = tables["train"]
    if "id" not in table.column_names:
        ids = pc.binary_join_element_wise("row-", table[_NUMBER].cast(pa.string()), "")
        table = table.add_column(0, "id", ids)
    names = [str(fold) for fold in range(data.folds)]
    parts = assign(table, dict.fromkeys(names[1:], 1 / data.folds), data.seed)
    parts[parts == "train"] = names[0]
    is_test = parts == str(data.fold or 0)
    return _split({"train": table.filter(pa.array(~is_test)), "test": table.filter(pa.array(is_test))}, data)


def assign(table: pa.Table, shares: dict[str, float], seed: int) -> np.ndarray:
    """The split name of every row: each of `shares`, the rest train.

    Stratified by target. Rows with equal or nearly equal (text, pair), or with one value of the column keep_together,
    get one split.
    """
    blocks = block_numbers(table)
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


def _apart(tables: dict[str, pa.Table], data: Data, rejects: list[Reject]) -> dict[str, pa.Table]:
    """Given splits without the training rows that are in a later one too, and without the validation rows that are in
    a test. Raises DataError where they are over 1 % of a test split, unless data.overlap says otherwise."""
    order = [name for name in dict.fromkeys(("train", "validation", *tables)) if name in tables]
    if len(order) < 2 or data.overlap == "keep":
        return tables
    shared = [
        name for name in ("text", "pair", KEEP_TOGETHER) if all(name in table.column_names for table in tables.values())
    ]
    columns = [pa.table({name: _as_text(tables[split][name]) for name in shared}) for split in order]
    blocks = np.split(block_numbers(pa.concat_tables(columns)), np.cumsum([len(table) for table in columns])[:-1])
    clean = dict(tables)
    for place, split in enumerate(order):
        if split not in ("train", "validation"):
            continue
        is_double = np.zeros(len(blocks[place]), bool)
        for later in range(place + 1, len(order)):
            is_here = np.isin(blocks[later], blocks[place])
            is_double |= np.isin(blocks[place], blocks[later])
            if data.overlap == "refuse" and order[later] != "validation" and is_here.mean() > _MAX_OVERLAP:
                n_shared, mine, theirs = int(is_here.sum()), tables[split][_NUMBER], tables[order[later]][_NUMBER]
                row = int(np.flatnonzero(is_here)[0])
                twin = int(np.flatnonzero(blocks[place] == blocks[later][row])[0])
                how = "equal or nearly equal" + (f", or of one {data.keep_together}" if KEEP_TOGETHER in shared else "")
                raise DataError(
                    f"{n_shared} of {len(is_here)} rows of {order[later]} have a row of {split} that is {how}, as row "
                    f"{theirs[row]} has row {mine[twin]}; scores on them would flatter; remove them, or let "
                    "data.overlap=drop take them out of training"
                )
        for number in np.flatnonzero(is_double):
            reason = "equal or nearly equal to a row of a later split"
            text = tables[split]["text"][number].as_py()
            rejects.append(Reject(split, f"row {tables[split][_NUMBER][number]}", reason, text[:200]))
        clean[split] = tables[split].filter(pa.array(~is_double))
    return clean


_MAX_OVERLAP = 0.01  # of a test split


def block_numbers(table: pa.Table) -> np.ndarray:
    """A number for each row, equal for rows that must share a split: (text, pair) equal or nearly so, or one value of
    the column keep_together. Numbers count from 0 without gaps."""
    pair = _codes(table["pair"]) if "pair" in table.column_names else np.zeros(len(table), np.int64)
    text = _codes(table["text"])
    links = [
        np.unique(text * (int(pair.max(initial=0)) + 1) + pair, return_inverse=True)[1],
        duplicates.groups(table["text"].to_pylist(), pair),
    ]
    if KEEP_TOGETHER in table.column_names:
        together = _codes(table[KEEP_TOGETHER])
        alone = pc.equal(pc.fill_null(_as_text(table[KEEP_TOGETHER]), ""), "").to_numpy(zero_copy_only=False)
        together[alone] = len(together) + np.arange(alone.sum())  # rows without a value belong to nobody
        links.append(together)
    return _joined(links)


def _joined(links: list[np.ndarray]) -> np.ndarray:
    """A number for each row, equal for rows that share a number in one of `links`, directly or by steps."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n_rows, offset, rows, nodes = len(links[0]), len(links[0]), [], []
    for link in links:
        rows.append(np.arange(n_rows))
        nodes.append(offset + link)
        offset += int(link.max(initial=-1)) + 1
    edges = coo_array((np.ones(n_rows * len(links)), (np.concatenate(rows), np.concatenate(nodes))), (offset, offset))
    component = connected_components(edges, directed=False)[1][:n_rows]
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


def empty_targets(rows: dict[str, list[Any]]) -> dict[int, str]:
    """For tasks whose targets are texts: which rows have none, and so cannot be learned from or scored."""
    return {
        number: f"its target {target!r} is no text"
        for number, target in enumerate(rows["target"])
        if not isinstance(target, str) or not target.strip()
    }


def hashes(rows: Dataset) -> np.ndarray:
    """A 64-bit hash of the words of (text, pair) of each row: equal where only case, marks or tags differ."""
    import hashlib

    pairs = rows["pair"][:] if "pair" in rows.column_names else [""] * len(rows)
    words = pc.binary_join_element_wise(duplicates.plain(rows["text"][:]), duplicates.plain(pairs), "\0")
    digests = b"".join(hashlib.blake2b(one.encode(), digest_size=8).digest() for one in words.to_pylist())
    return np.frombuffer(digests, np.uint64)


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
