"""The small closed set of heads: a loss as (sum, count), and inference as numpy, for each kind of output.

A head knows no text and no label names. Its model is one of transformers' own classes, so artifacts open without this
package, but for those that end in a `Document`. Windows of one row are pooled here: an example's logits are the mean of
its windows' logits, weighted by their lengths, where nothing else is said.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tl_nlp import document
from tl_nlp.decoding import asked_beyond, in_their_words, options_of, texts_of
from tl_nlp.errors import RecipeError
from tl_nlp.families import without_peft
from tl_nlp.objective import Objective, divergence, from_teacher, listwise, yes_or_no
from tl_nlp.states import entered, looked_at

Batch = dict[str, Any]
"""`attention_mask` and `input_ids` of shape (windows, tokens), or in their place `states` of shape (windows, tokens,
hidden), which the top `n_above` blocks of the encoder read, or where that is 0 what stands on it; of shape (windows,):
`rows`, the index of each window's example, and `lengths`, the tokens it stands for; where the task counts them
`surface` of shape (examples, features) and `group` of shape (examples,); with targets `labels` of shape (examples,
...), or for text (windows, tokens), and then `told`, the places of those that are none of `IGNORED`; with a teacher its
`soft_targets` of shape (examples, answers). `n_rows` and `n_above` are numbers and no tensors.

While a model trains nothing here asks a GPU for a number, which would wait for all that it is still to do."""

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


_NEVER_SURE = 1e-6  # a gradient of 0 to a power below 1 is no number


class Head:
    """Base of the heads."""

    auto_class: str
    """The class of transformers that the model is loaded with."""
    reads_means = False
    """Whether it reads no more of a window's states than their mean, so that this one stands for all."""
    by_token = True
    """Whether it reads the state of each token, and not what the checkpoint's own classification class reads."""

    @property
    def is_own(self) -> bool:
        """Whether it has layers that transformers does not know."""
        return False

    def install(self, model: Any) -> None:
        """Puts layers of its own in the place of the model's. Raises RecipeError for a model that has no place."""
        return

    def logits(self, model: Any, batch: Batch) -> Tensor:
        """What the loss and the inference are computed from, the first dimension being the examples."""
        raise NotImplementedError

    def loss(self, logits: Tensor, batch: Batch, objective: Objective) -> tuple[Tensor, Tensor | int]:
        """The sum of the loss over what it counts, and that count."""
        raise NotImplementedError

    def soft_targets(self, logits: Tensor) -> Tensor:
        """What of a teacher's logits a student learns, of shape (examples, answers)."""
        return logits

    def soft_loss(self, logits: Tensor, batch: Batch, temperature: float) -> Tensor:
        """How far logits are from the batch's `soft_targets`, summed over what the loss counts, and nothing where a
        student answers as its teacher.

        Of labels the Kullback-Leibler divergence, at a temperature and times its square, whose gradient is that of the
        cross-entropy with soft targets (Hinton et al. 2015, https://arxiv.org/abs/1503.02531, section 2). Of numbers
        the loss that labels have.
        """
        raise NotImplementedError

    def divergence(self, one: Tensor, other: Tensor, batch: Batch) -> Tensor:
        """How far the predictions of two logits are apart, summed over what the loss counts: the mean of both
        Kullback-Leibler divergences, or the squared difference of numbers."""
        raise NotImplementedError

    def infer(self, model: Any, batch: Batch) -> list[np.ndarray]:
        """For each example what its task decodes."""
        raise NotImplementedError


def _forward(model: Any, batch: Batch) -> Tensor:
    """The model's own logits, in float32: of shape (windows, outputs), or (windows, tokens, outputs) by token."""
    inputs = {name: batch[name] for name in _INPUTS if name in batch}
    if "states" not in batch:
        return model(**inputs).logits.float()
    with entered(model, batch["states"], batch["n_above"]):
        return model(inputs_embeds=batch["states"], **inputs).logits.float()


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
    "attention" and "transformer" weigh a text's windows, by a `Document` of at most `max_windows`. So does whatever
    drops out pooled states, reads `n_surface` features of the surface with weights of their own for `n_groups`, or has
    to `compare` a text with its pair.
    """

    def __init__(
        self,
        pooling: str = "checkpoint",
        max_windows: int = 1,
        dropout: float = 0.0,
        n_surface: int = 0,
        n_groups: int = 0,
        compare: bool = False,
    ):
        self.by_token = pooling != "checkpoint"
        self.reads_means = self.by_token and not compare
        self.auto_class = f"AutoModelFor{'Token' if self.by_token else 'Sequence'}Classification"
        self._document: dict[str, Any] | None = None
        if pooling in ("attention", "transformer") or n_surface or dropout or compare:
            self._document = {
                "pooling": pooling,
                "max_windows": max_windows,
                "dropout": dropout,
                "n_surface": n_surface,
                "n_groups": n_groups,
                "compare": compare,
            }

    @property
    def is_own(self) -> bool:
        return self._document is not None

    def install(self, model: Any) -> None:
        if self._document is not None:
            document.insert(model, **self._document)

    def logits(self, model: Any, batch: Batch) -> Tensor:
        """Logits of shape (examples, outputs)."""
        mask, rows = batch["attention_mask"], batch["rows"]
        logits = _forward(model, batch)
        if self._document is not None:
            return document.document_of(model)(logits, batch).float()
        if self.by_token:
            # a window counts by its tokens, also where fewer states stand for them
            share = batch["lengths"] / mask.sum(1) if "states" in batch else torch.ones_like(rows)
            weights = (mask * share.unsqueeze(1)).flatten()
            logits, rows = logits.flatten(0, 1), rows.repeat_interleave(mask.shape[1])
        else:
            weights = batch["lengths"]
        return pool(logits, rows, weights, batch["n_rows"])


class Classify(Pooled):
    """Cross-entropy over the outputs; labels of shape (examples,). Infers probabilities.

    Focal loss (Lin et al. 2017, https://arxiv.org/abs/1708.02002, equation 4); logit adjustment (Menon et al. 2021,
    https://arxiv.org/abs/2007.07314, equation 10), which acts on the loss and not on the inference.
    """

    def loss(self, logits: Tensor, batch: Batch, objective: Objective) -> tuple[Tensor, Tensor | int]:
        labels = batch["labels"]
        if objective.log_priors is not None:
            logits = logits + objective.log_priors
        losses = functional.cross_entropy(logits, labels, label_smoothing=objective.label_smoothing, reduction="none")
        if objective.focal_gamma:
            right = logits.softmax(-1).gather(1, labels.unsqueeze(1))[:, 0]
            losses = losses * (1 - right).clamp_min(_NEVER_SURE) ** objective.focal_gamma
        if objective.weights is not None:
            losses = losses * objective.weights[labels]
        return losses.sum(), batch["n_rows"]

    def soft_loss(self, logits: Tensor, batch: Batch, temperature: float) -> Tensor:
        return temperature**2 * from_teacher(logits / temperature, batch["soft_targets"] / temperature).sum()

    def divergence(self, one: Tensor, other: Tensor, batch: Batch) -> Tensor:
        return divergence(one, other).sum()

    def infer(self, model: Any, batch: Batch) -> list[np.ndarray]:
        return list(self.logits(model, batch).softmax(-1).cpu().numpy())


class Multilabel(Pooled):
    """Binary cross-entropy of each output; labels of shape (examples, outputs). Infers probabilities.

    Weights act on the labels that are there; smoothing moves targets towards one half.
    """

    def loss(self, logits: Tensor, batch: Batch, objective: Objective) -> tuple[Tensor, Tensor | int]:
        labels = batch["labels"]
        smooth = labels * (1 - objective.label_smoothing) + objective.label_smoothing / 2
        losses = functional.binary_cross_entropy_with_logits(
            logits, smooth, pos_weight=objective.weights, reduction="none"
        )
        if objective.focal_gamma:
            right = torch.where(labels > 0.5, logits, -logits).sigmoid()
            losses = losses * (1 - right).clamp_min(_NEVER_SURE) ** objective.focal_gamma
        return losses.sum(), labels.numel()

    def soft_loss(self, logits: Tensor, batch: Batch, temperature: float) -> Tensor:
        both = (yes_or_no(one / temperature) for one in (logits, batch["soft_targets"]))
        return temperature**2 * from_teacher(*both).sum()

    def divergence(self, one: Tensor, other: Tensor, batch: Batch) -> Tensor:
        return divergence(yes_or_no(one), yes_or_no(other)).sum()

    def infer(self, model: Any, batch: Batch) -> list[np.ndarray]:
        return list(self.logits(model, batch).sigmoid().cpu().numpy())


class Regress(Pooled):
    """Squared error of each output; labels of shape (examples, outputs), NaN where there is none. Infers the logits.

    `loss` "huber" grows by the distance alone beyond `_HUBER` (Huber 1964), so that odd grades pull less.
    """

    def __init__(self, pooling: str = "checkpoint", loss: str = "squared", **shape: Any):
        super().__init__(pooling, **shape)
        self.is_huber = loss == "huber"

    def loss(self, logits: Tensor, batch: Batch, objective: Objective) -> tuple[Tensor, Tensor | int]:
        labels = batch["labels"]
        known = ~labels.isnan()
        losses = self._distances(logits, labels.nan_to_num()).masked_fill(~known, 0).sum()
        return losses + self._disorder(logits, labels, objective), known.sum()

    def _disorder(self, logits: Tensor, labels: Tensor, objective: Objective) -> Tensor | float:
        return objective.ranking * listwise(self.shares(logits), labels) if objective.ranking else 0.0

    def soft_targets(self, logits: Tensor) -> Tensor:
        return self.shares(logits)

    def soft_loss(self, logits: Tensor, batch: Batch, temperature: float) -> Tensor:
        """Of the traits that have a label, so that it counts what the loss counts."""
        distances = self._distances(self.shares(logits), batch["soft_targets"])
        return distances.masked_fill(batch["labels"].isnan(), 0).sum()

    def _distances(self, found: Tensor, wanted: Tensor) -> Tensor:
        if self.is_huber:
            return 2 * functional.huber_loss(found, wanted, delta=_HUBER, reduction="none")
        return (found - wanted).square()

    def shares(self, logits: Tensor) -> Tensor:
        """Grades as shares of the scale, of shape (examples, traits)."""
        return logits

    def divergence(self, one: Tensor, other: Tensor, batch: Batch) -> Tensor:
        gaps = (self.shares(one) - self.shares(other)).square()
        return gaps.masked_fill(batch["labels"].isnan(), 0).sum()

    def infer(self, model: Any, batch: Batch) -> list[np.ndarray]:
        return list(self.shares(self.logits(model, batch)).cpu().numpy())


_HUBER = 0.1  # of the scale


class Ordinal(Regress):
    """For each trait whether its level is above the first, above the second and so on, each asked of the examples that
    are above the one before (CORN, Shi et al. 2021, https://arxiv.org/abs/2111.08851, equation 8).

    Logits of shape (examples, traits * (n_levels - 1)); labels are shares of the scale, of shape (examples, traits),
    NaN where there is none. Infers the expected level as a share of the scale.
    """

    def __init__(self, pooling: str = "checkpoint", n_levels: int = 2, **shape: Any):
        super().__init__(pooling, **shape)
        self.n_levels = n_levels

    def loss(self, logits: Tensor, batch: Batch, objective: Objective) -> tuple[Tensor, Tensor | int]:
        labels = batch["labels"]
        known = ~labels.isnan()
        asked = logits.unflatten(1, (labels.shape[1], -1))
        levels = (labels.nan_to_num() * (self.n_levels - 1)).round().unsqueeze(2)
        steps = torch.arange(self.n_levels - 1, device=logits.device)
        losses = functional.binary_cross_entropy_with_logits(asked, (levels > steps).to(asked), reduction="none")
        losses = losses.masked_fill((levels < steps) | ~known.unsqueeze(2), 0).sum()
        return losses + self._disorder(logits, labels, objective), known.sum()

    def shares(self, logits: Tensor) -> Tensor:
        return logits.unflatten(1, (-1, self.n_levels - 1)).sigmoid().cumprod(2).mean(2)


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
        sentences, n_rows = batch["sentence_ids"], batch["n_rows"]
        n_sentences = int(sentences.max()) + 1 if "labels" not in batch else batch["labels"].shape[1]
        inside = (sentences >= 0).long().flatten()
        places = (batch["rows"].unsqueeze(1) * n_sentences + sentences.clamp_min(0)).flatten()
        pooled = pool(logits.flatten(0, 1)[:, :1], places, inside, n_rows * n_sentences)
        seen = inside.new_zeros(n_rows * n_sentences).index_add(0, places, inside) > 0
        return pooled[:, 0].masked_fill(~seen, -torch.inf).view(n_rows, n_sentences)

    def loss(self, logits: Tensor, batch: Batch, objective: Objective) -> tuple[Tensor, Tensor | int]:
        labels = batch["labels"]
        known = ~labels.isnan() & ~logits.isinf()
        targets = (labels / self.temperature).masked_fill(~known, -torch.inf).softmax(-1)
        log_shares = logits.masked_fill(~known, -torch.inf).log_softmax(-1)
        return -(targets * log_shares.masked_fill(~known, 0.0)).sum(), batch["n_rows"]

    def divergence(self, one: Tensor, other: Tensor, batch: Batch) -> Tensor:
        unknown = batch["labels"].isnan() | one.isinf()
        lowest = torch.finfo(one.dtype).min / 2
        return divergence(one.masked_fill(unknown, lowest), other.masked_fill(unknown, lowest)).sum()

    def infer(self, model: Any, batch: Batch) -> list[np.ndarray]:
        return list(self.logits(model, batch).cpu().numpy())


class Generate(Head):
    """Cross-entropy of each token; labels of shape (windows, tokens), `IGNORED` where none is. Infers token ids, shaped
    (windows, tokens)."""

    auto_class = "AutoModelForSeq2SeqLM"

    def __init__(self, **searched: Any):
        self.searched = searched  # the fields of `generation.Settings` that a task has

    def install(self, model: Any) -> None:
        """Writes the settings into the model's own, so that plain transformers writes as we do."""
        beyond = asked_beyond(model)
        if beyond is not None and self.searched["candidates"] > 1:
            raise RecipeError(
                f"the checkpoint's generation_config has {beyond}, which drawing does not know; task.candidates=1",
                "task.candidates",
            )
        for name, value in options_of(self.searched).items():
            setattr(model.generation_config, name, value)

    def logits(self, model: Any, batch: Batch) -> Tensor:
        """Of shape (labels, vocabulary), of the labels that are none of `IGNORED`, window after window: each token's
        given those before it."""
        plain, told = without_peft(model), batch["told"]
        before = plain.prepare_decoder_input_ids_from_labels(labels=batch["labels"])
        inputs = in_their_words(looked_at(model, batch))
        # more than half of the places are padding, and the vocabulary takes a quarter of a step of MiniLM's size
        hook = plain.get_output_embeddings().register_forward_pre_hook(
            lambda _, states: (states[0].flatten(0, 1)[told],)
        )
        try:
            return model(**inputs, decoder_input_ids=before, use_cache=False).logits.float()
        finally:
            hook.remove()

    def loss(self, logits: Tensor, batch: Batch, objective: Objective) -> tuple[Tensor, Tensor | int]:
        labels = batch["labels"].flatten()[batch["told"]]
        smoothing = objective.label_smoothing
        loss = functional.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="sum")
        return loss, len(labels)

    def divergence(self, one: Tensor, other: Tensor, batch: Batch) -> Tensor:
        return divergence(one, other).sum()

    def infer(self, model: Any, batch: Batch) -> list[np.ndarray]:
        written = texts_of(model, looked_at(model, batch), self.searched)
        rows = batch["rows"].cpu().numpy()
        return [written[rows == row] for row in range(batch["n_rows"])]


HEADS: dict[str, type[Head]] = {
    "classify": Classify,
    "multilabel": Multilabel,
    "regress": Regress,
    "ordinal": Ordinal,
    "select": Select,
    "generate": Generate,
}


def head_of(task: Any) -> Head:
    """The head that learns a task and infers for it."""
    return HEADS[task.head_kind](**task.head_settings())
