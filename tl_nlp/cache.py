"""What is kept on disk from run to run, by what it was computed from: in $TL_NLP_CACHE, else the user's cache folder.
Where that is set to nothing, nothing is kept."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, TypeAdapter, ValidationError
from safetensors import SafetensorError

MAX_BYTES = 2 * 10**9  # on disk; the oldest files go first
_KEPT = ("features/*/*/*.safetensors", "made/*/*.json")

Made = TypeVar("Made")


def cache_folder(*names: str) -> Path | None:
    """A folder of the cache; None where nothing is kept."""
    root = _root()
    return root.joinpath(*names) if root else None


def keep(file: Path, write: Callable[[Path], Any], what: str) -> None:
    """Writes a file of the cache, whole or not at all; where it cannot be written, that is told."""
    partial = file.with_suffix(".partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        partial.replace(file)
        _forget_oldest()
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            partial.unlink()
        print(f"{what} are not kept for the next run: {error}", file=sys.stderr)


def made_of(name: str, *inputs: Any) -> Path | None:
    """The file of what is made under a `name` of these inputs by the code as it is now; None where nothing is kept.

    Inputs are told apart by content: tables, arrays, models of Pydantic, dictionaries of such, and what has a `repr`
    that tells all.
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
        return kind.validate_json(file.read_bytes())
    made = make()
    keep(file, lambda path: path.write_bytes(kind.dump_json(made)), file.parent.name)
    return made


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, dict):
        digest.update(f"{len(value)} keys".encode())
        for key, one in value.items():
            _feed(digest, key)
            _feed(digest, one)
        return
    if isinstance(value, pa.Table):
        parts: list[Any] = [value.schema.serialize(), *(batch.serialize() for batch in value.to_batches())]
    elif isinstance(value, np.ndarray):
        parts = [f"{value.dtype} {value.shape}".encode(), np.ascontiguousarray(value).view(np.uint8)]
    elif isinstance(value, BaseModel):
        parts = [f"{type(value).__qualname__} {value.model_dump_json()}".encode()]
    else:
        parts = [repr(value).encode("utf-8", "surrogatepass")]
    for part in parts:
        digest.update(f"{memoryview(part).nbytes} bytes".encode())
        digest.update(part)


@lru_cache
def _code() -> bytes:
    """Of this package, and what of others a number may hang on."""
    digest = hashlib.sha256()
    for name in ("numpy", "pyarrow", "pydantic", "scikit-learn", "scipy", "py3langid", "transformers"):
        digest.update(f"{name} {version(name)}".encode())
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
