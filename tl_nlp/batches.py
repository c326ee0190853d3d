"""Encoded rows → batches: windows flattened, rows grouped by length, shards of processes, orders that a seed fixes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from tl_nlp.environment import TILE
from tl_nlp.types import IGNORED, PassBudget

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Encoded = Any
"""Encoded rows: a `datasets.Dataset` of `Task.encode`'s columns, or anything with `encoded[indices]` → columns."""


class Columns:
    """Encoded rows in memory, indexed as a Dataset is; `lengths` are the tokens of each row's windows, where these hold
    something else in their place."""

    def __init__(self, columns: dict[str, list[Any]], lengths: list[list[int]] | None = None):
        self.columns = columns
        self.lengths = lengths or [[len(window) for window in windows] for windows in columns["input_ids"]]

    def __len__(self) -> int:
        return len(self.lengths)

    def select(self, indices: Sequence[int]) -> Columns:
        columns = {
            # what stays on disk until it is asked for knows how to be picked from
            name: values.select(list(indices)) if hasattr(values, "select") else [values[index] for index in indices]
            for name, values in self.columns.items()
        }
        return Columns(columns, [self.lengths[index] for index in indices])

    def __getitem__(self, indices: list[int]) -> dict[str, list[Any]]:
        return {name: [values[index] for index in indices] for name, values in self.columns.items()}


_FILL = {"input_ids": 0, "token_type_ids": 0, "sentence_ids": -1, "sides": 0}
_GROUP = 50  # batches that are shuffled together and sorted by length; more pad less and mix less


def window_lengths(encoded: Encoded) -> list[list[int]]:
    """For each row the number of tokens of each of its windows; rows in memory and cached features know theirs."""
    if hasattr(encoded, "lengths"):
        return encoded.lengths
    if not len(encoded):
        return []
    import pyarrow.compute as pc

    ids = encoded.with_format("arrow")[:]["input_ids"].combine_chunks()
    tokens = pc.list_value_length(ids.flatten()).to_numpy(zero_copy_only=False)
    ends = np.cumsum(pc.list_value_length(ids).to_numpy(zero_copy_only=False))
    return [part.tolist() for part in np.split(tokens, ends[:-1])]


def epoch_order(lengths: Sequence[list[int]], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The rows of every step of an epoch. Shuffled, then rows of like length together, then steps shuffled again."""
    random = np.random.default_rng((seed, epoch))
    shuffled = random.permutation(len(lengths))
    total = np.asarray([sum(windows) for windows in lengths])
    steps = []
    for start in range(0, len(shuffled), _GROUP * batch_size):
        group = shuffled[start : start + _GROUP * batch_size]
        group = group[np.argsort(total[group], kind="stable")]
        steps += [group[at : at + batch_size].tolist() for at in range(0, len(group), batch_size)]
    return [steps[index] for index in random.permutation(len(steps))]


def passes(
    rows: Sequence[int], lengths: Sequence[list[int]], device_batch_size: int, most_pairs: float = math.inf
) -> Iterator[list[int]]:
    """Splits the rows of a step into forward passes of at most `device_batch_size` windows, like lengths together, in
    which attention compares at most `most_pairs` of tokens, padding included.

    A row's windows stay together; one row alone may have more than that.
    """
    here: list[int] = []
    n_windows, widest = 0, 0
    for row in sorted(rows, key=lambda index: -max(lengths[index])):
        n_together = n_windows + len(lengths[row])
        if here and (n_together > device_batch_size or n_together * widest**2 > most_pairs):
            yield here
            here, n_together = [], len(lengths[row])
        widest = widest if here else max(lengths[row])
        here.append(row)
        n_windows = n_together
    if here:
        yield here


def budgeted(lengths: Sequence[list[int]], budget: PassBudget) -> Iterator[list[int]]:
    """All rows in batches for inference, long ones first. Rows that need less width have a batch of their own where
    that saves more padding than another pass takes."""
    widths = [tiled(max(windows)) for windows in lengths]
    here: list[int] = []
    n_windows, widest = 0, 0
    for width, group in groupby(sorted(range(len(lengths)), key=lambda row: -max(lengths[row])), widths.__getitem__):
        rows = list(group)
        if here and (widest - width) * sum(len(lengths[row]) for row in rows) > budget.beside:
            yield here
            here, n_windows = [], 0
        for row in rows:
            if here and (n_windows + len(lengths[row])) * widest > budget.tokens:
                yield here
                here, n_windows = [], 0
            widest = widest if here else width
            here.append(row)
            n_windows += len(lengths[row])
    if here:
        yield here


def tiled(n_tokens: int) -> int:
    """What so many tokens are padded to for inference."""
    return -(-n_tokens // TILE) * TILE


def collate(
    columns: dict[str, list[Any]], pad_id: int, device: Any = "cpu", n_tokens: int | None = None
) -> dict[str, Any]:
    """The columns of a batch's rows as tensors: see `heads.Batch` for their shapes. Windows are padded to the longest,
    or to `n_tokens`, of which none has more."""
    import torch

    first = "features" if "features" in columns else "input_ids"
    n_windows = [len(windows) for windows in columns[first]]
    batch = {"rows": torch.arange(len(n_windows)).repeat_interleave(torch.tensor(n_windows))}
    for name in _FILL:
        if name in columns:
            fill = pad_id if name == "input_ids" else _FILL[name]
            batch[name] = _pad([window for windows in columns[name] for window in windows], fill, n_tokens)
    if "features" in columns:
        windows = [torch.as_tensor(window) for windows in columns["features"] for window in windows]
        states = torch.nn.utils.rnn.pad_sequence(windows, batch_first=True)
        wider = max(0, (n_tokens or 0) - states.shape[1])
        batch["states"] = torch.nn.functional.pad(states, (0, 0, 0, wider))
        lengths = [len(window) for window in windows]
    else:
        lengths = [len(window) for windows in columns["input_ids"] for window in windows]
    batch["lengths"] = torch.tensor(lengths)
    if "lengths" in columns:  # of the tokens that features stand for
        batch["lengths"] = torch.tensor([length for windows in columns["lengths"] for length in windows])
    batch["attention_mask"] = (torch.arange(n_tokens or max(lengths)) < torch.tensor(lengths).unsqueeze(1)).long()
    if "hidden" in columns:
        hidden = [window for windows in columns["hidden"] for window in windows]
        batch["attention_mask"] -= _pad(hidden, 0, n_tokens)
    if "surface" in columns:
        batch["surface"], batch["group"] = torch.tensor(columns["surface"]), torch.tensor(columns["group"])
    if "soft_targets" in columns:
        batch["soft_targets"] = torch.tensor(columns["soft_targets"])
    if "labels" in columns:
        batch["labels"] = _labels(columns["labels"])
        if _are_texts(columns["labels"]):
            batch["told"] = told(batch["labels"])
    batch = {name: on_device(tensor, torch.device(device)) for name, tensor in batch.items()}
    numbers = {"n_rows": len(n_windows)}
    if "features" in columns:
        numbers["n_above"] = columns["n_above"][0]
    return batch | numbers


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """What the host has made, on a device; a GPU is told to fetch it, and the host goes on."""
    if device.type == "cuda":  # from other memory a copy waits for all that the GPU was told before
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def told(labels: Tensor) -> Tensor:
    """The places of the labels of text that are none of `IGNORED`, row after row, in labels that are flat."""
    return (labels.flatten() != IGNORED).nonzero()[:, 0]


def _are_texts(labels: list[Any]) -> bool:
    return isinstance(labels[0], list) and isinstance(labels[0][0], list)


def _labels(labels: list[Any]) -> Tensor:
    import torch

    if not isinstance(labels[0], list):
        return torch.tensor(labels)
    if _are_texts(labels):
        return _pad([window for windows in labels for window in windows], IGNORED)
    if any(isinstance(value, float) for value in labels[0]):
        return _pad(labels, float("nan"), dtype=np.float32)
    return torch.tensor(labels)


def _pad(lists: list[list[Any]], fill: float, width: int | None = None, dtype: type = np.int64) -> Tensor:
    """Of shape (lists, width), by default that of the longest."""
    import torch

    padded: np.ndarray = np.full((len(lists), width or max(map(len, lists))), fill, dtype)
    for row, values in zip(padded, lists, strict=True):
        row[: len(values)] = values
    return torch.from_numpy(padded)
