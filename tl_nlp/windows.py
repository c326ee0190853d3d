"""Long texts as windows: every row becomes one or several token sequences, so long text is never a second code path."""

from __future__ import annotations

from typing import Any

Rows = dict[str, list[Any]]


def text_windows(texts: list[str], pairs: list[str] | None, tokenizer: Any, max_length: int, max_windows: int) -> Rows:
    """Each text cut into windows of at most `max_length` tokens, its pair in front of every one.

    Returns `input_ids` (and `token_type_ids` where the tokenizer makes them): for each row a list of windows, each a
    list of ids; and `cut`: for each row how many tokens are in no window. A pair takes at most half a window.
    """
    cut = [0] * len(texts)
    options = {"return_overflowing_tokens": True, "return_attention_mask": False, "max_length": max_length}
    if pairs is None:
        encoded = tokenizer(texts, truncation=True, **options)
    else:
        pairs, cut = shorten(pairs, tokenizer, max_length // 2)
        encoded = tokenizer(pairs, texts, truncation="only_second", **options)
    names = [name for name in ("input_ids", "token_type_ids") if name in encoded]
    rows: Rows = {name: [[] for _ in texts] for name in names}
    for window, row in enumerate(encoded["overflow_to_sample_mapping"]):
        if len(rows["input_ids"][row]) < max_windows:
            for name in names:
                rows[name][row].append(encoded[name][window])
        else:
            cut[row] += len(encoded["input_ids"][window])
    return {**rows, "cut": cut}


def sentence_windows(
    sentences: list[list[str]], pairs: list[str] | None, tokenizer: Any, max_length: int, max_windows: int
) -> Rows:
    """Each row's sentences packed in order into windows of whole sentences, its pair in front of every one.

    Beside what `text_windows` returns: `sentence_ids`, shaped as `input_ids`: the index of each token's sentence in its
    row, -1 for the tokens of no sentence. A sentence longer than a window loses its end, which `cut` counts.
    """
    cut = [0] * len(sentences)
    if pairs is not None:
        pairs, cut = shorten(pairs, tokenizer, max_length // 2)
    rows: Rows = {"input_ids": [], "sentence_ids": [], "cut": cut}
    for row, theirs in enumerate(sentences):
        pair = "" if pairs is None else pairs[row]
        lengths = [len(ids) for ids in tokenizer(theirs, add_special_tokens=False)["input_ids"]] if theirs else []
        room = max_length - len(_around(pair, "", tokenizer, max_length)["input_ids"])
        packed = _pack(lengths, room)
        cut[row] += sum(max(0, length - room) for length in lengths)
        cut[row] += sum(lengths[k] for window in packed[max_windows:] for k in window)
        windows = []
        for window in packed[:max_windows]:
            starts, text = [], ""
            for index in window:
                starts.append(len(text))
                text += theirs[index] + " "
            encoded = _around(pair, text.rstrip(), tokenizer, max_length)
            of_text = 0 if not pair else 1
            ids, sequence = [], encoded.sequence_ids(0)
            for token, (start, end) in enumerate(encoded["offset_mapping"]):
                inside = sequence[token] == of_text and end > start
                ids.append(window[sum(begin < end for begin in starts) - 1] if inside else -1)
            windows.append((encoded, ids))
        rows["input_ids"].append([encoded["input_ids"] for encoded, _ in windows])
        rows["sentence_ids"].append([ids for _, ids in windows])
        if windows and "token_type_ids" in windows[0][0]:
            rows.setdefault("token_type_ids", []).append([encoded["token_type_ids"] for encoded, _ in windows])
    return rows


def _around(pair: str, text: str, tokenizer: Any, max_length: int) -> Any:
    options = {"max_length": max_length, "return_offsets_mapping": True, "return_attention_mask": False}
    if pair:
        return tokenizer(pair, text, truncation="only_second" if text else True, **options)
    return tokenizer(text, truncation=True, **options)


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


def shorten(texts: list[str], tokenizer: Any, max_length: int) -> tuple[list[str], list[int]]:
    """The texts with no more than `max_length` tokens each, and how many tokens each has lost."""
    distinct = list(dict.fromkeys(texts))  # a question is the pair of many rows
    encoded = tokenizer(distinct, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False)
    short, lost = {}, {}
    for text, ids, offsets in zip(distinct, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        lost[text] = max(0, len(ids) - max_length)
        short[text] = text[: offsets[max_length - 1][1]] if lost[text] else text
    return [short[text] for text in texts], [lost[text] for text in texts]
