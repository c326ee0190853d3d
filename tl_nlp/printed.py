"""What a training has printed: how far it is, and what it said at last."""

from __future__ import annotations

import os
import re
from pathlib import Path

_TAIL = 64_000  # bytes of a log that are read, from its end


def tail(log: Path) -> list[str]:
    """The last whole lines of a log; a bar that is drawn anew is a line each time."""
    try:
        with log.open("rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - _TAIL)
            file.seek(start)
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return []
    return re.split(r"[\r\n]+", text)[1 if start else 0 :]


_BAR = re.compile(r"(?P<what>[^|]*?): +\d+%\|[^|]*\| *(?P<done>\d+)/(?P<total>\d+) \[[\d:]+<(?P<left>[\d:]+|\?)")
_STAGES = {
    "tokenizing": "reading the texts",
    "features of": "looking at the data",
    "training": "training",
    "Writing model": "saving the model",
    "predicting": "answering the test texts",
    "baselines": "comparing with simpler models",
}
"""What bars are called by what they begin with; others say nothing of how far a training is."""


def last_bar(lines: list[str]) -> tuple[str, float | None, float | None]:
    """The stage, the share of it that is done and the seconds it has left."""
    for line in reversed(lines):
        bar = _BAR.match(line)
        stage = next((_STAGES[begin] for begin in _STAGES if bar and bar["what"].startswith(begin)), None)
        if bar and stage:
            parts = [int(part) for part in bar["left"].split(":") if part != "?"]  # hours, minutes, seconds
            left = float(sum(part * 60**n for n, part in enumerate(reversed(parts)))) if parts else None
            return stage, int(bar["done"]) / max(int(bar["total"]), 1), left
    return "starting", None, None
