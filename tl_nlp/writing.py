"""Rows as files: JSON objects written as jsonl, csv or parquet, at once or as they come."""

from __future__ import annotations

import csv
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from tl_nlp.errors import DataError


def check_output(path: Path) -> None:
    """Refuses a file that rows cannot be written to, before they are made. Raises DataError."""
    if path.suffix not in _WRITERS:
        raise DataError(f"{path}: predictions are written as {', '.join(_WRITERS)}, not {path.suffix or 'nothing'!r}")
    if not path.parent.is_dir():
        raise DataError(f"{path}: there is no folder {str(path.parent)!r}")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes JSON objects as .jsonl or .parquet, or flattened as .csv: {"scores": {"style": 3}} becomes a column
    scores.style."""
    with rows_file(path) as file:
        file.write(rows)


@contextmanager
def rows_file(path: Path) -> Iterator[RowsFile]:
    """A file that rows are written to as they come, of which the first have the keys of all. It has its name once the
    block ends well; after a fault what was written is in a file beside it, which is told. Raises DataError."""
    check_output(path)
    file = _WRITERS[path.suffix](path.with_name(f"{path.name}.partial"))
    try:
        yield file
    except BaseException:
        file.close()
        if file.n_rows:
            print(f"the {file.n_rows:,} rows that were ready are in {file.path}", file=sys.stderr)
        else:
            file.path.unlink()
        raise
    file.close()
    file.path.replace(path)


class RowsFile(ABC):
    """A file of rows that is being written."""

    def __init__(self, path: Path):
        self.path, self.n_rows = path, 0

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Adds rows."""
        self._add(rows)
        self.n_rows += len(rows)

    @abstractmethod
    def _add(self, rows: list[dict[str, Any]]) -> None: ...

    @abstractmethod
    def close(self) -> None:
        """Whatever was written can be read afterwards."""


class _Lines(RowsFile):
    def __init__(self, path: Path):
        super().__init__(path)
        self._file = path.open("w", encoding="utf-8")

    def _add(self, rows: list[dict[str, Any]]) -> None:
        self._file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    def close(self) -> None:
        self._file.close()


class _Separated(RowsFile):
    def __init__(self, path: Path):
        super().__init__(path)
        self._file = path.open("w", encoding="utf-8", newline="")
        self._writer: csv.DictWriter[str] | None = None

    def _add(self, rows: list[dict[str, Any]]) -> None:
        flat = [flattened(row) for row in rows]
        if self._writer is None:
            self._writer = csv.DictWriter(self._file, list(flat[0]) if flat else [])
            self._writer.writeheader()
        self._writer.writerows(flat)

    def close(self) -> None:
        self._file.close()


class _Parquet(RowsFile):
    def __init__(self, path: Path):
        super().__init__(path)
        self._writer: pyarrow.parquet.ParquetWriter | None = None

    def _add(self, rows: list[dict[str, Any]]) -> None:
        table = pa.Table.from_pylist(rows)
        if self._writer is None:
            known = pa.schema([field.with_type(_known(field.type)) for field in table.schema])
            self._writer = pyarrow.parquet.ParquetWriter(self.path, known)
        self._writer.write_table(pa.Table.from_pylist(rows, self._writer.schema))

    def close(self) -> None:
        if self._writer is None:
            self._add([])
        assert self._writer is not None
        self._writer.close()


def _known(kind: pa.DataType) -> pa.DataType:
    """The type of a column of which the first rows have but empty lists: those of places in a text."""
    return pa.list_(pa.list_(pa.int64())) if pa.types.is_list(kind) and pa.types.is_null(kind.value_type) else kind


_WRITERS: dict[str, type[RowsFile]] = {".jsonl": _Lines, ".csv": _Separated, ".parquet": _Parquet}


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
