"""Texts that a model draws, and of them the one that the others agree with most: minimum Bayes risk.

Eikema & Aziz 2022, https://arxiv.org/abs/2108.04718. The likeliest text is often a short one that says little, and no
single text need be likely where many say the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

_MOST = 512  # texts that are drawn at once


def written(model: Any, inputs: dict[str, Tensor], options: dict[str, Any], n: int, temperature: float) -> np.ndarray:
    """Token ids, shaped (windows, tokens): of `n` texts drawn for each window the one that is most like the others."""
    settings = model.generation_config
    ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    special = [settings.pad_token_id, settings.decoder_start_token_id, *ends]
    return most_alike(drawn(model, inputs, options, n, temperature), special)


def drawn(model: Any, inputs: dict[str, Tensor], options: dict[str, Any], n: int, temperature: float) -> np.ndarray:
    """Token ids of `n` texts for each window, shaped (windows, n, tokens)."""
    drawing = {"do_sample": True, "top_k": 0, "num_return_sequences": n}
    width, pad_id = options["max_new_tokens"] + 1, model.generation_config.pad_token_id
    parts = []
    for start in range(0, len(inputs["input_ids"]), max(1, _MOST // n)):
        here = {name: values[start : start + max(1, _MOST // n)] for name, values in inputs.items()}
        ids = model.generate(**here, **options | drawing, logits_processor=[_Draw(n, temperature)])
        parts.append(functional.pad(ids, (0, width - ids.shape[1]), value=pad_id).view(-1, n, width))
    return torch.cat(parts).cpu().numpy()


class _Draw:
    """Draws the next token of each of `n` texts of each window: with Gumbel noise added to logits, the greatest is
    distributed as their softmax.

    The noise depends on the text's number and the token's place alone, and so no text on what else is written with it.
    """

    def __init__(self, n: int, temperature: float):
        self.n, self.temperature = n, temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        draw = torch.Generator().manual_seed(input_ids.shape[1])
        noise = -torch.empty(self.n, scores.shape[-1]).exponential_(generator=draw).log()
        noisy = scores.view(-1, self.n, scores.shape[-1]) / self.temperature + noise.to(scores.device)
        return torch.full_like(scores, -torch.inf).scatter_(1, noisy.argmax(-1).view(-1, 1), 0.0)


def most_alike(drawn: np.ndarray, special: list[int]) -> np.ndarray:
    """Of the texts of each window, shaped (windows, texts, tokens), the one with the highest mean F1 of its tokens with
    those of all (equation 5); `special` are no tokens of texts."""
    chosen = []
    for texts in drawn:
        known, places = np.unique(texts, return_inverse=True)
        counts = np.zeros((len(texts), len(known)), np.float32)
        np.add.at(counts, (np.arange(len(texts))[:, None], places.reshape(texts.shape)), 1)
        counts[:, np.isin(known, special)] = 0
        sizes = counts.sum(-1)
        common = np.minimum(counts[:, None], counts).sum(-1)
        alike = 2 * common / np.maximum(sizes[:, None] + sizes, 1)
        chosen.append(texts[alike.mean(1).argmax()])
    return np.stack(chosen)
