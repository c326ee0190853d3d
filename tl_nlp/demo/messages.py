"""What the page says when something does not go, and how a text that was typed becomes a row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

from tl_nlp.errors import TLError
from tl_nlp.serving import Row


@contextmanager
def as_message() -> Iterator[None]:
    """An error of ours as a message of the page."""
    try:
        yield
    except TLError as error:
        raise gr.Error(str(error), print_exception=False) from None


def typed(text: str | None, pair: str | None = None, group: str | None = None) -> Row:
    """The row of what was typed. Raises DataError."""
    return Row(text or "", pair if pair and pair.strip() else None, group or None)
