"""SIGINT and SIGTERM: they stop at once what has nothing to lose, and a training at its next step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A signal that acts at once. No `except Exception` of a library takes it for a fault of its own."""

    def __init__(self, number: int, message: str):
        self.number = number
        super().__init__(message)


_told: list[int] = []  # signals within the outer `stopping`


@contextmanager
def stopping() -> Iterator[None]:
    """Within the block either signal raises Stopped."""

    def stop(number: int, frame: Any) -> None:
        _told.append(number)
        _stop(number)

    try:
        with _handled(stop):
            yield
    finally:
        _told.clear()


def _stop(number: int) -> None:
    raise Stopped(number, f"stopped by {signal.Signals(number).name}")


@contextmanager
def held() -> Iterator[list[int]]:
    """Within the block the first signal is put into the list it yields; a second one raises Stopped, and so does one
    from before the block that was lost: what is raised while Python cleans up goes no further."""
    if _told:
        _stop(_told[0])
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        if received:
            raise Stopped(number, "stopped at once by a second signal")
        received.append(number)

    with _handled(note):
        yield received


@contextmanager
def _handled(handler: Any) -> Iterator[None]:
    """The handler of both signals within the block; only a process's main thread can have one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _NUMBERS}
    for number in _NUMBERS:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, theirs in before.items():
            signal.signal(number, theirs)
