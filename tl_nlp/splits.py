"""Who is trained on, who chooses, who is scored: splits that are made, folds, and given splits held apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tl_nlp import duplicates
from tl_nlp.errors import DataError
from tl_nlp.rejects import Reject, Rejects
from tl_nlp.tables import NUMBER
from tl_nlp.types import KEEP_TOGETHER, TWINS

if TYPE_CHECKING:
    from datasets import DatasetDict

    from tl_nlp.recipe import Data


def split_missing(tables: dict[str, pa.Table], data: Data) -> dict[str, pa.Table]:
    """train, validation and test, what is missing taken from train; then further tests."""
    shares = {
        name: share
        for name, share in (("validation", data.validation_share), ("test", data.test_share))
        if name not in tables
    }
    if shares:
        parts = assign(tables["train"], shares, data)
        cut = {name: tables["train"].filter(pa.array(parts == name)) for name in ("train", *shares)}
        tables = {**tables, **cut}
    return {name: tables[name] for name in dict.fromkeys(("train", "validation", "test", *tables))}


def fold(tables: dict[str, pa.Table], data: Data) -> dict[str, pa.Table]:
    """One file's rows with the fold `data.fold` as test, and of the rest a share as validation. Rows without an id
    have their row in the file for one, so that folds can be put together again."""
    assert data.folds is not None, "there are folds to make"
    if len(tables) > 1:
        raise DataError(f"data.folds splits one set of rows, and there are given splits: {', '.join(tables)}")
    table = tables["train"]
    if "id" not in table.column_names:
        ids = pc.binary_join_element_wise("row-", table[NUMBER].cast(pa.string()), "")
        table = table.add_column(0, "id", ids)
    names = [str(fold) for fold in range(data.folds)]
    parts = assign(table, dict.fromkeys(names[1:], 1 / data.folds), data)
    parts[parts == "train"] = names[0]
    is_test = parts == str(data.fold or 0)
    return split_missing({"train": table.filter(pa.array(~is_test)), "test": table.filter(pa.array(is_test))}, data)


def assign(table: pa.Table, shares: dict[str, float], data: Data) -> np.ndarray:
    """The split name of every row: each of `shares`, the rest train.

    Rows with equal or nearly equal (text, pair), or with one value of the column keep_together, get one split, and all
    splits get about the same share of every target: blocks of several rows first, the largest where they leave the
    least squared distance to that, then single rows. Raises DataError for fewer blocks than splits.
    """
    names = ["train", *shares]
    blocks = block_numbers(table)
    sizes = np.bincount(blocks)
    if len(sizes) < len(names):
        raise DataError(
            f"{len(table)} rows make {len(sizes)} groups that must stay together (texts that are equal or nearly so, "
            f"or one value of data.keep_together), too few for {', '.join(names)}; data.similarity=1 keeps only equal "
            "texts together"
        )
    strata = np.unique(_strata(table["target"]), return_inverse=True)[1]
    totals = np.bincount(strata)
    missing = np.outer([1 - sum(shares.values()), *shares.values()], totals)  # rows, of shape (splits, strata)
    order = np.random.default_rng(data.seed).permutation(len(sizes))
    rows = np.argsort(blocks, kind="stable")
    starts = np.cumsum(sizes) - sizes
    part = np.zeros(len(sizes), int)
    for block in (large := order[sizes[order] > 1])[np.argsort(-sizes[large], kind="stable")]:
        counts = np.bincount(strata[rows[starts[block] : starts[block] + sizes[block]]], minlength=len(totals))
        part[block] = np.argmax(missing @ (counts / totals**2.0))
        missing[part[block]] -= counts
    single = order[sizes[order] == 1]
    stratum = strata[rows[starts[single]]]
    left_over = np.zeros(len(names))  # what earlier strata rounded away is made up for here
    for number in range(len(totals)):
        theirs = single[stratum == number]
        counts = np.maximum(missing[:, number] + left_over, 0)
        if missing[0, number] == (1 - sum(shares.values())) * totals[number]:
            counts[0] = max(counts[0], 0.51)  # of every label at least one row is trained on
        edges = np.cumsum(counts)[:-1] / max(counts.sum(), 1e-9) * len(theirs)
        part[theirs] = np.searchsorted(edges, np.arange(len(theirs)) + 0.5, side="right")
        left_over += missing[:, number] - np.bincount(part[theirs], minlength=len(names))
    for empty in set(range(len(names))) - set(part.tolist()):
        fullest = max(range(len(names)), key=lambda one: ((part == one).sum() > 1, sizes[part == one].sum()))
        given = np.flatnonzero(part == fullest)
        part[given[np.argmin(sizes[given])]] = empty
    return np.asarray(names, dtype=object)[part[blocks]]


def apart(tables: dict[str, pa.Table], data: Data, rejects: Rejects) -> dict[str, pa.Table]:
    """Given splits without the training rows that are in a later one too, and without the validation rows that are in
    a test. Raises DataError where they are over 1 % of a test split, unless data.overlap says otherwise."""
    order = [name for name in dict.fromkeys(("train", "validation", *tables)) if name in tables]
    if len(order) < 2 or data.overlap == "keep":
        return tables
    shared = [name for name in (TWINS, KEEP_TOGETHER) if all(name in table.column_names for table in tables.values())]
    columns = [tables[split].select(shared) for split in order]
    ends = np.cumsum([len(table) for table in columns])[:-1]
    blocks = np.split(block_numbers(pa.concat_tables(columns)), ends)
    clean = dict(tables)
    for place, split in enumerate(order):
        if split not in ("train", "validation"):
            continue
        is_double = np.zeros(len(blocks[place]), bool)
        for later in range(place + 1, len(order)):
            is_here = np.isin(blocks[later], blocks[place])
            is_double |= np.isin(blocks[place], blocks[later])
            if data.overlap == "refuse" and order[later] != "validation" and is_here.mean() > _MAX_OVERLAP:
                n_shared, mine, theirs = int(is_here.sum()), tables[split][NUMBER], tables[order[later]][NUMBER]
                row = int(np.flatnonzero(is_here)[0])
                twin = int(np.flatnonzero(blocks[place] == blocks[later][row])[0])
                how = "equal or nearly equal" + (f", or of one {data.keep_together}" if KEEP_TOGETHER in shared else "")
                raise DataError(
                    f"{n_shared} of {len(is_here)} rows of {order[later]} have a row of {split} that is {how}, as row "
                    f"{theirs[row]} has row {mine[twin]}; scores on them would flatter; remove them, or let "
                    "data.overlap=drop take them out of training"
                )
        for double in np.flatnonzero(is_double):
            reason = "equal or nearly equal to a row of a later split"
            text = tables[split]["text"][double].as_py()
            where = f"row {tables[split][NUMBER][double]}"
            rejects.append(Reject(rejects.source_of[split], where, reason, text[:200], is_fault=False))
        clean[split] = tables[split].filter(pa.array(~is_double))
    return clean


_MAX_OVERLAP = 0.01  # of a test split


def with_twins(tables: dict[str, pa.Table], similarity: float = duplicates.SIMILARITY) -> dict[str, pa.Table]:
    """With the column `TWINS`: a number for each row, equal over all splits where (text, pair) are equal or nearly."""
    names = [name for name in ("text", "pair") if all(name in table.column_names for table in tables.values())]
    everything = pa.concat_tables(pa.table({name: table[name] for name in names}) for table in tables.values())
    ends = np.cumsum([len(table) for table in tables.values()])
    numbers = np.split(twin_numbers(everything, similarity), ends[:-1])
    return {
        split: table.append_column(TWINS, pa.array(theirs))
        for (split, table), theirs in zip(tables.items(), numbers, strict=True)
    }


def twin_numbers(table: pa.Table, similarity: float = duplicates.SIMILARITY) -> np.ndarray:
    """A number for each row, equal for those of which (text, pair) are equal or at least so similar."""
    pair = _codes(table["pair"]) if "pair" in table.column_names else np.zeros(len(table), np.int64)
    text = _codes(table["text"])
    equal = np.unique(text * (int(pair.max(initial=0)) + 1) + pair, return_inverse=True)[1]
    return _joined([equal, duplicates.groups(table["text"].to_pylist(), pair, similarity)])


def block_numbers(table: pa.Table) -> np.ndarray:
    """A number for each row, equal for rows that must share a split: twins, or those of one value of the column
    keep_together. Numbers count from 0 without gaps."""
    links = [table[TWINS].to_numpy()]
    if KEEP_TOGETHER in table.column_names:
        together = _codes(table[KEEP_TOGETHER])
        alone = pc.equal(pc.fill_null(table[KEEP_TOGETHER], ""), "").to_numpy(zero_copy_only=False)
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


def twins_of(rows: DatasetDict) -> DatasetDict:
    """Rows with the column `TWINS`, which those of a recipe's data have already."""
    from datasets import DatasetDict

    if all(TWINS in split.column_names for split in rows.values()):
        return rows
    tables = with_twins({name: split.with_format("arrow")[:] for name, split in rows.items()})
    return DatasetDict({name: split.add_column(TWINS, tables[name][TWINS].to_pylist()) for name, split in rows.items()})


def blocks_of(rows: DatasetDict) -> dict[str, np.ndarray]:
    """For each split the block of each row, as in `block_numbers`, equal over all splits."""
    names = [name for name in (TWINS, KEEP_TOGETHER) if all(name in split.column_names for split in rows.values())]
    parts = [split.select_columns(names).with_format("arrow")[:] for split in rows.values()]
    ends = np.cumsum([len(part) for part in parts])
    return dict(zip(rows, np.split(block_numbers(pa.concat_tables(parts)), ends[:-1]), strict=True))
