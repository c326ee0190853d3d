"""SIGINT and SIGTERM: they stop at once what has nothing to lose, and a training at its next step."""

from __future__ import annotations

import _thread
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A signal that acts at once. No `except Exception` of a library takes it for a fault of its own."""

    def __init__(self, number: int, message: str):
        self.number = number
        super().__init__(message)


@contextmanager
def stopping() -> Iterator[None]:
    """Within the block either signal raises Stopped."""

    def stop(number: int, frame: Any) -> None:
        raise Stopped(number, f"stopped by {signal.Signals(number).name}")

    with _handled(stop):
        yield


@contextmanager
def held() -> Iterator[list[int]]:
    """Within the block the first signal is put into the list it yields, and a second one raises Stopped."""
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        if received:
            raise Stopped(number, "stopped at once by a second signal")
        received.append(number)

    with _handled(note):
        yield received


@contextmanager
def _handled(handler: Any) -> Iterator[None]:
    """The handler of both signals within the block; only a process's main thread can have one. What it raises while
    Python cleans up, in a `__del__`, goes no further than there: such a signal comes again a moment later."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def lost(unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, Stopped):
            _thread.start_new_thread(_again, (unraisable.exc_value.number,))
        else:
            told_before(unraisable)

    before = {number: signal.getsignal(number) for number in _NUMBERS}
    told_before, sys.unraisablehook = sys.unraisablehook, lost
    for number in _NUMBERS:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, theirs in before.items():
            signal.signal(number, theirs)
        sys.unraisablehook = told_before


def _again(number: int) -> None:
    time.sleep(0.01)
    signal.pthread_kill(threading.main_thread().ident or 0, number)
