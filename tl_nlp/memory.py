"""What a model and a step of its training take, and how many sequences fit in one pass."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor

from tl_nlp.batches import passes
from tl_nlp.hardware import free_bytes
from tl_nlp.steps import Steps

_SHARE = 0.5  # of the free memory that one pass may keep; the rest is for what passes need for a moment


def footprint(model: Any, learning: dict[str, torch.nn.Parameter]) -> dict[str, Any]:
    """Numbers of weights and how they are stored; MB (10^6 bytes) of weights, and of gradients and AdamW's moments."""
    weights = [weight for name, weight in model.named_parameters() if ".original_module." not in name]
    dtypes: Counter[str] = Counter()
    for weight in weights:
        dtypes[_format(weight)] += _count(weight)
    return {
        "weights": sum(dtypes.values()),
        "learning": sum(weight.numel() for weight in learning.values()),
        "dtypes": dict(dtypes),
        "weights_mb": round(sum(weight.numel() * weight.element_size() for weight in weights) / 1e6, 1),
        "optimizer_mb": round(optimizer_bytes(learning) / 1e6, 1),
    }


def optimizer_bytes(learning: dict[str, torch.nn.Parameter]) -> int:
    """Of the gradients and AdamW's two moments."""
    return 3 * sum(weight.numel() * weight.element_size() for weight in learning.values())


def _format(weight: Tensor) -> str:
    return "nf4" if hasattr(weight, "quant_state") else str(weight.dtype).removeprefix("torch.")


def _count(weight: Tensor) -> int:
    """How many numbers a weight stands for: 4-bit ones are packed, two in a byte."""
    return weight.numel() * 2 if hasattr(weight, "quant_state") else weight.numel()


def largest_pass(steps: Steps) -> int:
    """How many of the longest sequences fit in one forward and backward pass, at most a step's.

    The bytes that autograd keeps are counted for one row and for two, which gives those of each sequence. On a GPU the
    answer is then tried, and halved while it does not fit.
    """
    steps.unfreeze(steps.plan.steps - 1)  # when most learns
    most = max(len(windows) for windows in steps.lengths) * steps.training.batch_size
    longest = sorted(range(len(steps.lengths)), key=lambda row: -max(steps.lengths[row]))
    few, more = longest[:1], longest[:2]
    sizes = [sum(len(steps.lengths[row]) for row in rows) for rows in (few, more)]
    if sizes[0] == sizes[1]:
        return most
    kept = [_kept_bytes(steps, rows) for rows in (few, more)]
    each = max(1.0, (kept[1] - kept[0]) / (sizes[1] - sizes[0]))
    room = _SHARE * (free_bytes(steps.device) - optimizer_bytes(steps.weights.by_name))
    found = max(1, min(most, int(room / each)))
    while steps.device.type == "cuda" and found > 1:
        try:
            steps.loss(0, next(passes(longest, steps.lengths, found)))[0].backward()
            break
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            found //= 2
        finally:
            steps.optimizer.zero_grad(set_to_none=True)
    return found


def _kept_bytes(steps: Steps, rows: list[int]) -> int:
    """Of the tensors that a forward pass over `rows` keeps for its backward pass, weights left out."""
    own = {weight.untyped_storage().data_ptr() for weight in steps.model.parameters()}
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    alive = []  # so that no storage is given to two tensors
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        alive.append(steps.loss(0, rows))
    return sum(storages.values())
