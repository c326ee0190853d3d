"""Dropout as torch's, drawn faster on a CPU.

torch draws one random number an element there, which is a sixth of a training step and takes one core. Here one number
of 64 bits decides over four elements, so the rate is that of the recipe to within 2^-17.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_torch_dropout = functional.dropout
_N_VALUES = 1 << 16  # of the bits that decide over an element


@contextmanager
def fast_dropout(device: torch.device) -> Iterator[None]:
    """Within the block `torch.nn.functional.dropout`, which modules and attention call, draws so; not on a GPU."""
    if device.type == "cpu":
        functional.dropout = _dropout
    try:
        yield
    finally:
        functional.dropout = _torch_dropout


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if not training or not 0 < p < 1 or not input.is_floating_point():
        return _torch_dropout(input, p, training, inplace)
    n_draws = -(-input.numel() // 4)
    draws: Any = torch.empty(n_draws, dtype=torch.int64).random_(-(2**63), None)
    least = round(p * _N_VALUES) - _N_VALUES // 2
    kept = draws.view(torch.int16)[: input.numel()].view(input.shape) >= least
    scale = kept.to(input.dtype).mul_(1 / (1 - p))
    return input.mul_(scale) if inplace else input * scale
