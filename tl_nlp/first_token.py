"""While a model of torch answers whose head reads each window's first token alone, its top block is computed for that
token alone, less keys and values. An export has this in its graph: see `narrowing`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from tl_nlp.environment import TILE
from tl_nlp.families import FAMILIES, backbone

_QUERY, _BEHIND = "attention.self.query", "attention.output"
"""In a block of BERT's kind what makes queries, and what reads the states that attention gives and those that the block
was given."""
_LOOKS_FURTHER = ("chunk_size_feed_forward", "conv_kernel_size")
"""What of a configuration, where it is not 0, has more tokens read behind attention: in chunks of so many, and by the
convolution of some DeBERTas."""


@contextmanager
def first_token_alone(model: Any) -> Iterator[None]:
    """Within the block no more than the first tokens come out of the encoder, in families whose blocks are of BERT's
    kind; others stay as they are."""
    encoder = backbone(model)
    family = FAMILIES.get(encoder.config.model_type)
    looks_further = any(getattr(encoder.config, name, 0) for name in _LOOKS_FURTHER)
    if family is None or not family.attention_out[0].startswith(_BEHIND) or looks_further:
        yield
        return
    top = encoder.encoder.layer[-1]
    behind = top.get_submodule(_BEHIND)
    hooks = [behind.register_forward_pre_hook(lambda _, states: tuple(map(_first, states)))]
    if _QUERY in family.query_value:
        hooks += _ask_once(top.get_submodule(_QUERY))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _first(states: Tensor) -> Tensor:
    """As few as products keep their bits with. In one piece, else a linear layer rounds before it adds its bias."""
    return states[:, :TILE].contiguous()


def _ask_once(query: nn.Module) -> list[Any]:
    """All tokens ask as the first does, in a view of its query: `attention` sees that and answers once."""
    widths: list[int] = []

    def before(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        widths.append(inputs[0].shape[1])
        return (_first(inputs[0]),)

    return [
        query.register_forward_pre_hook(before),
        query.register_forward_hook(lambda _, __, asked: asked[:, :1].expand(-1, widths.pop(), -1)),
    ]
