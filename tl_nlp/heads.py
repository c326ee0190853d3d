"""The small closed set of heads: a loss as (sum, count), and inference as numpy, for each kind of output.

A head knows no text and no label names. Its model is one of transformers' own classes, so artifacts open without this
package. Windows of one row are pooled here: an example's logits are the mean of its windows' logits, weighted by their
lengths.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Batch = dict[str, Tensor]
"""`input_ids` (or `inputs_embeds`) and `attention_mask` of shape (windows, tokens); of shape (windows,): `rows`, the
index of each window's example, and `lengths`, the tokens it stands for; `n_rows`; with targets `labels` of shape
(examples, ...)."""

_INPUTS = ("input_ids", "inputs_embeds", "attention_mask", "token_type_ids")


class Head:
    """Base of the heads."""

    auto_class: str
    """The class of transformers that the model is loaded with."""

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """The sum of the loss over what it counts, and that count."""
        raise NotImplementedError

    def infer(self, model: Any, batch: Batch) -> list[np.ndarray]:
        """For each example what its task decodes."""
        raise NotImplementedError


def _forward(model: Any, batch: Batch) -> Tensor:
    """The model's own logits, in float32: of shape (windows, outputs), or (windows, tokens, outputs) by token."""
    return model(**{name: batch[name] for name in _INPUTS if name in batch}).logits.float()


def pool(values: Tensor, rows: Tensor, weights: Tensor, n_rows: int) -> Tensor:
    """Weighted means of `values`, shape (items, outputs), over the items of each row: shape (n_rows, outputs)."""
    weights = weights.to(values.dtype).unsqueeze(1)
    sums = values.new_zeros(n_rows, values.shape[1]).index_add(0, rows, values * weights)
    totals = values.new_zeros(n_rows, 1).index_add(0, rows, weights)
    return sums / totals.clamp_min(torch.finfo(values.dtype).tiny)


class Pooled(Head):
    """Base of the heads with a fixed number of outputs for each example.

    `pooling` "checkpoint" is what the checkpoint's own classification class does (BERT: its first token through the
    pooler). "mean" averages the logits of all tokens, which equals a linear layer on the mean of their states.
    """

    def __init__(self, pooling: str = "checkpoint"):
        self.by_token = pooling == "mean"
        self.auto_class = f"AutoModelFor{'Token' if self.by_token else 'Sequence'}Classification"

    def logits(self, model: Any, batch: Batch) -> Tensor:
        """Logits of shape (examples, outputs)."""
        mask, rows = batch["attention_mask"], batch["rows"]
        logits = _forward(model, batch)
        if self.by_token:
            logits, rows, weights = logits.flatten(0, 1), rows.repeat_interleave(mask.shape[1]), mask.flatten()
        else:
            weights = batch["lengths"]
        return pool(logits, rows, weights, int(batch["n_rows"]))


class Classify(Pooled):
    """Cross-entropy over the outputs; labels of shape (examples,). Infers probabilities."""

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        loss = functional.cross_entropy(self.logits(model, batch), batch["labels"], reduction="sum")
        return loss, batch["n_rows"]

    def infer(self, model: Any, batch: Batch) -> list[np.ndarray]:
        return list(self.logits(model, batch).softmax(-1).cpu().numpy())


class Multilabel(Pooled):
    """Binary cross-entropy of each output; labels of shape (examples, outputs). Infers probabilities."""

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        logits, labels = self.logits(model, batch), batch["labels"]
        loss = functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
        return loss, torch.tensor(labels.numel())

    def infer(self, model: Any, batch: Batch) -> list[np.ndarray]:
        return list(self.logits(model, batch).sigmoid().cpu().numpy())


class Regress(Pooled):
    """Squared error of each output; labels of shape (examples, outputs), NaN where there is none. Infers the logits."""

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        logits, labels = self.logits(model, batch), batch["labels"]
        known = ~labels.isnan()
        return (logits[known] - labels[known]).square().sum(), known.sum()

    def infer(self, model: Any, batch: Batch) -> list[np.ndarray]:
        return list(self.logits(model, batch).cpu().numpy())


class Select(Head):
    """Scores of the sentences of each example, learned from targets between 0 and 1.

    A sentence's logit is the mean of its tokens' logits, which equals a linear layer on the mean of its states. The
    loss compares, over the sentences of one example, the softmax of the logits with the softmax of the targets divided
    by `temperature`: listwise cross-entropy (ListNet, Cao et al. 2007). labels: (examples, sentences), NaN where none
    is. Infers logits, -inf for a sentence in no window.
    """

    auto_class = "AutoModelForTokenClassification"

    def __init__(self, temperature: float = 1.0):
        self.temperature = temperature

    def logits(self, model: Any, batch: Batch) -> Tensor:
        """Of shape (examples, sentences), -inf where no token was."""
        logits = _forward(model, batch)
        sentences, n_rows = batch["sentence_ids"], int(batch["n_rows"])
        inside = sentences >= 0
        n_sentences = int(sentences.max()) + 1 if "labels" not in batch else batch["labels"].shape[1]
        places = (batch["rows"].unsqueeze(1) * n_sentences + sentences)[inside]
        ones = torch.ones_like(places)
        pooled = pool(logits[..., 0][inside].unsqueeze(1), places, ones, n_rows * n_sentences)
        seen = ones.new_zeros(n_rows * n_sentences).index_add(0, places, ones) > 0
        return pooled[:, 0].masked_fill(~seen, -torch.inf).view(n_rows, n_sentences)

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        logits, labels = self.logits(model, batch), batch["labels"]
        known = ~labels.isnan() & ~logits.isinf()
        targets = (labels / self.temperature).masked_fill(~known, -torch.inf).softmax(-1)
        log_shares = logits.masked_fill(~known, -torch.inf).log_softmax(-1)
        return -(targets * log_shares.masked_fill(~known, 0.0)).sum(), batch["n_rows"]

    def infer(self, model: Any, batch: Batch) -> list[np.ndarray]:
        return list(self.logits(model, batch).cpu().numpy())


class Generate(Head):
    """Cross-entropy of each token; labels of shape (examples, tokens), -100 where none is. Infers token ids."""

    auto_class = "AutoModelForSeq2SeqLM"

    def __init__(self, max_new_tokens: int = 64, min_new_tokens: int = 0, beams: int = 1):
        self.options = {"max_new_tokens": max_new_tokens, "min_new_tokens": min_new_tokens, "num_beams": beams}

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        logits = model(**inputs).logits.float()
        loss = functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum")
        return loss, (batch["labels"] != -100).sum()

    def infer(self, model: Any, batch: Batch) -> list[np.ndarray]:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return list(model.generate(**inputs, **self.options, do_sample=False).cpu().numpy())


HEADS: dict[str, type[Head]] = {
    "classify": Classify,
    "multilabel": Multilabel,
    "regress": Regress,
    "select": Select,
    "generate": Generate,
}
