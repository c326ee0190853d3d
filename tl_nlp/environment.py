"""What a run is made with: versions, revision, cores."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any


def versions() -> dict[str, str]:
    """Of Python and of the packages that a result depends on, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in ("tl-nlp", "torch", "transformers", "datasets", "peft", "accelerate", "evaluate", "bitsandbytes"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def n_cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


TILE = 16
"""Tokens; of windows so many, or a multiple, CPUs add up a row of a product in one order, whatever else is in the
pass."""


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What of two environment.json computes differently: versions, device and threads, processes."""
    parts = [(name, each) for name, each in (("device_name", "device"), ("n_processes", "number of processes"))]
    told = [
        f"{word} was {before.get(name)} and is {now.get(name)}"
        for name, word in parts
        if before.get(name) != now.get(name)
    ]
    old, new = before.get("versions", {}), now.get("versions", {})
    was, is_now = ("compiled" if one.get("compiled") else "not compiled" for one in (before, now))
    if was != is_now:
        told.append(f"training steps were {was} and are {is_now}")
    return told + [
        f"{name} was {old[name]} and is {new[name]}" for name in old if name in new and old[name] != new[name]
    ]


def git_revision() -> str | None:
    """The commit that is checked out in the working directory, where there is one."""
    try:
        asked = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() or None
