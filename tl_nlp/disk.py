"""A folder on a disk: room for what is to be written there, one process that writes, and writes that are complete or
absent."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tl_nlp.errors import LockedError, NoRoomError

_LOCK = ".lock"
_PATIENCE = 0.5  # seconds; whoever asks whether a lock is held holds it for a moment


@contextmanager
def room(folder: Path, n_bytes: int, what: str) -> Iterator[None]:
    """Within the block `what`, of so many bytes, is written under `folder`.

    Raises NoRoomError before it begins where fewer are free, and where the disk fills up meanwhile.
    """
    if shutil.disk_usage(folder).free < n_bytes:
        raise _no_room(folder, n_bytes, what)
    try:
        yield
    except Exception as error:
        if isinstance(error, NoRoomError) or not _is_full(error):
            raise
        raise _no_room(folder, n_bytes, what, f" ({error})") from None


def _no_room(folder: Path, n_bytes: int, what: str, error: str = "") -> NoRoomError:
    free = shutil.disk_usage(folder).free
    needed = f"{n_bytes:,} needed" if n_bytes > free else "and more are needed"
    return NoRoomError(f"no room for {what}: {free:,} bytes are free under {folder}, {needed}{error}")


def _is_full(error: Exception) -> bool:
    number = getattr(error, "errno", None)  # safetensors and pyarrow tell it in words alone
    return number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)


def sync(path: Path) -> None:
    """Returns once the content of a file, or the names in a folder, would outlive the machine's power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Writes a file whole: a reader finds what was there before, or all of it."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, "utf-8")
    sync(partial)
    partial.replace(path)
    sync(path.parent)


@contextmanager
def writing(folder: Path) -> Iterator[Path]:
    """A folder to write into that becomes `folder` once the block ends well: complete or absent.

    One that is there before changes places with it, in one call of the system where it has such a call.
    """
    partial, old = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.old")
    for left in (partial, old):
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in partial.rglob("*"):
            sync(path)
        sync(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if folder.exists() and not _exchanged(partial, folder):
        folder.replace(old)
    if not folder.exists():
        partial.replace(folder)
    sync(folder.parent)
    for left in (partial, old):
        shutil.rmtree(left, ignore_errors=True)


def remove(folder: Path) -> None:
    """Removes a folder: at any moment it is there whole, or not under its name any more."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    folder.replace(old)
    shutil.rmtree(old, ignore_errors=True)


def _exchanged(one: Path, other: Path) -> bool:
    """Whether the two have changed places: renameat2 of Linux, on file systems that know it."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and not rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE)


_HERE, _EXCHANGE = -100, 2  # AT_FDCWD, RENAME_EXCHANGE


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within the block no other process has this folder's lock, which the system takes back when its holder dies,
    however it does. Raises LockedError."""
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not _taken(lock, fcntl.LOCK_EX):
            raise LockedError(f"{folder} is being written by {_holder(folder)}; wait for it, or stop it")
        os.ftruncate(lock, 0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        os.pwrite(lock, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}).encode(), 0)
        yield
    finally:
        os.close(lock)


def is_locked(folder: Path) -> bool:
    """Whether a living process has the folder's lock."""
    try:
        lock = os.open(folder / _LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def was_locked(folder: Path) -> bool:
    """Whether a process has, or had, the folder's lock, and has not forgotten it."""
    return (folder / _LOCK).exists()


def forget_lock(folder: Path) -> None:
    """For a folder that nobody will write again."""
    with suppress(OSError):
        (folder / _LOCK).unlink()


def _taken(lock: int, kind: int) -> bool:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)


def _holder(folder: Path) -> str:
    try:
        told = json.loads((folder / _LOCK).read_text("utf-8"))
        return f"process {told['pid']} on {told['host']}, since {told['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
