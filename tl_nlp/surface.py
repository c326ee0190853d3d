"""What can be counted on the surface of a text: length, vocabulary, punctuation, errors, and words of its pair."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np

Family = Literal["length", "vocabulary", "punctuation", "errors", "overlap"]
Language = Literal["en", "de", "es", "fr", "it", "nl", "pt", "ru"]
"""Languages whose spelling is known."""

_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_GLUED = re.compile(r"[^\W\d_][,;!?][^\W\d_]")  # a mark without the space after it
_MARKS = ",.?!\"';:("
_CONTENT, _LONG, _VERY_LONG = 5, 7, 10  # letters


class _Seen:
    """One text taken apart, and its pair."""

    def __init__(self, text: str, pair: str, language: Language):
        self.text, self.pair, self.language = text, pair, language
        self.words = _WORD.findall(text)
        self.lower = [word.lower() for word in self.words]
        self.counts = Counter(self.lower)
        self.sentences = [part for part in _SENTENCE_END.split(text) if part.strip()]
        self.n_tokens = max(len(text.split()), 1)
        self.n_words, self.n_sentences = max(len(self.words), 1), max(len(self.sentences), 1)


def _length(seen: _Seen) -> dict[str, float]:
    return {
        "log words": math.log1p(seen.n_tokens),
        "root of words": math.sqrt(seen.n_tokens),
        "log sentences": math.log1p(seen.n_sentences),
        "words a sentence": math.log1p(seen.n_tokens / seen.n_sentences),
    }


def _vocabulary(seen: _Seen) -> dict[str, float]:
    letters = [len(word) for word in seen.words]
    return {
        "log different words": math.log1p(len(seen.counts)),
        "Guiraud's R": len(seen.counts) / math.sqrt(seen.n_words),  # different words per root of words (Guiraud 1954)
        "letters a word": sum(letters) / seen.n_words,
        "long words": sum(n >= _LONG for n in letters) / seen.n_words,
        "very long words": sum(n >= _VERY_LONG for n in letters) / seen.n_words,
        "words used once": sum(count == 1 for count in seen.counts.values()) / seen.n_words,
        "different long words": math.sqrt(sum(len(word) >= _LONG for word in seen.counts)),
    }


def _punctuation(seen: _Seen) -> dict[str, float]:
    return {f"{mark} in 100 words": _per_100(seen.text.count(mark), seen.n_tokens) for mark in _MARKS}


def _errors(seen: _Seen) -> dict[str, float]:
    known = _spelling(seen.language)
    unknown = sum(word.islower() and len(word) > 1 and word not in known for word in seen.words)
    return {
        "unknown words": math.sqrt(unknown),
        "unknown in 100 words": _per_100(unknown, seen.n_words),
        "different known words": math.sqrt(sum(word in known for word in seen.counts)),
        "sentences begun in lower case": sum(one[0].islower() for one in seen.sentences) / seen.n_sentences,
        "lone i in 100 words": _per_100(seen.words.count("i"), seen.n_words),
        "doubled in 100 words": _per_100(
            sum(one == next_ for one, next_ in zip(seen.lower, seen.lower[1:], strict=False)), seen.n_words
        ),
        "glued in 100 words": _per_100(len(_GLUED.findall(seen.text)), seen.n_words),
    }


def _overlap(seen: _Seen) -> dict[str, float]:
    asked = {word.lower() for word in _WORD.findall(seen.pair)}
    both = asked & seen.counts.keys()
    long = {word for word in asked if len(word) >= _CONTENT}
    return {
        "share of the pair's words": len(both) / max(len(asked), 1),
        "share of the pair's longer words": len(both & long) / max(len(long), 1),
        "share that the pair has": len(both) / max(len(seen.counts), 1),
        "share of the pair's stems": len(_stems(asked) & _stems(seen.counts)) / max(len(_stems(asked)), 1),
    }


def _stems(words: Iterable[str]) -> set[str]:
    """The beginnings of longer words: what endings leave alone, near enough to count by."""
    return {word[:_CONTENT] for word in words if len(word) >= _CONTENT}


def _per_100(count: int, n_words: int) -> float:
    """A root, for counts have long tails."""
    return math.sqrt(100 * count / n_words)


@lru_cache
def _spelling(language: Language) -> Any:
    """Words of a language, as a container."""
    from spellchecker import SpellChecker

    return SpellChecker(language=language).word_frequency


_FAMILIES: dict[Family, Callable[[_Seen], dict[str, float]]] = {
    "length": _length,
    "vocabulary": _vocabulary,
    "punctuation": _punctuation,
    "errors": _errors,
    "overlap": _overlap,
}
assert tuple(_FAMILIES) == get_args(Family)


def measured(
    texts: Sequence[str], pairs: Sequence[str] | None, families: Sequence[Family], language: Language
) -> np.ndarray:
    """Float array of shape (texts, features): those of each family, in the order of `families`."""
    values = []
    for text, pair in zip(texts, pairs or [""] * len(texts), strict=True):
        seen = _Seen(text, pair or "", language)
        values.append([value for family in families for value in _FAMILIES[family](seen).values()])
    return np.asarray(values, float).reshape(len(texts), -1)


def names(families: Sequence[Family]) -> list[str]:
    """What `measured` measures."""
    return [name for family in families for name in _FAMILIES[family](_Seen("", "", "en"))]


Standards = dict[str, tuple[tuple[float, float], ...]]
"""Mean and standard deviation of each feature, for groups and under "" for all texts."""


def fit_standards(values: np.ndarray, inside: Mapping[str, np.ndarray], fewest: int) -> Standards:
    """Of each group of `fewest` rows and more, and of all; `inside` tells which rows are of a group, and of "" all."""
    return {
        name: tuple(
            (round(float(mean), 6), round(float(deviation), 6))
            for mean, deviation in zip(values[there].mean(axis=0), values[there].std(axis=0), strict=True)
        )
        for name, there in inside.items()
        if there.sum() >= fewest or not name
    }


def standardized(values: np.ndarray, groups: Sequence[str], standards: Standards) -> np.ndarray:
    """How far each feature is from what is usual in the text's group, in standard deviations, at most `_MOST`."""
    usual = np.asarray([standards.get(group, standards[""]) for group in groups]).reshape(*values.shape, 2)
    deviation = np.where(usual[..., 1] > 1e-6, usual[..., 1], np.inf)  # a feature that is constant tells nothing
    return np.clip((values - usual[..., 0]) / deviation, -_MOST, _MOST)


_MOST = 4.0
