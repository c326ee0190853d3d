"""Files of rows ↔ tables, by suffix: csv, tsv, jsonl, parquet. Text stays text: "NA" and "007" are no numbers.

A file that cannot be read says where: DataError with file, line and reason.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from tl_nlp.errors import DataError


def read_table(path: Path) -> pa.Table:
    """All rows of a file. Columns of a csv or tsv are text; those of jsonl and parquet have their own types."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: files of rows end in {', '.join(READERS)}, not {path.suffix or 'nothing'!r}")
    if not path.is_file():
        raise DataError(f"no file {str(path)!r}; paths count from {Path.cwd()}")
    table = reader(path)
    if not len(table):
        raise DataError(f"{path} holds no rows")
    return table


def _read_separated(path: Path, delimiter: str) -> pa.Table:
    names = _header(path, delimiter)
    try:
        return pyarrow.csv.read_csv(
            path,
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as error:
        raise DataError(_where_separated(path, delimiter, len(names)) or f"{path}: {error}") from None


def _header(path: Path, delimiter: str) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            names = next(csv.reader(file, delimiter=delimiter), [])
    except UnicodeDecodeError:
        raise DataError(_not_utf8(path)) from None
    if not names:
        raise DataError(f"{path} is empty; its first line names the columns")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DataError(f"{path}: two columns are named {twice[0]!r}; rename one in the first line")
    return names


def _where_separated(path: Path, delimiter: str, n_columns: int) -> str | None:
    """What is wrong with the first row that cannot be read, found by the slow reader."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            for row in reader:
                if len(row) not in (0, n_columns):
                    return (
                        f"{path}, line {reader.line_num}: {len(row)} fields where the first line names {n_columns} "
                        f"columns; quote fields that hold {delimiter!r}"
                    )
    except UnicodeDecodeError:
        return _not_utf8(path)
    except csv.Error as error:
        return f"{path}, line {reader.line_num}: {error}"
    return None


def _not_utf8(path: Path) -> str:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return (
                    f"{path}, line {number}: byte {line[error.start]:#04x} is not UTF-8; save the file as UTF-8 "
                    "(iconv -f latin1 -t utf-8)"
                )
    return f"{path} is not UTF-8"


def _read_lines(path: Path) -> pa.Table:
    try:
        table = pyarrow.json.read_json(path, parse_options=pyarrow.json.ParseOptions(newlines_in_values=False))
        table.validate(full=True)  # the reader takes any bytes for text
    except pa.ArrowInvalid:
        return _read_lines_slowly(path)
    # the reader takes texts that look like dates for dates
    return _read_lines_slowly(path) if any(pa.types.is_temporal(field.type) for field in table.schema) else table


def _read_lines_slowly(path: Path) -> pa.Table:
    """Line by line, for files whose values pyarrow does not take as they are, and to name the line of a fault."""
    rows: list[dict[str, Any]] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line.decode("utf-8-sig")) if line.strip() else {}
            except UnicodeDecodeError:
                raise DataError(_not_utf8(path)) from None
            except ValueError as error:
                raise DataError(f"{path}, line {number}: no JSON object: {error}") from None
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: no JSON object but {type(row).__name__}")
            rows += [row] if row else []
    try:
        return pa.Table.from_pylist(rows)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(f"{path}: a column holds values of several types: {error}") from None


def _read_parquet(path: Path) -> pa.Table:
    try:
        return pyarrow.parquet.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is no parquet file: {error}") from None


READERS = {
    ".csv": lambda path: _read_separated(path, ","),
    ".tsv": lambda path: _read_separated(path, "\t"),
    ".jsonl": _read_lines,
    ".parquet": _read_parquet,
}


def check_output(path: Path) -> None:
    """Refuses a file that `write_rows` cannot write, before the rows are made. Raises DataError."""
    if path.suffix not in (".jsonl", ".csv"):
        raise DataError(f"{path}: predictions are written as .jsonl or .csv, not {path.suffix or 'nothing'!r}")
    if not path.parent.is_dir():
        raise DataError(f"{path}: there is no folder {str(path.parent)!r}")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes JSON objects as .jsonl, or flattened as .csv: {"scores": {"style": 3}} becomes a column scores.style."""
    check_output(path)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    else:
        flat = [_flattened(row) for row in rows]
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(flat[0]) if flat else [])
            writer.writeheader()
            writer.writerows(flat)


def _flattened(row: dict[str, Any]) -> dict[str, Any]:
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
