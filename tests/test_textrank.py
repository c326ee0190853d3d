"""The sentences of a text that are most like its others."""

import pytest

from tl_nlp.textrank import textrank


def test_textrank_prefers_what_others_say_too() -> None:
    rank = textrank(["the plot of the film is good", "a good film with a plot", "bananas are yellow", "good plot"])
    assert rank.argmin() == 2
    assert rank.sum() == pytest.approx(1)
