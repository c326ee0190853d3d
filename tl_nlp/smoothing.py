"""Outliers among activations, made smaller before they are rounded to int8, which has one scale for all of a pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from tl_nlp.families import within_block

_USUAL = 0.9  # the quantile of a layer's input channels, by their largest activation, above which they are outliers
_RARE = 2.0  # times as large as usual the largest must be, or a layer is left as it is


def smooth(model: Any, answer: Callable[[], object]) -> None:
    """Divides outlying channels among the inputs of each layer of a block by what its weights for them are multiplied
    with, so that the model, in place, computes what it did. `answer` has it answer texts, by which outliers are known.

    The factor is the square root of how far above usual a channel is: half of the difficulty goes to the weights
    (SmoothQuant, Xiao et al. 2023, https://arxiv.org/abs/2211.10438, section 4, with alpha 0.5), of the channels alone
    that are outliers.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if within_block(name) and isinstance(module, torch.nn.Linear)
    }
    largest: dict[str, torch.Tensor] = {}

    def note(name: str, module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        found = inputs[0].abs().flatten(0, -2).amax(0)
        largest[name] = torch.maximum(found, largest.get(name, found))

    hooks = [layer.register_forward_pre_hook(partial(note, name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            answer()
    finally:
        for hook in hooks:
            hook.remove()
    for name, each in largest.items():
        usual = each.quantile(_USUAL, interpolation="lower")
        if each.max() > _RARE * usual > 0:
            factor = (each / usual).clamp(min=1).sqrt()
            layer = layers[name]
            layer.weight = torch.nn.Parameter(layer.weight.detach() * factor)  # its own, also where blocks share them
            layer.register_forward_pre_hook(partial(_divided, 1 / factor))


def _divided(by: torch.Tensor, module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (inputs[0] * by, *inputs[1:])
