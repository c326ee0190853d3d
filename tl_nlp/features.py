"""What is frozen, computed once and cached: the backbone's states, where only the head learns."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from tl_nlp.batches import Columns, Encoded, budgeted, collate, tiled, window_lengths
from tl_nlp.families import head_modules, in_head
from tl_nlp.feature_cache import FeatureCache, Kind, row_keys
from tl_nlp.hardware import inferring, is_half, pass_tokens
from tl_nlp.heads import Head
from tl_nlp.pretrained import positions

MAX_BYTES = 2 * 10**9  # of features in memory; beyond, the backbone runs every epoch


def is_cacheable(model: Any, learning: set[str], rows: list[Encoded], kind: Kind | None = None) -> bool:
    """Whether only the head of an encoder learns, and the states it reads fit in `MAX_BYTES`."""
    if not _has_states(model):
        return False
    if isinstance(getattr(model.base_model, "pooler", None), nn.Linear):  # ALBERT's acts inside its backbone
        return False
    if not all(in_head(name, head_modules(model)) for name in learning):
        return False
    lengths = [windows for encoded in rows for windows in window_lengths(encoded)]
    n_states = sum(len(windows) if kind else sum(windows) for windows in lengths)
    return n_states * model.config.hidden_size * 4 <= MAX_BYTES


def _has_states(model: Any) -> bool:
    """Whether it is an encoder with a head that reads its states, and nothing of PEFT in between."""
    return not (hasattr(model, "peft_config") or model.config.is_encoder_decoder) and bool(head_modules(model))


def cache_of(model: Any, precision: str, kind: Kind) -> FeatureCache:
    """The states that the model's backbone, as it is now, gave before in this precision."""
    return FeatureCache(model.base_model, kind, is_half(precision, next(model.parameters()).device))


def compute(
    model: Any, encoded: Encoded, pad_id: int, precision: str, description: str, cache: FeatureCache | None = None
) -> Columns:
    """The last states of the backbone in eval mode, as float32 of shape (positions, hidden) for each window, or the one
    that the `cache` is for."""
    lengths = window_lengths(encoded)
    if cache is not None:
        rows = _one_state_each(model, encoded, pad_id, precision, description, cache)
        windows_of = [list(states[:, None]) for states in rows]
    else:
        windows_of = [[] for _ in lengths]
        for places, states, mask in last_states(model, encoded, pad_id, precision, description):
            for row, window, n_tokens in zip(places, states, mask.sum(axis=1), strict=True):
                windows_of[row].append(window[:n_tokens].copy())
    columns = {name: encoded[name][:] for name in encoded.column_names if name in _KEPT}
    return Columns({"features": windows_of, "lengths": lengths, **columns}, lengths)


_KEPT = ("labels", "soft_targets", "sentence_ids", "sides", "surface", "group")
"""The columns of rows that go with features in the place of their tokens."""


class Blank:
    """As what `compute` gives, with zeros in the place of the states: a head takes as long on them."""

    def __init__(self, model: Any, encoded: Encoded, one_each: bool):
        self._encoded, self._width, self._one_each = encoded, model.config.hidden_size, one_each
        self.lengths = window_lengths(encoded)

    def __len__(self) -> int:
        return len(self.lengths)

    def select(self, indices: list[int]) -> Columns:
        return Columns(self[indices], [self.lengths[index] for index in indices])

    def __getitem__(self, indices: list[int]) -> dict[str, list[Any]]:
        lengths, columns = [self.lengths[index] for index in indices], self._encoded[indices]
        sizes = [[1 if self._one_each else length for length in windows] for windows in lengths]
        states = [[np.zeros((size, self._width), np.float32) for size in windows] for windows in sizes]
        kept = {name: values for name, values in columns.items() if name in _KEPT}
        return {"features": states, "lengths": lengths, **kept}


def unread(encoded: Encoded, cache: FeatureCache | None) -> list[int]:
    """The places of the rows that `compute` would read: all but those whose states are kept from before."""
    return list(range(len(encoded)) if cache is None else _new(cache, row_keys(encoded)).values())


def _new(cache: FeatureCache, keys: list[bytes]) -> dict[bytes, int]:
    """The contents that the cache does not have, each with the place of a row."""
    return {key: place for place, key in enumerate(keys) if key not in cache}


def embeddings(
    model: Any, encoded: Encoded, pad_id: int, precision: str, description: str, cache: FeatureCache | None = None
) -> np.ndarray:
    """The mean of the backbone's last states over all tokens of each row; float32 of shape (examples, hidden)."""
    cache = cache or cache_of(model, precision, "mean")
    rows = _one_state_each(model, encoded, pad_id, precision, description, cache)
    weights = [np.asarray(windows, np.float32) for windows in window_lengths(encoded)]
    return np.stack([np.average(states, 0, of_window) for states, of_window in zip(rows, weights, strict=True)])


def _one_state_each(
    model: Any, encoded: Encoded, pad_id: int, precision: str, description: str, cache: FeatureCache
) -> list[np.ndarray]:
    """For each row one state of every window, of shape (windows, hidden). What was computed before is taken from the
    cache; rows of one content are computed once."""
    keys = row_keys(encoded)
    new = _new(cache, keys)
    if new:
        places = list(new.values())
        found: list[list[np.ndarray]] = [[] for _ in places]
        for rows, states, mask in last_states(model, encoded.select(places), pad_id, precision, description):
            if cache.kind == "mean":
                states = (states * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1)[:, None]
            else:
                states = states[:, 0].copy()
            for row, state in zip(rows, states, strict=True):
                found[row].append(state)
        cache.add({key: np.stack(states) for key, states in zip(new, found, strict=True)})
    return [cache[key] for key in keys]


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
    model: Any, encoded: Encoded, pad_id: int, precision: str, description: str
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """A pass at a time, in eval mode: each window's row, its states (windows, tokens, hidden), and its mask."""
    lengths = window_lengths(encoded)
    bar = tqdm(total=len(lengths), desc=description, unit="row", file=sys.stderr)
    with inferring(model, precision) as device, bar:
        for rows in budgeted(lengths, pass_tokens(model)):
            columns = encoded[rows]
            longest = max(len(window) for windows in columns["input_ids"] for window in windows)
            width = int(max(longest, min(tiled(longest), positions(model.config))))
            batch = collate({name: columns[name] for name in columns if name != "labels"}, pad_id, device, width)
            inputs = {n: batch[n] for n in ("input_ids", "attention_mask", "token_type_ids") if n in batch}
            states = model.base_model(**inputs).last_hidden_state.float().cpu().numpy()
            yield np.asarray(rows)[batch["rows"].cpu().numpy()], states, batch["attention_mask"].cpu().numpy()
            bar.update(len(rows))


def kind_of(model: Any, head: Head) -> Kind | None:
    """The one state that the head reads of each window, which the cache keeps from run to run; None: all."""
    if not _has_states(model):
        return None
    if _reads_means(model, head):
        return "mean"
    return "first" if _reads_first_only(model) else None


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
    with reading_features(model):
        mask = torch.ones(1, 4, dtype=torch.long, device=states.device)
        logits = model(inputs_embeds=states, attention_mask=mask).logits
    (gradient,) = torch.autograd.grad(logits.float().square().sum(), states)
    return not gradient[:, 1:].any()


@contextmanager
def reading_features(model: Any) -> Iterator[None]:
    """Within the block the model also takes its backbone's states, as `inputs_embeds`, in the place of tokens."""
    name = model.base_model_prefix
    backbone = getattr(model, name)
    setattr(model, name, _Cached(backbone))
    try:
        yield
    finally:
        setattr(model, name, backbone)


class _Cached(nn.Module):
    """Answers for a backbone with the states it is given, the pooler still acting, as a part of the head; given tokens
    it lets the backbone answer."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone, self.pooler = backbone, getattr(backbone, "pooler", None)

    def forward(self, input_ids: Tensor | None = None, *, inputs_embeds: Tensor | None = None, **more: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        if inputs_embeds is None:
            return self.backbone(input_ids, **more)
        pooled = None if self.pooler is None else self.pooler(inputs_embeds)
        return BaseModelOutputWithPooling(last_hidden_state=inputs_embeds, pooler_output=pooled)
