"""The layer that method `adapter` adds, and how it is put into a model."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn


class Bottleneck(nn.Module):
    """x + up(gelu(down(x))), which begins as the identity. In float32, whatever x is in; shape (..., width) kept."""

    def __init__(self, width: int, size: int):
        super().__init__()
        self.down, self.up = nn.Linear(width, size), nn.Linear(size, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, states: Tensor) -> Tensor:
        change = self.up(nn.functional.gelu(self.down(states.to(self.down.weight.dtype))))
        return states + change.to(states.dtype)


def insert(model: Any, pattern: str, size: int) -> None:
    """Puts a bottleneck behind every linear layer whose full name matches; it becomes the layer's part `adapter`."""
    for name, layer in list(model.named_modules()):
        if re.fullmatch(pattern, name):
            layer.add_module("adapter", Bottleneck(layer.out_features, size).to(layer.weight.device, torch.float32))
            layer.register_forward_hook(_adapted)


def _adapted(layer: Any, inputs: Any, states: Tensor) -> Tensor:
    return layer.adapter(states)
