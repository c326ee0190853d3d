"""Equal and near-equal texts, in flat memory: MinHash signatures, locality-sensitive bands, exact similarity of what
meets in a band."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

SIMILARITY = 0.8  # Jaccard, of the sets of words and pairs of neighbouring words; one word changed in 14 is at it
_N_BANDS, _BAND = 21, 6  # a pair at 0.8 meets in a band with probability 0.998, one at 0.4 with 0.08
_CHUNK = 10_000  # texts
_PAIRS = 50_000


def groups(texts: list[str], kind: np.ndarray | None = None, similarity: float = SIMILARITY) -> np.ndarray:
    """A number for each text, equal for those that are equal or nearly so (Broder 1997), directly or by steps.

    `kind`, a number for each text, keeps texts of different kinds apart. Empty texts are like no other.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    kind = np.zeros(len(texts), np.int64) if kind is None else kind
    one, other = candidates(texts, kind)
    alike = np.zeros(len(one), bool)
    for start in range(0, len(one), _PAIRS):
        place = slice(start, start + _PAIRS)
        alike[place] = _similarity(texts, one[place], other[place]) >= similarity
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
        rows, hashes = _shingles(texts[start : start + _CHUNK])
        if not len(rows):
            continue
        rows, offsets = np.unique(rows, return_index=True)
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(
            hashes, np.append(offsets, len(hashes)).astype(np.uint64), _N_BANDS * _BAND, 42
        )
        signatures = np.asarray(matrix.to_rows(), np.uint64).reshape(len(rows), _N_BANDS, _BAND)
        rows = rows + start
        yield rows, (signatures * mix[:, :_BAND]).sum(axis=2) + kind[rows].astype(np.uint64)[:, None] * mix[:, _BAND]


def _shingles(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """A text's words and pairs of neighbouring words, as 64-bit hashes: the row of each, in order, and its hash."""
    import pyarrow.compute as pc

    lists = pc.split_pattern(plain(texts), " ")
    counts = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    words = lists.flatten().dictionary_encode()
    digests = [hashlib.blake2b(word.encode(), digest_size=8).digest() for word in words.dictionary.to_pylist()]
    hashes = np.frombuffer(b"".join(digests), np.uint64)[words.indices.to_numpy()]
    rows = np.repeat(np.arange(len(texts)), counts)
    is_word = hashes != _EMPTY  # an empty text splits into one word that is empty
    rows, hashes = rows[is_word], hashes[is_word]
    is_pair = rows[1:] == rows[:-1]
    pairs = (hashes[:-1] * _ODD + hashes[1:])[is_pair]
    rows = np.concatenate([rows, rows[1:][is_pair]])
    order = np.argsort(rows, kind="stable")
    return rows[order], np.concatenate([hashes, pairs])[order]


_EMPTY = np.frombuffer(hashlib.blake2b(b"", digest_size=8).digest(), np.uint64)[0]
_ODD = np.uint64(0x9E3779B97F4A7C15)


def plain(texts: Sequence[str]) -> pa.Array:
    """The words of texts in small letters, one space between them, without marks and HTML's tags: what hashes and
    similarities are made of. Letters of scripts without spaces are words; a text of marks alone is one word."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = pc.utf8_lower(pa.array(texts, pa.large_string()))
    words = _replaced(column, pc.match_substring(column, "<"), r"<[a-z/][^<>]{0,200}>", " ")
    words = pc.replace_substring_regex(words, r"[^\pL\pM\pN_]+", " ")
    is_foreign = pc.invert(pc.string_is_ascii(words))
    words = _replaced(words, is_foreign, r" *(\p{Han}|\p{Hiragana}|\p{Katakana}|\p{Thai}) *", r" \1 ")
    words = pc.utf8_trim_whitespace(_replaced(words, is_foreign, " +", " "))
    return pc.if_else(pc.equal(words, ""), pc.replace_substring_regex(column, r"\s+", ""), words)


def _replaced(texts: pa.Array, where: pa.Array, pattern: str, replacement: str) -> pa.Array:
    """With the pattern replaced in the texts that may hold it, which are few."""
    import pyarrow.compute as pc

    if not pc.any(where).as_py():
        return texts
    return pc.replace_with_mask(texts, where, pc.replace_substring_regex(texts.filter(where), pattern, replacement))


def _similarity(texts: list[str], one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Jaccard similarities of pairs of texts."""
    from scipy.sparse import csr_array

    rows, places = np.unique(np.concatenate([one, other]), return_inverse=True)
    at, hashes = _shingles([texts[row] for row in rows])
    column = np.unique(hashes, return_inverse=True)[1]
    words = csr_array((np.ones(len(at)), (at, column)), shape=(len(rows), int(column.max(initial=-1)) + 1))
    words.sum_duplicates()
    words.data[:] = 1
    left, right = words[places[: len(one)]], words[places[len(one) :]]
    both = left.multiply(right).sum(axis=1)
    either = left.sum(axis=1) + right.sum(axis=1) - both
    return np.divide(both, either, out=np.zeros_like(both), where=either > 0)
