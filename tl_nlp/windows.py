"""Long texts as windows: every row becomes one or several token sequences, so long text is never a second code path."""

from __future__ import annotations

import bisect
import itertools
import re
from typing import Any

from tl_nlp.errors import CheckpointError

Rows = dict[str, list[Any]]


TEXT, STATED, ASKED = 1, 2, 3
"""What a token is of, in `apart_windows`: the text, or what its pair states or asks."""


def text_windows(texts: list[str], pairs: list[str] | None, tokenizer: Any, max_length: int, max_windows: int) -> Rows:
    """Each text cut into windows of at most `max_length` tokens, its pair in front of every one.

    Raises CheckpointError for a tokenizer that does not tell where its tokens stand, as the other windows here do.
    Returns `input_ids` (and `token_type_ids` where the tokenizer makes them): for each row a list of windows, each a
    list of ids; and `cut`: for each row how many tokens are in no window. A pair takes at most half a window.
    """
    _must_be_fast(tokenizer)
    if pairs is None:
        return _by_row(tokenizer(texts, truncation=True, max_length=max_length, **_OVERFLOWING), max_windows)
    pairs, lost = shorten(pairs, tokenizer, max_length // 2)
    encoded = tokenizer(pairs, texts, truncation="only_second", max_length=max_length, **_OVERFLOWING)
    rows = _by_row(encoded, max_windows)
    return {**rows, "cut": [first + rest for first, rest in zip(lost, rows["cut"], strict=True)]}


def apart_windows(texts: list[str], pairs: list[str], tokenizer: Any, max_length: int, max_windows: int) -> Rows:
    """The windows of each pair, at most `max_windows`, then those of its text, each read without the other.

    Beside what `text_windows` returns: `sides`, shaped as `input_ids`: what each token is of; 0 for special tokens and
    for a word before a colon that opens a sentence of the pair ("Reference: ..."). A sentence with a question mark at
    its end is asked; where nothing else is there, the question is what the text is compared with.
    """
    _must_be_fast(tokenizer)
    options = {"truncation": True, "max_length": max_length, "return_offsets_mapping": True, **_OVERFLOWING}
    rows, firsts = (_by_row(tokenizer(side, **options), max_windows) for side in (texts, pairs))
    of_pair = {pair: _sides(pair) for pair in set(pairs)}
    sides = []
    for row, pair in enumerate(pairs):
        of_first = [[of_pair[pair][end - 1] if end > start else 0 for start, end in w] for w in firsts[_OFFSETS][row]]
        sides.append(of_first + [[TEXT if end > start else 0 for start, end in w] for w in rows[_OFFSETS][row]])
    names = [name for name in rows if name not in (_OFFSETS, "cut")]
    joined = {name: [first + rest for first, rest in zip(firsts[name], rows[name], strict=True)] for name in names}
    cut = [first + rest for first, rest in zip(firsts["cut"], rows["cut"], strict=True)]
    return {**joined, "sides": sides, "cut": cut}


_OVERFLOWING = {"return_overflowing_tokens": True, "return_attention_mask": False}
_OFFSETS = "offset_mapping"
_SENTENCE = re.compile(r"\S.*?(?:[.?!](?=\s)|[\u3002\uff1f\uff01]|$)", re.DOTALL)
_LABEL = re.compile(r"\w+:(?=\s)")


def _must_be_fast(tokenizer: Any) -> None:
    if not tokenizer.is_fast:
        raise CheckpointError(
            f"{type(tokenizer).__name__} does not tell where its tokens stand, which windows of a text need; "
            "a checkpoint with a tokenizer.json does, and task=summarization can do without"
        )


def _by_row(encoded: Any, max_windows: int) -> Rows:
    """Windows in the order of their rows, `max_windows` of each; `cut` counts the tokens of the others."""
    n_rows = encoded["overflow_to_sample_mapping"][-1] + 1
    names = [name for name in ("input_ids", "token_type_ids", _OFFSETS) if name in encoded]
    rows: Rows = {name: [[] for _ in range(n_rows)] for name in names}
    cut = [0] * n_rows
    for window, row in enumerate(encoded["overflow_to_sample_mapping"]):
        if len(rows["input_ids"][row]) < max_windows:
            for name in names:
                rows[name][row].append(encoded[name][window])
        else:
            cut[row] += len(encoded["input_ids"][window])
    return {**rows, "cut": cut}


def _sides(pair: str) -> bytes:
    """What each character of a pair is of."""
    sides = bytearray(len(pair))
    for sentence in _SENTENCE.finditer(pair):
        label = _LABEL.match(sentence[0])
        start = sentence.start() + (label.end() if label else 0)
        side = ASKED if sentence[0][-1] in "?\uff1f\u061f" else STATED
        sides[start : sentence.end()] = bytes([side]) * (sentence.end() - start)
    return bytes(sides) if STATED in sides else bytes(sides).replace(bytes([ASKED]), bytes([STATED]))


def sentence_windows(
    sentences: list[list[str]],
    pairs: list[str],
    sections: list[list[str] | None],
    tokenizer: Any,
    max_length: int,
    max_windows: int,
) -> Rows:
    """Each row's sentences packed in order into windows of whole sentences, one heading in front of every window.

    The heading is the row's pair, the section of the window's first sentence where `sections` names one for each
    sentence, and the window's place: "outcome introduction 2 of 5". Beside what `text_windows` returns: `sentence_ids`,
    shaped as `input_ids`: the index of each token's sentence in its row, -1 for the tokens of no sentence. A sentence
    longer than a window loses its end, which `cut` counts.
    """
    _must_be_fast(tokenizer)
    pairs, cut = shorten(pairs, tokenizer, max_length // 4)
    rows: Rows = {"input_ids": [], "token_type_ids": [], "sentence_ids": [], "cut": cut}
    for row, theirs in enumerate(sentences):
        names = sections[row] or [""] * len(theirs)
        lengths = [len(ids) for ids in tokenizer(theirs, add_special_tokens=False)["input_ids"]]
        headings = [f"{pairs[row]} {name} 99 of 99".strip() for name in dict.fromkeys(names)]
        room = max_length - max(len(ids) for ids in tokenizer(headings, [""] * len(headings))["input_ids"])
        packed = _pack(lengths, room)
        cut[row] += sum(max(0, length - room) for length in lengths)
        cut[row] += sum(lengths[index] for window in packed[max_windows:] for index in window)
        packed = packed[:max_windows]
        headings = [
            f"{pairs[row]} {names[window[0]]} {place} of {len(packed)}".strip()
            for place, window in enumerate(packed, 1)
        ]
        encoded = tokenizer(
            headings,
            [" ".join(theirs[index] for index in window) for window in packed],
            truncation="only_second",
            max_length=max_length,
            return_offsets_mapping=True,
            return_attention_mask=False,
        )
        rows["input_ids"].append(encoded["input_ids"])
        rows["token_type_ids"].append(encoded.get("token_type_ids"))
        rows["sentence_ids"].append([_owners(encoded, place, window, theirs) for place, window in enumerate(packed)])
    if rows["token_type_ids"][0] is None:
        del rows["token_type_ids"]
    return rows


def _owners(encoded: Any, place: int, window: list[int], sentences: list[str]) -> list[int]:
    """For each token of a window the index of its sentence, -1 for the heading and the special tokens."""
    ends = list(itertools.accumulate(len(sentences[index]) + 1 for index in window))
    return [
        window[bisect.bisect_right(ends, end - 1)] if sequence == 1 and end > start else -1
        for sequence, (start, end) in zip(encoded.sequence_ids(place), encoded["offset_mapping"][place], strict=True)
    ]


def _pack(lengths: list[int], room: int) -> list[list[int]]:
    """Indices of consecutive sentences in windows of at most `room` tokens, at least one sentence in each."""
    windows: list[list[int]] = []
    used = room
    for index, length in enumerate(lengths):
        if not windows or used + length > room:
            windows.append([])
            used = 0
        windows[-1].append(index)
        used += length
    return windows


def packed(n_tokens: list[int], room: int) -> list[list[int]]:
    """The places of sentences of so many tokens, in chunks of at most `room` tokens; one that is longer stays alone."""
    chunks: list[list[int]] = []
    left = 0
    for place, length in enumerate(n_tokens):
        if not chunks or length > left:
            chunks.append([])
            left = room
        chunks[-1].append(place)
        left -= length
    return chunks


def fitting(ranks: list[float], n_tokens: list[int], room: int) -> list[int]:
    """The places of the sentences of highest rank that have `room` together, in their order; one at least."""
    chosen: list[int] = []
    for place in sorted(range(len(ranks)), key=lambda one: -ranks[one]):
        if not chosen or n_tokens[place] <= room:
            chosen.append(place)
            room -= n_tokens[place]
    return sorted(chosen)


def shorten(texts: list[str], tokenizer: Any, max_length: int) -> tuple[list[str], list[int]]:
    """The texts with no more than `max_length` tokens each, and how many tokens each has lost."""
    distinct = list(dict.fromkeys(texts))  # a question is the pair of many rows
    options = {"return_offsets_mapping": tokenizer.is_fast, "return_attention_mask": False}
    encoded = tokenizer(distinct, add_special_tokens=False, **options)
    short, lost = {}, {}
    for place, text in enumerate(distinct):
        ids = encoded["input_ids"][place]
        lost[text] = max(0, len(ids) - max_length)
        if not lost[text]:
            short[text] = text
        elif tokenizer.is_fast:
            short[text] = text[: encoded[_OFFSETS][place][max_length - 1][1]]
        else:
            short[text] = tokenizer.decode(ids[:max_length], skip_special_tokens=True)
    return [short[text] for text in texts], [lost[text] for text in texts]
