"""What is frozen, computed once and cached: the states that the lowest block that learns reads, or the head alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from tl_nlp.batches import Columns, Encoded, budgeted, collate, tiled, window_lengths
from tl_nlp.families import encoder_of, head_modules, writes
from tl_nlp.feature_cache import FeatureCache, Kind, row_keys
from tl_nlp.hardware import in_passes, inferring, is_half, pass_budget
from tl_nlp.heads import Head
from tl_nlp.pretrained import positions
from tl_nlp.states import entered, states_below

MAX_BYTES = 10**9  # of features of one training, half of the cache; beyond, the blocks run every epoch
_PIECE = 2**28  # bytes of states in memory until they are written


def head_is_outside(model: Any) -> bool:
    """Whether all of the head is above what gives the states; ALBERT's pooler acts inside it."""
    return not isinstance(getattr(model.base_model, "pooler", None), nn.Linear)


def fits(model: Any, rows: list[Encoded], kind: Kind) -> bool:
    """Whether the states that are kept of these rows are no more than `MAX_BYTES`."""
    lengths = [windows for encoded in rows for windows in window_lengths(encoded)]
    n_states = sum(sum(windows) if kind == "tokens" else len(windows) for windows in lengths)
    return n_states * encoder_of(model).config.hidden_size * 4 <= MAX_BYTES


def cache_of(model: Any, precision: str, kind: Kind, n_above: int = 0) -> FeatureCache:
    """The states that the top `n_above` blocks of the encoder, or what stands on it, were given by what is below them,
    as it is now, in this precision."""
    return FeatureCache(encoder_of(model), kind, is_half(precision, next(model.parameters()).device), n_above)


def compute(
    model: Any, encoded: Encoded, pad_id: int, precision: str, description: str, cache: FeatureCache
) -> Columns:
    """The rows with states in the place of their tokens, as float32 of shape (positions, hidden) for each window: what
    the `cache` is for, in eval mode. What it does not have is computed first."""
    lengths = window_lengths(encoded)
    keys = row_keys(encoded)
    _read(model, encoded, keys, pad_id, precision, description, cache)
    states = _States(cache, keys, lengths)
    columns = {name: encoded[name][:] for name in encoded.column_names if name in _KEPT}
    # one state is looked up at once: a step of a head takes no longer than looking up those of its rows
    columns["features"] = states if cache.kind == "tokens" else [states[row] for row in range(len(keys))]
    return Columns({**columns, "lengths": lengths, "n_above": [cache.n_above] * len(keys)}, lengths)


class _States:
    """The states of each row's windows, read from the cache when they are asked for."""

    def __init__(self, cache: FeatureCache, keys: list[bytes], lengths: list[list[int]]):
        self.cache, self.keys, self.lengths = cache, keys, lengths

    def select(self, rows: list[int]) -> _States:
        return _States(self.cache, [self.keys[row] for row in rows], [self.lengths[row] for row in rows])

    def __getitem__(self, row: int) -> list[np.ndarray]:
        states, lengths = self.cache[self.keys[row]], self.lengths[row]
        if self.cache.kind == "tokens":
            return np.split(states, np.cumsum(lengths[:-1]))
        return list(states[:, None])


_KEPT = ("labels", "soft_targets", "sentence_ids", "sides", "surface", "group")
"""The columns of rows that go with features in the place of their tokens."""


class Blank:
    """As what `compute` gives, with zeros in the place of the states: what reads them takes as long."""

    def __init__(self, model: Any, encoded: Encoded, cache: FeatureCache):
        self._encoded, self._width, self._cache = encoded, encoder_of(model).config.hidden_size, cache
        self.lengths = window_lengths(encoded)

    def __len__(self) -> int:
        return len(self.lengths)

    def select(self, indices: list[int]) -> Columns:
        return Columns(self[indices], [self.lengths[index] for index in indices])

    def __getitem__(self, indices: list[int]) -> dict[str, list[Any]]:
        lengths, columns = [self.lengths[index] for index in indices], self._encoded[indices]
        is_each = self._cache.kind == "tokens"
        sizes = [[length if is_each else 1 for length in windows] for windows in lengths]
        states = [[np.zeros((size, self._width), np.float32) for size in windows] for windows in sizes]
        kept = {name: values for name, values in columns.items() if name in _KEPT}
        return {"features": states, "lengths": lengths, "n_above": [self._cache.n_above] * len(indices), **kept}


def unread(encoded: Encoded, cache: FeatureCache) -> list[int]:
    """The places of the rows that `compute` would read: all but those whose states are kept from before."""
    return list(_new(cache, row_keys(encoded)).values())


def _new(cache: FeatureCache, keys: list[bytes]) -> dict[bytes, int]:
    """The contents that the cache does not have, each with the place of a row."""
    return {key: place for place, key in enumerate(keys) if key not in cache}


def embeddings(
    model: Any, encoded: Encoded, pad_id: int, precision: str, description: str, cache: FeatureCache | None = None
) -> np.ndarray:
    """The mean of the encoder's last states over all tokens of each row; float32 of shape (examples, hidden)."""
    cache = cache or cache_of(model, precision, "mean")
    keys = row_keys(encoded)
    _read(model, encoded, keys, pad_id, precision, description, cache)
    weights = [np.asarray(windows, np.float32) for windows in window_lengths(encoded)]
    return np.stack([np.average(cache[key], 0, of_window) for key, of_window in zip(keys, weights, strict=True)])


def _read(
    model: Any,
    encoded: Encoded,
    keys: list[bytes],
    pad_id: int,
    precision: str,
    description: str,
    cache: FeatureCache,
) -> None:
    """Adds to the cache what it does not have of these rows, of which those of one content are read once."""
    cache.look()
    new = _new(cache, keys)
    if not new:
        return
    names, n_bytes = list(new), 0
    found: dict[bytes, np.ndarray] = {}
    rows = encoded.select(list(new.values()))
    for places, states, mask in last_states(model, rows, pad_id, precision, description, cache.n_above):
        here: dict[int, list[np.ndarray]] = {}  # a pass has whole rows
        for place, window, n_tokens in zip(places.tolist(), states, mask.sum(axis=1), strict=True):
            if cache.kind == "mean":
                window = window[:n_tokens].mean(axis=0, keepdims=True)
            here.setdefault(place, []).append(window[: n_tokens if cache.kind == "tokens" else 1])
        for place, windows in here.items():
            found[names[place]] = np.concatenate(windows)
            n_bytes += found[names[place]].nbytes
        if n_bytes > _PIECE:
            cache.add(found)
            found, n_bytes = {}, 0
    cache.add(found)


class Frozen:
    """`embeddings` of the rows of several splits by one model, each row's computed once."""

    def __init__(self, model: Any, splits: dict[str, Encoded], pad_id: int, precision: str):
        self._model, self._splits, self._pad_id, self._precision = model, splits, pad_id, precision
        self._cache = cache_of(model, precision, "mean")
        self._known: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def of(self, split: str, rows: np.ndarray) -> np.ndarray:
        """Float32 of shape (examples, hidden), for `rows` of a split."""
        encoded = self._splits[split]
        width = self._model.config.hidden_size
        states, is_known = self._known.setdefault(
            split, (np.empty((len(encoded), width), np.float32), np.zeros(len(encoded), bool))
        )
        new = rows[~is_known[rows]]
        if len(new):
            states[new] = self._read(encoded.select(new), split)
            is_known[new] = True
        return states[rows]

    def glance(self, split: str, rows: np.ndarray, n_tokens: int) -> np.ndarray:
        """As `of`, at a bounded cost: where the rows have over `n_tokens` together, only the beginnings of the long
        ones are read, all of one length."""
        encoded = self._splits[split]
        lengths = np.asarray([sum(windows) for windows in window_lengths(encoded.select(rows))])
        sums = [np.minimum(lengths, most).sum() for most in range(1, lengths.max() + 1)]
        most = max(1, int(np.searchsorted(sums, n_tokens, "right")))
        is_long = lengths > most
        states = np.empty((len(rows), self._model.config.hidden_size), np.float32)
        states[~is_long] = self.of(split, rows[~is_long])
        if is_long.any():
            states[is_long] = self._read(_beginnings(encoded.select(rows[is_long]), most), split)
        return states

    def _read(self, encoded: Encoded, split: str) -> np.ndarray:
        description = f"features of {split}"
        return embeddings(self._model, encoded, self._pad_id, self._precision, description, self._cache)


def _beginnings(encoded: Encoded, n_tokens: int) -> Encoded:
    """Rows cut to their first tokens."""
    from datasets import Dataset

    def cut(windows: list[list[int]]) -> list[list[int]]:
        left = n_tokens - np.cumsum([0, *map(len, windows[:-1])])
        return [window[:most] for window, most in zip(windows, left.tolist(), strict=True) if most > 0]

    names = [name for name in ("input_ids", "token_type_ids") if name in encoded.column_names]
    return Dataset.from_dict({name: [cut(windows) for windows in encoded[name]] for name in names})


def last_states(
    model: Any, encoded: Encoded, pad_id: int, precision: str, description: str, n_above: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """A pass at a time, in eval mode: each window's row, its states (windows, tokens, hidden) below the top `n_above`
    blocks of the encoder, and its mask. Without a description no progress is shown."""
    lengths = window_lengths(encoded)
    bar = tqdm(total=len(lengths), desc=description, unit="row", file=sys.stderr, disable=not description)
    with inferring(model, precision) as device, bar:

        def read(rows: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            columns = encoded[rows]
            longest = max(len(window) for windows in columns["input_ids"] for window in windows)
            width = int(max(longest, min(tiled(longest), positions(model.config))))
            batch = collate({name: columns[name] for name in columns if name != "labels"}, pad_id, device, width)
            inputs = {n: batch[n] for n in ("input_ids", "attention_mask", "token_type_ids") if n in batch}
            states = states_below(encoder_of(model), n_above, **inputs).float().cpu().numpy()
            return np.asarray(rows)[batch["rows"].cpu().numpy()], states, batch["attention_mask"].cpu().numpy()

        for rows in budgeted(lengths, pass_budget(model)):
            yield from in_passes(rows, read)
            bar.update(len(rows))


def kind_of(model: Any, head: Head) -> Kind:
    """What the head reads of each window; a decoder looks at each token's state."""
    if writes(model):
        return "tokens"
    if _reads_means(model, head):
        return "mean"
    return "first" if _reads_first_only(model) else "tokens"


def _reads_means(model: Any, head: Head) -> bool:
    """Whether each window's mean state tells the head as much as all its states: not where dropout draws for each of
    them, nor where the checkpoint's own head bends each before its last layer."""
    last = head_modules(model)[-1:]
    above = [part for name, part in model.named_children() if name not in (model.base_model_prefix, *last)]
    return head.reads_means and all(isinstance(part, nn.Dropout) and not part.p for part in above)


def _reads_first_only(model: Any) -> bool:
    """Whether the logits depend on no state but each window's first, seen by their gradient."""
    drawn = torch.randn(1, 4, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    states = drawn.to(next(model.parameters()).device).requires_grad_()
    with entered(model, states, 0):
        mask = torch.ones(1, 4, dtype=torch.long, device=states.device)
        logits = model(inputs_embeds=states, attention_mask=mask).logits
    (gradient,) = torch.autograd.grad(logits.float().square().sum(), states)
    return not gradient[:, 1:].any()
