"""A cleaned copy of a data set: what the data check would mend, mended."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from tl_nlp.checking import spellings
from tl_nlp.personal import masked
from tl_nlp.splits import blocks_of, twins_of
from tl_nlp.types import COLUMNS, KEEP_TOGETHER, TWINS
from tl_nlp.writing import write_rows

if TYPE_CHECKING:
    from datasets import DatasetDict

    from tl_nlp.recipe import Task


def write_cleaned(rows: DatasetDict, task: Task, folder: Path) -> dict[str, int]:
    """Writes each split to `folder`/SPLIT.jsonl under our column names: without rejects, duplicates and rows that a
    split scored later has too or shares a value of keep_together with; labels that differ by case or spaces made one;
    personal data masked. Returns how many rows each file has."""
    rows = twins_of(rows)
    shared = blocks_of(rows)
    columns = (*COLUMNS, *task.columns, KEEP_TOGETHER)
    is_labelled = task.head == "classify"
    counts = Counter(target for split in rows.values() for target in split["target"]) if is_labelled else Counter()
    spelling = spellings(counts, 0.0)
    folder.mkdir(parents=True, exist_ok=True)
    sizes: dict[str, int] = {}
    taken: set[int] = set()
    for split in reversed(list(rows)):  # a row stays in the split that is scored
        kept, here = [], set()
        for row, block in zip(rows[split], shared[split].tolist(), strict=True):
            if row[TWINS] in here or block in taken:
                continue
            here.add(row[TWINS])
            row = {name: row[name] for name in columns if row.get(name) is not None}
            row |= {name: masked(row[name]) for name in ("text", "pair") if name in row}
            if isinstance(row.get("target"), str):
                row["target"] = spelling.get(row["target"], row["target"])
            kept.append(row)
        taken |= set(shared[split].tolist()) if split != "train" else set()
        write_rows(folder / f"{split}.jsonl", kept)
        sizes[split] = len(kept)
    return dict(reversed(sizes.items()))
