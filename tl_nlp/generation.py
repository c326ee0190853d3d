"""One token after another, in numpy: greedy, by beams, or of many texts drawn the one that is most like the others.

What it chooses is what `generate` of transformers chooses from the same logits; exports write with it, where there is
no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Decoder = Callable[[np.ndarray, np.ndarray | None], np.ndarray]
"""Logits of the next token, shape (texts, vocabulary), from the last token of each text. The second argument says of
which text of the step before each is the continuation; None: each of its own."""

MOST_TEXTS = 512
"""That are written at once, where several are for each window: so many scores of a vocabulary are held."""
_NEVER = -1e9  # a score that no text has


@dataclass(frozen=True)
class Settings:
    """How texts begin and end, and how they are searched for."""

    start: int  # the token before the first
    ends: tuple[int, ...]
    pad: int
    max_new_tokens: int
    min_new_tokens: int = 0
    beams: int = 1
    length_penalty: float = 1.0
    no_repeat_ngrams: int = 0
    early_stopping: bool = False
    first: int | None = None  # the token that every text begins with
    last: int | None = None  # the token at the last place
    candidates: int = 1
    temperature: float = 1.0

    @property
    def texts(self) -> int:
        """So many are written at once for each window."""
        return max(self.beams, self.candidates)

    def allowed(self, scores: np.ndarray, written: np.ndarray) -> np.ndarray:
        """Scores of the next token, shape (texts, vocabulary), minus infinity where it may not come after the tokens
        written, shape (texts, tokens)."""
        scores, n_new = scores.copy(), written.shape[1] - 1
        if self.no_repeat_ngrams:
            for row, theirs in zip(scores, written.tolist(), strict=True):
                row[_repeating(theirs, self.no_repeat_ngrams)] = -np.inf
        if n_new < self.min_new_tokens:
            scores[:, list(self.ends)] = -np.inf
        if self.first is not None and n_new == 0:
            scores = _only(self.first, scores)
        if self.last is not None and n_new == self.max_new_tokens - 1:
            scores = _only(self.last, scores)
        return scores


def _repeating(written: list[int], n: int) -> list[int]:
    """The tokens that would end a sequence of `n` that is there already."""
    if len(written) + 1 < n:
        return []
    begun = written[len(written) + 1 - n :]
    return [written[at + n - 1] for at in range(len(written) - n + 1) if written[at : at + n - 1] == begun]


def _only(token: int, scores: np.ndarray) -> np.ndarray:
    scores = np.full_like(scores, -np.inf)
    scores[:, token] = 0.0
    return scores


def written(decoder: Decoder, n_windows: int, settings: Settings) -> np.ndarray:
    """Token ids of a text for each window, shape (windows, tokens), with the start token first and padding at last.

    The decoder is asked for `settings.texts` texts of each window, those of one together.
    """
    if settings.beams > 1:
        return _by_beams(decoder, n_windows, settings)
    if settings.candidates == 1:
        return _step_by_step(decoder, n_windows, settings)
    drawn = _step_by_step(decoder, n_windows * settings.candidates, settings)
    special = [settings.pad, settings.start, *settings.ends]
    return most_alike(drawn.reshape(n_windows, settings.candidates, -1), special)


def _step_by_step(decoder: Decoder, n_texts: int, settings: Settings) -> np.ndarray:
    """The likeliest token each time, or one that is drawn."""
    texts = np.full((n_texts, 1 + settings.max_new_tokens), settings.pad, np.int64)
    texts[:, 0] = settings.start
    is_open = np.ones(n_texts, bool)
    for place in range(1, texts.shape[1]):
        scores = settings.allowed(decoder(texts[:, place - 1], None), texts[:, :place])
        if settings.candidates > 1:
            scores = drawing(scores, settings.candidates, settings.temperature, place)
        texts[is_open, place] = scores.argmax(-1)[is_open]
        is_open &= ~np.isin(texts[:, place], settings.ends)
        if not is_open.any():
            return texts[:, : place + 1]
    return texts


def _by_beams(decoder: Decoder, n_windows: int, settings: Settings) -> np.ndarray:
    """Beam search as of transformers: so many open texts of each window, and the best of those that have ended."""
    n, longest = settings.beams, 1 + settings.max_new_tokens
    n_kept = max(2, 1 + len(settings.ends)) * n  # so many that some stay open when others end
    texts = np.full((n_windows, n, longest), settings.pad or settings.ends[0], np.int64)
    texts[..., 0] = settings.start
    scores: np.ndarray = np.full((n_windows, n), _NEVER, np.float32)
    scores[:, 0] = 0.0  # all are alike at first, and one is enough to go on from
    ended, ended_scores = texts.copy(), np.full_like(scores, _NEVER)
    sizes, is_there = np.zeros((n_windows, n), np.int64), np.zeros((n_windows, n), bool)
    may_improve = np.ones((n_windows, 1), bool)
    origins: np.ndarray | None = None
    for place in range(1, longest):
        logits = decoder(texts[..., place - 1].ravel(), origins)
        found = settings.allowed(log_softmax(logits), texts[..., :place].reshape(-1, place))
        total = (found.reshape(n_windows, n, -1) + scores[..., None]).reshape(n_windows, -1)
        best = _highest(total, n_kept)
        values = np.take_along_axis(total, best, 1)
        beams, tokens = np.divmod(best, found.shape[1])
        longer = np.take_along_axis(texts, beams[..., None], 1)
        longer[..., place] = tokens
        ends = np.isin(tokens, settings.ends) | (place == longest - 1)

        still = values + ends * np.float32(_NEVER)
        chosen = _highest(still, n)
        texts, scores = np.take_along_axis(longer, chosen[..., None], 1), np.take_along_axis(still, chosen, 1)
        origins = (np.take_along_axis(beams, chosen, 1) + n * np.arange(n_windows)[:, None]).ravel()

        counts = ends & (np.arange(n_kept) < n)
        is_full = is_there.all(1, keepdims=True) & settings.early_stopping
        theirs = values / place**settings.length_penalty + np.float32(_NEVER) * (~counts + is_full + ~may_improve)
        both = np.concatenate([ended_scores, theirs], 1)
        chosen = _highest(both, n)
        ended_scores = np.take_along_axis(both, chosen, 1)
        ended = np.take_along_axis(np.concatenate([ended, longer], 1), chosen[..., None], 1)
        is_there = np.take_along_axis(np.concatenate([is_there, counts], 1), chosen, 1)
        sizes = np.take_along_axis(np.concatenate([sizes, np.full_like(tokens, place)], 1), chosen, 1)

        worst = np.where(is_there, ended_scores.min(1, keepdims=True), _NEVER)
        may_improve &= (scores[:, :1] / place**settings.length_penalty > worst).any(1, keepdims=True)
        if not may_improve.any() or ends.all() or (settings.early_stopping and is_there.all()):
            break
    return ended[:, 0, : 1 + sizes[:, 0].max()]


def _highest(values: np.ndarray, n: int) -> np.ndarray:
    """The places of the `n` highest values of each row, the highest first."""
    places = np.argpartition(-values, n - 1, axis=1)[:, :n] if n < values.shape[1] else np.argsort(-values, axis=1)
    order = np.argsort(-np.take_along_axis(values, places, 1), axis=1, kind="stable")
    return np.take_along_axis(places, order, 1)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities, over the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


# ---- texts that are drawn, and the one that the others agree with


def drawing(scores: Any, n: int, temperature: float, place: int) -> Any:
    """Scores whose greatest is a draw from their softmax: Gumbel noise is added. Of shape (windows · n, vocabulary).

    The noise depends on the text's number and the token's place alone, and so no text on what else is written with it.
    """
    draw = np.random.default_rng(place).standard_exponential((n, scores.shape[-1]), np.float32)
    noise = -np.log(np.maximum(draw, np.finfo(np.float32).tiny))
    return (scores.reshape(-1, n, scores.shape[-1]) / temperature + noise).reshape(scores.shape)


def most_alike(drawn: np.ndarray, special: list[int]) -> np.ndarray:
    """Of the texts of each window, shaped (windows, texts, tokens), the one that has the most in common with all: the
    highest mean of the F1 of its tokens and that of its pairs of tokens (equation 5 of Eikema & Aziz 2022,
    https://arxiv.org/abs/2108.04718, with that utility). `special` are no tokens of texts."""
    size, chosen = int(drawn.max()) + 1, []
    for texts in drawn:
        is_told = ~np.isin(texts, special)
        pairs, are_told = texts[:, :-1] * size + texts[:, 1:], is_told[:, :-1] | is_told[:, 1:]
        chosen.append(texts[(_in_common(texts, is_told) + _in_common(pairs, are_told)).mean(1).argmax()])
    return np.stack(chosen)


def _in_common(items: np.ndarray, are_there: np.ndarray) -> np.ndarray:
    """The F1 of what each text has with what each other has, shape (texts, texts), of items shaped (texts, places)."""
    known, places = np.unique(items, return_inverse=True)
    counts = np.zeros((len(items), len(known)), np.float32)
    np.add.at(counts, (np.arange(len(items))[:, None], places.reshape(items.shape)), are_there)
    sizes = counts.sum(-1)
    return 2 * np.minimum(counts[:, None], counts).sum(-1) / np.maximum(sizes[:, None] + sizes, 1)
