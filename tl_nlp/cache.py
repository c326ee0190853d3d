"""What is kept on disk from run to run, by what it was computed from: in $TL_NLP_CACHE, else the user's cache folder.
Where that is set to nothing, nothing is kept."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import sys
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import lru_cache, partial
from importlib.metadata import PackageNotFoundError, requires, version
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, TypeAdapter, ValidationError

MAX_BYTES = 2 * 10**9  # on disk; what was not used for the longest time goes first
_PIECE = 1000  # items of a list
_KEPT = ("features/*/*/*.safetensors", "made/*/*.json", "made/*/*.arrow")

Made = TypeVar("Made")


def cache_folder(*names: str) -> Path | None:
    """A folder of the cache; None where nothing is kept."""
    root = _root()
    return root.joinpath(*names) if root else None


def keep(file: Path, write: Callable[[Path], Any], what: str) -> None:
    """Writes a file of the cache, whole or not at all; where it cannot be written, that is told."""
    partial = file.with_name(f"{uuid.uuid4().hex}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        partial.chmod(0o600)  # it may tell what the texts were
        partial.replace(file)
        with suppress(FileNotFoundError):  # another process makes room too
            _forget_oldest()
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        print(f"{what} are not kept for the next run: {error}", file=sys.stderr)


def touch(file: Path) -> None:
    """Notes that a file of the cache was used."""
    with suppress(OSError):
        os.utime(file)


def made_of(name: str, *inputs: Any) -> Path | None:
    """The file of what is made under a `name` of these inputs by the code as it is now; None where nothing is kept.

    Inputs are told apart by content: tables, arrays, models of Pydantic, tuples and dictionaries of such, and what has
    a `repr` that tells all, which an array in a list has not.
    """
    folder = cache_folder("made", name)
    if folder is None:
        return None
    digest = hashlib.sha256(_code())
    for value in inputs:
        _feed(digest, value)
    return folder / f"{digest.hexdigest()[:32]}.json"


def remembered(file: Path | None, kind: TypeAdapter[Made], make: Callable[[], Made]) -> Made:
    """What a file of the cache holds, else what `make` gives, which is kept there as JSON of a `kind`."""
    if file is None:
        return make()
    with suppress(OSError, ValidationError):  # a cache: what is damaged is made again
        found = kind.validate_json(file.read_bytes())
        touch(file)
        return found
    made = make()
    keep(file, lambda path: path.write_bytes(kind.dump_json(made)), file.parent.name)
    return made


def remembered_table(file: Path | None, make: Callable[[], pa.Table]) -> pa.Table:
    """What a file of the cache holds, which stays on disk until it is read, else what `make` gives, which is kept there
    as a stream of Arrow."""
    if file is None:
        return make()
    file = file.with_suffix(".arrow")
    with suppress(OSError, pa.ArrowException):
        found = pa.ipc.open_stream(pa.memory_map(str(file))).read_all()
        touch(file)
        return found
    made = make()
    keep(file, partial(_write_table, made), file.parent.name)
    return made


def _write_table(table: pa.Table, file: Path) -> None:
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, dict | tuple):
        digest.update(f"{type(value)} of {len(value)}".encode())
        for one in value.items() if isinstance(value, dict) else value:
            _feed(digest, one)
        return
    parts: Iterable[Any]
    if isinstance(value, pa.Table):
        value = pa.table([_without_codes(column) for column in value.columns], value.column_names)
        parts = chain([value.schema.serialize()], (batch.serialize() for batch in value.to_batches()))
    elif isinstance(value, np.ndarray):
        parts = [f"{value.dtype} {value.shape}".encode(), np.ascontiguousarray(value).view(np.uint8)]
    elif isinstance(value, BaseModel):
        parts = [f"{type(value).__qualname__} {value.model_dump_json()}".encode()]
    elif isinstance(value, list):  # a column of texts may be long
        pieces = (value[start : start + _PIECE] for start in range(0, len(value), _PIECE))
        parts = chain([str(len(value)).encode()], (_told(piece) for piece in pieces))
    else:
        parts = [_told(value)]
    for part in parts:
        digest.update(f"{memoryview(part).nbytes} bytes".encode())
        digest.update(part)


def _without_codes(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The values themselves, since a batch tells of a dictionary's nothing but their numbers."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _told(value: Any) -> bytes:
    return repr(value).encode("utf-8", "surrogatepass")


@lru_cache
def _code() -> bytes:
    """Of this package, and which versions of others it has."""
    digest = hashlib.sha256(platform.python_version().encode())
    with suppress(PackageNotFoundError):
        for needed in sorted({re.split(r"[^\w.-]", one)[0] for one in requires("tl-nlp") or []}):
            with suppress(PackageNotFoundError):
                digest.update(f"{needed} {version(needed)}".encode())
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.digest()


def _root() -> Path | None:
    named = os.environ.get("TL_NLP_CACHE")
    if named is not None:
        return Path(named) if named else None
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tl_nlp"


def _forget_oldest() -> None:
    root = _root()
    if root is None:
        return
    files = [file for pattern in _KEPT for file in root.glob(pattern)]
    total = 0
    for file in sorted(files, key=lambda file: -file.stat().st_mtime):
        total += file.stat().st_size
        if total > MAX_BYTES:
            file.unlink(missing_ok=True)
