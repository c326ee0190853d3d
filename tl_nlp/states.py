"""An encoder left or entered below its top blocks: where nothing further down learns, states there stand for tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tl_nlp.families import blocks


def parts_below(backbone: nn.Module, n_above: int) -> list[nn.Module]:
    """What makes the states that the top `n_above` blocks read."""
    _, _, there = _blocks(backbone)
    return [*_first(backbone), *there[: len(there) - n_above]]


def states_below(backbone: Any, n_above: int, **inputs: Tensor) -> Tensor:
    """What the top `n_above` blocks read of tokens, of 0 what comes out of the backbone: (windows, tokens, hidden)."""
    if not n_above:
        return backbone(**inputs).last_hidden_state
    parent, name, there = _blocks(backbone)
    seen: list[Any] = []
    hook = there[-n_above - 1].register_forward_hook(lambda *told: seen.append(told[2]))
    try:
        parent._modules[name] = there[:-n_above]
        backbone(**inputs)
    finally:
        parent._modules[name] = there
        hook.remove()
    return seen[0][0] if isinstance(seen[0], tuple) else seen[0]


@contextmanager
def entered(model: Any, states: Tensor, n_above: int) -> Iterator[None]:
    """Within the block the model reads these states where its top `n_above` blocks do, or its head, and no token."""
    name, backbone = model.base_model_prefix, model.base_model
    if not n_above:
        model._modules[name] = _Read(states, getattr(backbone, "pooler", None))
        try:
            yield
        finally:
            model._modules[name] = backbone
        return
    parent, name, there = _blocks(backbone)
    first = _first(backbone)
    try:
        parent._modules[name] = there[-n_above:]
        for part in first:
            part.forward = lambda *_, **__: states
        yield
    finally:
        parent._modules[name] = there
        for part in first:
            part.__dict__.pop("forward", None)


class _Read:
    """In the place of a backbone whose states are known; the pooler still acts, as a part of the head."""

    def __init__(self, states: Tensor, pooler: nn.Module | None):
        self.states, self.pooler = states, pooler

    def __call__(self, *_: Any, **__: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        pooled = None if self.pooler is None else self.pooler(self.states)
        return BaseModelOutputWithPooling(last_hidden_state=self.states, pooler_output=pooled)


def can_be_entered(model: Any, n_above: int) -> bool:
    """Whether the top blocks give the same from states as from tokens, tried on some; not where a block looks further
    down, as DeBERTa's convolution does."""
    backbone = model.base_model
    ids = torch.arange(1, 9, device=next(backbone.parameters()).device).unsqueeze(0)
    mask = torch.ones_like(ids)
    was_training = model.training
    model.eval()
    try:
        *_, there = _blocks(backbone)
        names = [name for name, _ in backbone.named_parameters()]
        if [backbone.get_submodule(block) for block in blocks(names)] != list(there):
            return False
        with torch.inference_mode():
            plain = backbone(input_ids=ids, attention_mask=mask).last_hidden_state
            states = states_below(backbone, n_above, input_ids=ids, attention_mask=mask)
            with entered(model, states, n_above):
                again = backbone(inputs_embeds=states, attention_mask=mask).last_hidden_state
        return torch.allclose(plain, again, rtol=1e-3, atol=1e-4)
    except Exception:  # a family that has its blocks in another way: it is trained on tokens
        return False
    finally:
        model.train(was_training)


def _first(backbone: nn.Module) -> list[nn.Module]:
    """What comes before the blocks."""
    return [part for name, part in backbone.named_children() if "embed" in name]


def _blocks(backbone: nn.Module) -> tuple[nn.Module, str, nn.ModuleList]:
    """The list of an encoder's blocks, and where it is: in which module, under which name."""
    path, there = next((path, part) for path, part in backbone.named_modules() if isinstance(part, nn.ModuleList))
    parent, _, name = path.rpartition(".")
    return backbone.get_submodule(parent), name, there
