"""Rows as files: JSON objects written as jsonl, csv or parquet."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from tl_nlp.errors import DataError

_WRITTEN = (".jsonl", ".csv", ".parquet")


def check_output(path: Path) -> None:
    """Refuses a file that `write_rows` cannot write, before the rows are made. Raises DataError."""
    if path.suffix not in _WRITTEN:
        raise DataError(f"{path}: predictions are written as {', '.join(_WRITTEN)}, not {path.suffix or 'nothing'!r}")
    if not path.parent.is_dir():
        raise DataError(f"{path}: there is no folder {str(path.parent)!r}")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes JSON objects as .jsonl or .parquet, or flattened as .csv: {"scores": {"style": 3}} becomes a column
    scores.style."""
    check_output(path)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        flat = [flattened(row) for row in rows]
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(flat[0]) if flat else [])
            writer.writeheader()
            writer.writerows(flat)


def flattened(row: dict[str, Any]) -> dict[str, Any]:
    """A JSON object as the cells of one line, so that no text is a formula."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": part for key, part in value.items()}
        elif isinstance(value, list):
            flat[name] = _harmless("|".join(str(part) for part in value))
        else:
            flat[name] = _harmless(value)
    return flat


def _harmless(value: Any) -> Any:
    """Text that a spreadsheet shows and does not run as a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
