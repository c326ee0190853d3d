"""Files of rows ↔ tables, by suffix: csv, tsv, jsonl (each also .gz), parquet. Text stays text: "NA" and "007" are no
numbers.

A row that cannot be read is a `Reject`, with file, line and reason; the good rows around it are kept.
"""

from __future__ import annotations

import csv
import gzip
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet

from tl_nlp.errors import DataError

MAX_BYTES = 20 * 10**9  # of a file, unpacked
MAX_ROWS = 50_000_000
MAX_CHARACTERS = 1_000_000  # of a row
MAX_RATIO = 200  # of unpacked to packed bytes
_FREE_BYTES = 50_000_000  # unpacked, from which on the ratio is looked at
_CHUNK = 100_000  # rows
_MAX_UNCLOSED = 100  # quotes that do not close, after which a file is no csv


@dataclass(frozen=True)
class Reject:
    """A row that is left out: of which file or split, its line or row there, why, and what it holds."""

    source: str
    place: str
    reason: str
    content: str = ""

    def __str__(self) -> str:
        return f"{self.source}, {self.place}: {self.reason}"


def read_table(path: Path, rejects: list[Reject] | None = None) -> pa.Table:
    """The rows of a file. Columns of a csv or tsv are text; those of jsonl and parquet have their own types.

    Rows that cannot be read are added to `rejects`; without it the first one raises DataError, as does whatever makes
    the whole file unreadable.
    """
    packed = path.suffix.lower() == ".gz"
    suffix = (Path(path.stem) if packed else path).suffix.lower()
    reader = READERS.get(suffix)
    if reader is None or (packed and suffix == ".parquet"):
        raise DataError(f"{path}: files of rows end in {', '.join(READERS)}, not {path.suffix or 'nothing'!r}")
    if not path.is_file():
        raise DataError(f"no file {str(path)!r}; paths count from {Path.cwd()}")
    if path.stat().st_size > MAX_BYTES:
        raise DataError(f"{path} has over {MAX_BYTES / 1e9:g} GB; split it, or name a part of it")
    found: list[Reject] = []
    if packed:
        with _unpacked(path) as plain:
            table = reader(plain, str(path), found)
    else:
        table = reader(path, str(path), found)
    if found and rejects is None:
        raise DataError(str(found[0]))
    if not len(table) and not found:
        raise DataError(f"{path} holds no rows")
    _refuse_many(len(table), str(path))
    if rejects is not None:
        rejects += found
    return table


def _refuse_many(n_rows: int, name: str) -> None:
    if n_rows > MAX_ROWS:
        raise DataError(f"{name} holds over {MAX_ROWS:,} rows, which is the most that is read; split it")


def keep_few(found: list[Reject], n_rows: int, most: float, rejects: list[Reject]) -> None:
    """Adds what was found among `n_rows` to `rejects`, unless it is more than the share `most`: then DataError."""
    if len(found) > most * n_rows:
        raise DataError(
            f"{found[0]}"
            + (f" ({len(found)} of {n_rows} rows are rejected)" if len(found) > 1 else "")
            + f"; at most {100 * most:g} % may be: mend them, or raise data.max_rejects"
        )
    rejects += found


@contextmanager
def _unpacked(path: Path) -> Iterator[Path]:
    """A .gz file as a plain file that is there within the block. Raises DataError for a bomb or a damaged file."""
    n_bytes, most = 0, max(_FREE_BYTES, MAX_RATIO * path.stat().st_size)
    with tempfile.NamedTemporaryFile(prefix="tl_nlp-") as plain:
        try:
            with gzip.open(path) as file:
                while block := file.read(1 << 20):
                    n_bytes += len(block)
                    if n_bytes > min(most, MAX_BYTES):
                        raise DataError(
                            f"{path} unpacks to over {min(most, MAX_BYTES) / 1e6:,.0f} MB, which is no file of texts; "
                            "unpack it yourself if you trust it"
                        )
                    plain.write(block)
        except (OSError, EOFError) as error:
            raise DataError(f"{path} is no whole .gz file: {error}") from None
        plain.flush()
        yield Path(plain.name)


def _read_separated(path: Path, name: str, rejects: list[Reject], delimiter: str) -> pa.Table:
    names = _header(path, name, delimiter)
    batches, rows = [], []
    for number, record in _records(path, name, rejects, delimiter):
        if len(record) == len(names):
            rows.append(record)
        elif record:
            place = f"line {number}, column {names[len(record)] if len(record) < len(names) else names[-1]!r}"
            reason = f"{len(record)} fields where the first line names {len(names)} columns; quote fields that hold "
            rejects.append(Reject(name, place, f"{reason}{delimiter!r}", delimiter.join(record)[:200]))
        if len(rows) == _CHUNK:
            batches.append(_batch(rows, names))
            rows = []
            _refuse_many(len(batches) * _CHUNK, name)
    return pa.Table.from_batches([*batches, _batch(rows, names)])


def _batch(rows: list[list[str]], names: list[str]) -> pa.RecordBatch:
    columns = zip(*rows, strict=True) if rows else ((),) * len(names)
    return pa.record_batch([pa.array(values, pa.string()) for values in columns], names)


def _header(path: Path, name: str, delimiter: str) -> list[str]:
    with path.open("rb") as file:
        first = file.readline(MAX_CHARACTERS)
    try:
        names = next(csv.reader([first.decode("utf-8-sig")], delimiter=delimiter), [])
    except UnicodeDecodeError as error:
        raise DataError(f"{name}, line 1: {_not_utf8(first, error)}") from None
    if not names:
        raise DataError(f"{name} is empty; its first line names the columns")
    twice = [column for column in names if names.count(column) > 1]
    if twice:
        raise DataError(f"{name}: two columns are named {twice[0]!r}; rename one in the first line")
    return names


def _not_utf8(line: bytes, error: UnicodeDecodeError) -> str:
    byte = error.object[error.start] if isinstance(error.object, bytes) else line[error.start]
    return f"byte {byte:#04x} is not UTF-8; save the file as UTF-8 (iconv -f latin1 -t utf-8)"


def _lines(file: IO[bytes], name: str, rejects: list[Reject]) -> Iterator[tuple[int, str]]:
    """The lines of a file that are UTF-8 and not too long, with their numbers from 1."""
    number = 0
    while line := file.readline(MAX_CHARACTERS + 1):
        number += 1
        if len(line) > MAX_CHARACTERS:
            while line and not line.endswith(b"\n"):
                line = file.readline(1 << 20)
            rejects.append(Reject(name, f"line {number}", f"the line has over {MAX_CHARACTERS:,} bytes"))
            continue
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            rejects.append(
                Reject(name, f"line {number}, column {error.start + 1}", _not_utf8(line, error), repr(line[:200]))
            )


def _records(path: Path, name: str, rejects: list[Reject], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The records of a csv file behind its header, each with its first line; goes on behind a fault."""
    n_unclosed = 0
    with path.open("rb") as file:
        lines = _lines(file, name, rejects)
        next(lines)
        waiting: list[tuple[int, str]] = []
        while True:
            first = waiting.pop(0) if waiting else next(lines, None)
            if first is None:
                return
            taken, n_characters = [first], len(first[1])
            while True:
                try:
                    record = next(csv.reader([line for _, line in taken], delimiter=delimiter, strict=True), [])
                    yield first[0], record
                    break
                except csv.Error as error:
                    more = None
                    if "end of data" in str(error) and n_characters < MAX_CHARACTERS and len(taken) < 1000:
                        more = waiting.pop(0) if waiting else next(lines, None)
                    if more is not None:
                        taken.append(more)
                        n_characters += len(more[1])
                        continue
                    reason = str(error)
                    if "end of data" in reason:
                        reason = "a quote opens here and does not close"
                        n_unclosed += 1
                    if n_unclosed > _MAX_UNCLOSED:
                        raise DataError(
                            f"{name}, line {first[0]}: {reason}, as in {n_unclosed} lines before it"
                        ) from None
                    rejects.append(Reject(name, f"line {first[0]}", reason, first[1][:200].rstrip("\r\n")))
                    waiting = taken[1:] + waiting
                    break


def _read_lines(path: Path, name: str, rejects: list[Reject]) -> pa.Table:
    try:
        table = pyarrow.json.read_json(path, parse_options=pyarrow.json.ParseOptions(newlines_in_values=False))
        table.validate(full=True)  # the reader takes any bytes for text
    except pa.ArrowInvalid:
        return _read_lines_slowly(path, name, rejects)
    # the reader takes texts that look like dates for dates
    if any(pa.types.is_temporal(field.type) for field in table.schema):
        return _read_lines_slowly(path, name, rejects)
    return table


def _read_lines_slowly(path: Path, name: str, rejects: list[Reject]) -> pa.Table:
    """Line by line, for files whose values pyarrow does not take as they are, and to name the lines of faults."""
    rows: list[dict[str, Any]] = []
    with path.open("rb") as file:
        for number, line in _lines(file, name, rejects):
            try:
                row = json.loads(line.rstrip("\r\n")) if line.strip() else {}
            except json.JSONDecodeError as error:
                place, reason = f"line {number}, column {error.colno}", f"no JSON object: {error.msg}"
                rejects.append(Reject(name, place, reason, line[:200].rstrip("\r\n")))
                continue
            except RecursionError:
                rejects.append(Reject(name, f"line {number}", "JSON nested too deep", line[:200]))
                continue
            if isinstance(row, dict):
                rows += [row] if row else []
            else:
                rejects.append(Reject(name, f"line {number}", f"no JSON object but {type(row).__name__}", line[:200]))
    try:
        return pa.Table.from_pylist(rows)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(f"{name}: a column holds values of several types: {error}") from None


def _read_parquet(path: Path, name: str, rejects: list[Reject]) -> pa.Table:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            described = file.metadata
            n_bytes = sum(described.row_group(group).total_byte_size for group in range(described.num_row_groups))
            if n_bytes > MAX_BYTES or described.num_rows > MAX_ROWS:
                raise DataError(f"{name} unpacks to {described.num_rows:,} rows of {n_bytes / 1e9:,.1f} GB; split it")
            return file.read()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{name} is no parquet file: {error}") from None


READERS = {
    ".csv": lambda path, name, rejects: _read_separated(path, name, rejects, ","),
    ".tsv": lambda path, name, rejects: _read_separated(path, name, rejects, "\t"),
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
