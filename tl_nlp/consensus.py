"""Texts that a model of torch draws, and of them the one that the others agree with most: minimum Bayes risk.

Eikema & Aziz 2022, https://arxiv.org/abs/2108.04718. The likeliest text is often a short one that says little, and no
single text need be likely where many say the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tl_nlp.generation import MOST_TEXTS, drawing, most_alike


def written(model: Any, inputs: dict[str, Tensor], options: dict[str, Any], n: int, temperature: float) -> np.ndarray:
    """Token ids, shaped (windows, tokens): of `n` texts drawn for each window the one that is most like the others."""
    settings = model.generation_config
    ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    special = [settings.pad_token_id, settings.decoder_start_token_id, *ends]
    return most_alike(drawn(model, inputs, options, n, temperature), special)


def drawn(model: Any, inputs: dict[str, Tensor], options: dict[str, Any], n: int, temperature: float) -> np.ndarray:
    """Token ids of `n` texts for each window, shaped (windows, n, tokens)."""

    def draw(input_ids: Tensor, scores: Tensor) -> Tensor:
        noisy = drawing(scores.float().cpu().numpy(), n, temperature, input_ids.shape[1])
        tokens = torch.from_numpy(noisy.argmax(-1)).to(scores.device)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens.unsqueeze(1), 0.0)

    drawing_options = {"do_sample": True, "top_k": 0, "num_return_sequences": n, "logits_processor": [draw]}
    width, pad_id = options["max_new_tokens"] + 1, model.generation_config.pad_token_id
    parts = []
    n_windows = max(1, MOST_TEXTS // n)
    for start in range(0, len(inputs["input_ids"]), n_windows):
        here = {name: values[start : start + n_windows] for name, values in inputs.items()}
        ids = model.generate(**here, **options | drawing_options)
        parts.append(functional.pad(ids, (0, width - ids.shape[1]), value=pad_id).view(-1, n, width))
    return torch.cat(parts).cpu().numpy()
