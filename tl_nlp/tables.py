"""Files of rows ↔ tables, by suffix: csv, tsv, jsonl (each also .gz), parquet. Text stays text: "NA" and "007" are no
numbers.

A row that cannot be read is a `Reject`, with file, line and reason; the good rows around it are kept.
"""

from __future__ import annotations

import csv
import gzip
import json
import tempfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pyarrow.parquet

from tl_nlp.errors import DataError
from tl_nlp.rejects import Reject, Rejects

MAX_BYTES = 20 * 10**9  # of a file, unpacked
MAX_ROWS = 50_000_000
MAX_CHARACTERS = 1_000_000  # of a row
MAX_RATIO = 200  # of unpacked to packed bytes
_FREE_BYTES = 50_000_000  # unpacked, from which on the ratio is looked at
_CHUNK = 100_000  # rows
_MAX_UNCLOSED = 100  # quotes that do not close, after which a file is no csv


NUMBER = "number in the file"
"""The column that `read_table` adds where it is asked to: the line of each row in its file, or its place in a parquet
file, from 1."""


def read_table(path: Path, rejects: Rejects | None = None, *, numbered: bool = False) -> pa.Table:
    """The rows of a file. Columns of a csv or tsv are text; those of jsonl and parquet have their own types.

    Rows that cannot be read are added to `rejects`; without it the first one raises DataError, as does whatever makes
    the whole file unreadable. `numbered` adds the column `NUMBER`.
    """
    found: list[Reject] = []
    with _plain(path) as (plain, suffix):
        table = READERS[suffix](plain, str(path), found)
    if found and rejects is None:
        raise DataError(str(found[0]))
    if not len(table) and not found:
        raise DataError(f"{path} holds no rows")
    _refuse_many(len(table), str(path))
    if rejects is not None:
        rejects += found
        rejects.n_rows[str(path)] += len(table) + len(found)
    return table if numbered else table.drop_columns(NUMBER)


def read_pieces(path: Path, n_rows: int) -> Iterator[pa.Table]:
    """The rows of a file as `read_table` gives them, at most so many at a time, so that memory stays flat whatever the
    file's size. Raises DataError where the first row comes that cannot be read."""
    found: list[Reject] = []
    n_read = 0
    with _plain(path) as (plain, suffix):
        for table in _PIECES[suffix](plain, str(path), found, n_rows):
            if found:
                raise DataError(str(found[0]))
            n_read += len(table)
            if len(table):
                yield table.drop_columns(NUMBER)
    if not n_read:
        raise DataError(f"{path} holds no rows")


@contextmanager
def _plain(path: Path) -> Iterator[tuple[Path, str]]:
    """A file of rows within the block, unpacked, and the suffix of its kind. Raises DataError for what is none."""
    packed = path.suffix.lower() == ".gz"
    suffix = (Path(path.stem) if packed else path).suffix.lower()
    if suffix not in READERS or (packed and suffix == ".parquet"):
        raise DataError(f"{path}: files of rows end in {', '.join(READERS)}, not {path.suffix or 'nothing'!r}")
    if not path.is_file():
        raise DataError(f"no file {str(path)!r}; paths count from {Path.cwd()}")
    if path.stat().st_size > MAX_BYTES:
        raise DataError(f"{path} has over {MAX_BYTES / 1e9:g} GB; split it, or name a part of it")
    with _unpacked(path) if packed else nullcontext(path) as plain:
        yield plain, suffix


def _refuse_many(n_rows: int, name: str) -> None:
    if n_rows > MAX_ROWS:
        raise DataError(f"{name} holds over {MAX_ROWS:,} rows, which is the most that is read; split it")


def _numbered(table: pa.Table, numbers: Any) -> pa.Table:
    if NUMBER in table.column_names:
        table = table.drop_columns(NUMBER)
    return table.append_column(NUMBER, pa.array(numbers, pa.int64()))


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
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path} is no whole .gz file: {error}") from None
        plain.flush()
        yield Path(plain.name)


def _separated(path: Path, name: str, rejects: list[Reject], n_rows: int, delimiter: str) -> Iterator[pa.Table]:
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CHARACTERS))
    names = _header(path, name, delimiter)
    rows: list[list[str]] = []
    numbers: list[int] = []
    n_read = 0
    for number, record in _records(path, name, rejects, delimiter):
        if len(record) == len(names):
            rows.append(record)
            numbers.append(number)
        elif record:
            column = names[len(record)] if len(record) < len(names) else names[-1]
            reason = f"{len(record)} fields where the first line names {len(names)} columns; quote fields that hold "
            place = f"line {number}, column {column!r}"
            rejects.append(Reject(name, place, f"{reason}{delimiter!r}", delimiter.join(record)[:200]))
        if len(rows) == n_rows:
            yield _of_texts(rows, names, numbers)
            n_read += n_rows
            rows, numbers = [], []
            _refuse_many(n_read, name)
    yield _of_texts(rows, names, numbers)


def _of_texts(rows: list[list[str]], names: list[str], numbers: list[int]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else ((),) * len(names)
    return _numbered(pa.table([pa.array(values, pa.string()) for values in columns], names), numbers)


def _header(path: Path, name: str, delimiter: str) -> list[str]:
    with path.open("rb") as file:
        first = file.readline(MAX_CHARACTERS)
    try:
        names = next(csv.reader([first.decode("utf-8-sig")], delimiter=delimiter), [])
    except UnicodeDecodeError as error:
        raise DataError(f"{name}, line 1: {_not_utf8(first, error)}") from None
    except csv.Error as error:
        raise DataError(f"{name}, line 1: {error}; lines end in a line feed, and a field with one is quoted") from None
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
        waiting: deque[tuple[int, str]] = deque()
        while first := _next(waiting, lines):
            taken, n_characters, is_open = [first], len(first[1]), first[1].count('"') % 2 == 1
            while True:
                try:
                    yield first[0], next(csv.reader([line for _, line in taken], delimiter=delimiter, strict=True), [])
                    break
                except csv.Error as error:
                    reason = str(error)
                more: tuple[int, str] | None = None
                while "end of data" in reason and n_characters < MAX_CHARACTERS and (more := _next(waiting, lines)):
                    taken.append(more)
                    n_characters += len(more[1])
                    is_open ^= more[1].count('"') % 2 == 1
                    if not is_open:  # a field is whole only where its quotes are even
                        break
                if more is not None:
                    continue
                if "end of data" in reason:
                    reason = "a quote opens here and does not close"
                    n_unclosed += 1
                if n_unclosed > _MAX_UNCLOSED:
                    raise DataError(f"{name}, line {first[0]}: {reason}, as in {n_unclosed} lines before it")
                rejects.append(Reject(name, f"line {first[0]}", reason, first[1][:200].rstrip("\r\n")))
                waiting.extendleft(reversed(taken[1:]))
                break


def _next(waiting: deque[tuple[int, str]], lines: Iterator[tuple[int, str]]) -> tuple[int, str] | None:
    return waiting.popleft() if waiting else next(lines, None)


def _read_lines(path: Path, name: str, rejects: list[Reject]) -> pa.Table:
    try:
        table = pyarrow.json.read_json(path, parse_options=pyarrow.json.ParseOptions(newlines_in_values=False))
        table.validate(full=True)  # the reader takes any bytes for text
    except pa.ArrowInvalid:
        return _read_lines_slowly(path, name, rejects)
    is_whole = len(table) == _count_lines(path) and all(_is_exact(table[column]) for column in table.column_names)
    return _numbered(table, range(1, len(table) + 1)) if is_whole else _read_lines_slowly(path, name, rejects)


def _count_lines(path: Path) -> int:
    n_lines, last = 0, b"\n"
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            n_lines += block.count(b"\n")
            last = block[-1:]
    return n_lines + (last != b"\n")


def _is_exact(column: pa.ChunkedArray) -> bool:
    """Whether pyarrow has taken the values as they are: it makes dates of texts that look so, and rounds integers that
    are too large."""
    if pa.types.is_list(column.type):
        return _is_exact(pc.list_flatten(column))
    if pa.types.is_struct(column.type):
        return all(_is_exact(pc.struct_field(column, place)) for place in range(column.type.num_fields))
    if pa.types.is_floating(column.type):
        return not pc.any(pc.greater_equal(pc.abs(column), 2.0**53)).as_py()
    return not pa.types.is_temporal(column.type)


def _read_lines_slowly(path: Path, name: str, rejects: list[Reject]) -> pa.Table:
    """For files whose values pyarrow does not take as they are, and to name the lines of faults."""
    with path.open("rb") as file:
        return _of_objects(_lines(file, name, rejects), name, rejects)


def _objects(path: Path, name: str, rejects: list[Reject], n_rows: int) -> Iterator[pa.Table]:
    with path.open("rb") as file:
        lines = _lines(file, name, rejects)
        while first := next(lines, None):
            yield _of_objects(chain([first], islice(lines, n_rows - 1)), name, rejects)


def _of_objects(lines: Iterable[tuple[int, str]], name: str, rejects: list[Reject]) -> pa.Table:
    """The JSON objects of lines."""
    rows: list[dict[str, Any]] = []
    numbers = []
    for number, line in lines:
        if not line.strip():
            continue
        place, reason = f"line {number}", None
        try:
            row = json.loads(line.rstrip("\r\n"))
            if not isinstance(row, dict):
                reason = f"no JSON object but {type(row).__name__}"
            elif "\\u" in line:
                json.dumps(row, ensure_ascii=False).encode()
        except json.JSONDecodeError as error:
            place, reason = f"line {number}, column {error.colno}", f"no JSON object: {error.msg}"
        except RecursionError:
            reason = "JSON nested too deep"
        except UnicodeEncodeError:
            reason = "it holds half of a surrogate pair, which is no character"
        if reason is None:
            rows.append(row)
            numbers.append(number)
        else:
            rejects.append(Reject(name, place, reason, line[:200].rstrip("\r\n")))
    names = dict.fromkeys(key for row in rows for key in row)
    columns = {key: _column([row.get(key) for row in rows], key, numbers, name) for key in names}
    return _numbered(pa.table(columns) if columns else pa.table({"": pa.nulls(len(rows))}), numbers)


def _column(values: list[Any], key: str, numbers: list[int], name: str) -> pa.Array:
    """Values of one type as they are; numbers among texts as text."""
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        nested = [number for number, value in zip(numbers, values, strict=True) if isinstance(value, dict | list)]
        if nested:
            raise DataError(
                f"{name}, line {nested[0]}: {key!r} is a list or an object there and something else in other lines"
            ) from None
    is_text = [isinstance(value, str) or value is None or value != value for value in values]  # NaN is not there
    texts = [value if ready else json.dumps(value) for value, ready in zip(values, is_text, strict=True)]
    return pa.array(texts, pa.string(), from_pandas=True)


def _parquet(path: Path, name: str, rejects: list[Reject], n_rows: int) -> Iterator[pa.Table]:
    most = min(MAX_BYTES, max(_FREE_BYTES, MAX_RATIO * path.stat().st_size))
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _refuse_many(file.metadata.num_rows, name)
            names = file.schema_arrow.names
            if twice := [column for column in names if names.count(column) > 1]:
                raise DataError(f"{name}: two columns are named {twice[0]!r}; rename one")
            n_bytes = n_read = 0
            for batch in file.iter_batches(n_rows):
                n_bytes += batch.nbytes
                if n_bytes > most:
                    raise DataError(f"{name} unpacks to over {most / 1e6:,.0f} MB; split it, or write it as jsonl")
                table = pa.Table.from_batches([batch], file.schema_arrow)
                table.validate(full=True)
                yield _numbered(table, range(n_read + 1, n_read + len(table) + 1))
                n_read += len(table)
            if not n_read:
                yield _numbered(file.schema_arrow.empty_table(), [])
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{name} is no parquet file: {error}") from None


def as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of single values as texts; whole numbers without a point."""
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)  # not a number is not there
    whole = pa.types.is_floating(column.type) and pc.all(
        pc.and_(pc.less(pc.abs(column), 2**53), pc.equal(column, pc.floor(column)))
    )
    if whole and whole.as_py():
        column = column.cast(pa.int64())  # 3.0 is the label "3"
    return column.cast(pa.string())


_PIECES: dict[str, Callable[[Path, str, list[Reject], int], Iterator[pa.Table]]] = {
    ".csv": partial(_separated, delimiter=","),
    ".tsv": partial(_separated, delimiter="\t"),
    ".jsonl": _objects,
    ".parquet": _parquet,
}


def _whole(suffix: str, path: Path, name: str, rejects: list[Reject]) -> pa.Table:
    return pa.concat_tables(_PIECES[suffix](path, name, rejects, _CHUNK))


READERS = {suffix: partial(_whole, suffix) for suffix in _PIECES} | {".jsonl": _read_lines}
"""What reads a file of each suffix at once."""
