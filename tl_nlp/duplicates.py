"""Equal and near-equal texts, in flat memory: MinHash signatures, locality-sensitive bands, exact similarity of what
meets in a band."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

SIMILARITY = (
    0.8  # Jaccard, of two texts' sets of words and pairs of neighbouring words; one word changed in 14 is at it
)
_N_BANDS, _BAND = 25, 5  # a pair at 0.8 meets in a band with probability 0.9999, one at 0.3 with 0.06
_CHUNK = 10_000  # texts
_TAG = re.compile(r"<[a-zA-Z/][^<>]{0,200}>")
_WORD = re.compile(r"\w+")


def groups(texts: list[str], kind: np.ndarray | None = None) -> np.ndarray:
    """A number for each text, equal for those that are equal or nearly so (Broder 1997), directly or by steps.

    `kind`, a number for each text, keeps texts of different kinds apart. Texts without a word are like no other.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    kind = np.zeros(len(texts), np.int64) if kind is None else kind
    one, other = candidates(texts, kind)
    alike = np.zeros(len(one), bool)
    for start in range(0, len(one), _CHUNK):
        place = slice(start, start + _CHUNK)
        alike[place] = _similarity(texts, one[place], other[place]) >= SIMILARITY
    edges = coo_array((np.ones(alike.sum()), (one[alike], other[alike])), shape=(len(texts),) * 2)
    return connected_components(edges, directed=False)[1].astype(np.int64)


def candidates(texts: list[str], kind: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of texts, as two columns of row numbers, of which some band of the signature is equal."""
    parts = list(_band_keys(texts, kind))
    keys = np.concatenate([keys for _, keys in parts]) if parts else np.empty((0, _N_BANDS), np.uint64)
    rows = np.concatenate([rows for rows, _ in parts]) if parts else np.empty(0, np.int64)
    pairs = []
    for band in range(_N_BANDS):
        order = np.argsort(keys[:, band], kind="stable")
        is_start = np.diff(keys[order, band], prepend=keys[order[:1], band] + np.uint64(1)) != 0
        first = order[np.maximum.accumulate(np.where(is_start, np.arange(len(order)), 0))]
        for before, here in ((order[:-1], order[1:]), (first[1:], order[1:])):
            inside = ~is_start[1:]
            pairs.append(np.stack([rows[before[inside]], rows[here[inside]]], axis=1))
    found = np.unique(np.concatenate(pairs), axis=0) if pairs else np.empty((0, 2), np.int64)
    found = found[found[:, 0] != found[:, 1]]
    return found[:, 0], found[:, 1]


def _band_keys(texts: list[str], kind: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For chunks of texts: the rows that have words, and a number for each of their bands."""
    from rensa import RMinHash

    mix = np.random.default_rng(0).integers(1, 2**63, (_N_BANDS, _BAND + 1), dtype=np.uint64) | np.uint64(1)
    for start in range(0, len(texts), _CHUNK):
        words = _words(texts[start : start + _CHUNK])
        rows = start + np.flatnonzero(np.diff(words.indptr))
        if not len(rows):
            continue
        offsets = np.unique(words.indptr)  # without the empty ones
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(
            words.indices.astype(np.uint64), offsets.astype(np.uint64), _N_BANDS * _BAND, 42
        )
        signatures = np.asarray(matrix.to_rows(), np.uint64).reshape(len(rows), _N_BANDS, _BAND)
        yield rows, (signatures * mix[:, :_BAND]).sum(axis=2) + kind[rows].astype(np.uint64)[:, None] * mix[:, _BAND]


def _words(texts: list[str]) -> Any:
    """A sparse row for each text: 1 for each word and each pair of neighbouring words, hashed. Marks and case are left
    out, and HTML's tags."""
    from sklearn.feature_extraction.text import HashingVectorizer

    return HashingVectorizer(
        ngram_range=(1, 2),
        n_features=2**30,
        norm=None,
        binary=True,
        alternate_sign=False,
        preprocessor=plain,
        token_pattern=r"\S+",
    ).transform(texts)


def plain(text: str) -> str:
    """The words of a text in small letters, with one space between them; what hashes and similarities are made of."""
    return " ".join(_WORD.findall(_TAG.sub(" ", text).casefold()))


def _similarity(texts: list[str], one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Jaccard similarities of pairs of texts."""
    rows, places = np.unique(np.concatenate([one, other]), return_inverse=True)
    words = _words([texts[row] for row in rows])
    left, right = words[places[: len(one)]], words[places[len(one) :]]
    both = np.asarray(left.multiply(right).sum(axis=1)).ravel()
    either = np.asarray(left.sum(axis=1)).ravel() + np.asarray(right.sum(axis=1)).ravel() - both
    return np.divide(both, either, out=np.zeros_like(both), where=either > 0)
