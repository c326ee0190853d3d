"""Attention on a CPU, in blocks of texts whose scores stay in its caches, for inference; and torch's own kernel, of
which a GPU is not asked for anything."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from tl_nlp.environment import TILE

BLOCKS = "tl_nlp_blocks"
FUSED = "tl_nlp_fused"
"""Their names as an `attn_implementation` of transformers; whatever can have "sdpa" can have them."""
_MOST_SCORES = 1 << 21  # of a block, which are 4 MB in bfloat16


def _in_blocks(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    softcap: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """softmax(query keyᵀ · scaling + bias) value; parts of shape (texts, heads, tokens, size), the answer (texts,
    tokens, heads, size). In bfloat16 the scores are rounded, as they are in training; a text that is a block too many
    by itself goes to torch's own, which holds no scores and takes twice the time."""
    if len(query) > len(key):  # texts of one window, one token of each (`decoding`): its keys are asked by all at once
        asked = query.squeeze(2).unflatten(0, (len(key), -1)).transpose(1, 2)
        read, _ = _in_blocks(module, asked, key, value, attention_mask, scaling, position_bias, softcap, **more)
        return read.flatten(0, 1).unsqueeze(1), None
    n_texts, n_heads, n_asked, size = query.shape
    if n_asked > TILE and query.stride(2) == 0:  # all ask as the first does (`first_token`)
        few = slice(None), slice(None), slice(TILE)
        mask, bias = (one if one is None else one[few] for one in (attention_mask, position_bias))
        read, _ = _in_blocks(module, query[few], key, value, mask, scaling, bias, softcap, **more)
        return read[:, :1].expand(-1, n_asked, -1, -1), None
    n_scores = n_heads * n_asked * key.shape[2]
    if n_scores > _MOST_SCORES and softcap is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, position_bias=position_bias, **more
        )
    most = max(1, _MOST_SCORES // n_scores)
    n_repeated = n_heads // key.shape[1]
    key, value = repeat_kv(key, n_repeated).transpose(2, 3), repeat_kv(value, n_repeated)
    read = query.new_empty(n_texts, n_asked, n_heads, value.shape[3])
    with torch.autocast("cpu", enabled=False):  # which would have the shares in float32
        for start in range(0, n_texts, most):
            block = slice(start, start + most)
            scores = query[block] * (size**-0.5 if scaling is None else scaling) @ key[block]
            if softcap is not None:
                scores = (scores / softcap).tanh() * softcap
            for bias in (attention_mask, position_bias):
                if bias is not None:  # of each text, or of any
                    scores += bias[block] if len(bias) > 1 else bias
            read[block] = (scores.softmax(-1) @ value[block]).transpose(1, 2)
    return read, None


def _mask(*args: Any, dtype: torch.dtype = torch.float32, **options: Any) -> Tensor:
    """What is added to scores, in the number format that they have."""
    return eager_mask(
        *args, dtype=torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else dtype, **options
    )


def _mask_that_is_there(*args: Any, attention_mask: Tensor | None = None, **options: Any) -> Tensor | None:
    """As transformers makes it for "sdpa", but it looks into no mask for whether that hides anything: a GPU would have
    to be done with all that came before to tell."""
    if attention_mask is not None:
        options |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return sdpa_mask(*args, attention_mask=attention_mask, **options)


AttentionInterface.register(BLOCKS, _in_blocks)
AttentionMaskInterface.register(BLOCKS, _mask)
AttentionInterface.register(FUSED, sdpa_attention_forward)
AttentionMaskInterface.register(FUSED, _mask_that_is_there)
