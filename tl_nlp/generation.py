"""One token after another: greedy, by beams, or of many texts drawn the one that is most like the others.

What it chooses is what `generate` of transformers chooses from the same logits. Models of torch and exports write with
it: all that is as large as the vocabulary is left to them (`Highest`), and what is searched here, in numpy, are the few
tokens of each text that came out highest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

Decoder = Callable[[np.ndarray, np.ndarray | None], Any]
"""Logits of the next token, shape (texts, vocabulary), from the last token of each text. The second argument says of
which text of the step before each is the continuation, and those of a window stay together; None: each of its own."""

Highest = Callable[[Any, "Wanted"], tuple[np.ndarray, np.ndarray]]
"""Of logits the scores of the tokens that are wanted and the tokens, both of shape (texts, n), the highest first."""

MOST_TEXTS = 512
"""That are written at once, where several are for each window: so many scores of a vocabulary are held."""
_NEVER = -1e9  # a score that no text has
_FEWER = 0.75  # of the windows are still written: the others are left behind, which copies what is kept of these


@dataclass(frozen=True)
class Wanted:
    """What is asked of the logits of a step."""

    n: int  # so many tokens for each text
    are_normed: bool = False  # scores are log-probabilities
    never: tuple[int, ...] = ()  # tokens that none may have
    not_after: tuple[np.ndarray, np.ndarray] | None = None  # texts, and for each a token that it may not have
    noise: Callable[[int], np.ndarray] | None = None  # what is added to scores of a vocabulary of so many tokens
    temperature: float = 1.0


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

    def forced(self, place: int) -> int | None:
        """The token that comes at a place, whatever the model says; the first is place 1."""
        if place == self.max_new_tokens and self.last is not None:
            return self.last
        return self.first if place == 1 else None

    def wanted(self, n: int, written: np.ndarray) -> Wanted:
        """What comes next of texts, shape (texts, tokens), the start token among them."""
        place, not_after, noise = written.shape[1], None, None
        if self.no_repeat_ngrams:
            repeating = [_repeating(theirs, self.no_repeat_ngrams) for theirs in written.tolist()]
            texts = np.repeat(np.arange(len(written)), [len(tokens) for tokens in repeating])
            not_after = texts, np.asarray([token for tokens in repeating for token in tokens], np.int64)
        if self.candidates > 1:
            noise = partial(gumbel, self.candidates, place)
        never = self.ends if place <= self.min_new_tokens else ()
        return Wanted(n, self.beams > 1, never, not_after, noise, self.temperature)


def _repeating(written: list[int], n: int) -> list[int]:
    """The tokens that would end a sequence of `n` that is there already."""
    if len(written) + 1 < n:
        return []
    begun = written[len(written) + 1 - n :]
    return [written[at + n - 1] for at in range(len(written) - n + 1) if written[at : at + n - 1] == begun]


def written(decoder: Decoder, highest: Highest, n_windows: int, settings: Settings) -> np.ndarray:
    """Token ids of a text for each window, shape (windows, tokens), with the start token first and padding at last.

    The decoder is asked for `settings.texts` texts of each window, those of one together, until all are at their ends.
    """
    write = _by_beams if settings.beams > 1 else _step_by_step
    return write(_Steps(decoder, highest, settings), n_windows)


def in_parts(write: Callable[[slice], np.ndarray], n_windows: int, settings: Settings) -> np.ndarray:
    """What `write` gives for some windows at a time, together; see `MOST_TEXTS`."""
    most = n_windows if settings.texts == 1 else max(1, MOST_TEXTS // settings.texts)
    parts = [write(slice(start, start + most)) for start in range(0, n_windows, most)]
    width = max(part.shape[1] for part in parts)
    wide = [np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=settings.pad) for part in parts]
    return np.concatenate(wide)


@dataclass
class _Steps:
    decoder: Decoder
    highest: Highest
    settings: Settings

    def next(self, n: int, written: np.ndarray, origins: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Scores and tokens, of shape (texts, n), that may follow the tokens of texts, shape (texts, tokens)."""
        logits = self.decoder(written[:, -1], origins)
        forced = self.settings.forced(written.shape[1])
        if forced is None:
            return self.highest(logits, self.settings.wanted(n, written))
        scores = np.full((len(written), n), -np.inf, np.float32)
        scores[:, 0] = 0.0
        return scores, np.full(scores.shape, forced)


def _step_by_step(steps: _Steps, n_windows: int) -> np.ndarray:
    """The likeliest token each time, or one that is drawn."""
    settings = steps.settings
    n, here = settings.candidates, np.arange(n_windows)
    texts = np.full((n_windows, n, 1 + settings.max_new_tokens), settings.pad, np.int64)
    texts[..., 0] = settings.start
    is_open, origins = np.ones((n_windows, n), bool), None
    for place in range(1, texts.shape[2]):
        _, tokens = steps.next(1, texts[here, :, :place].reshape(-1, place), origins)
        texts[here, :, place] = np.where(is_open[here], tokens.reshape(-1, n), settings.pad)
        is_open[here] &= ~np.isin(texts[here, :, place], settings.ends)
        goes_on, origins = is_open[here].any(1), None
        if not goes_on.any():
            texts = texts[..., : place + 1]
            break
        if goes_on.mean() < _FEWER:
            here, origins = here[goes_on], np.flatnonzero(goes_on.repeat(n))
    return texts[:, 0] if n == 1 else most_alike(texts, [settings.pad, settings.start, *settings.ends])


def _by_beams(steps: _Steps, n_windows: int) -> np.ndarray:
    """Beam search as of transformers: so many open texts of each window, and the best of those that have ended."""
    settings = steps.settings
    n, longest = settings.beams, 1 + settings.max_new_tokens
    n_kept = max(2, 1 + len(settings.ends)) * n  # so many that some stay open when others end
    texts = np.full((n_windows, n, longest), settings.pad or settings.ends[0], np.int64)
    texts[..., 0] = settings.start
    scores: np.ndarray = np.full((n_windows, n), _NEVER, np.float32)
    scores[:, 0] = 0.0  # all are alike at first, and one is enough to go on from
    ended, ended_scores = texts.copy(), np.full_like(scores, _NEVER)
    sizes, is_there = np.zeros((n_windows, n), np.int64), np.zeros((n_windows, n), bool)
    may_improve = np.ones((n_windows, 1), bool)
    answers, n_written = texts[:, 0].copy(), np.zeros(n_windows, np.int64)
    here, origins = np.arange(n_windows), None
    for place in range(1, longest):
        found, candidates = steps.next(n_kept, texts[..., :place].reshape(-1, place), origins)
        n_found = found.shape[1]  # of a vocabulary of fewer tokens less
        total = (found.reshape(-1, n, n_found) + scores[..., None]).reshape(len(here), -1)
        best = _highest(total, n_kept)
        values, beams = np.take_along_axis(total, best, 1), best // n_found
        tokens = np.take_along_axis(candidates.reshape(len(here), -1), best, 1)
        longer = np.take_along_axis(texts, beams[..., None], 1)
        longer[..., place] = tokens
        ends = np.isin(tokens, settings.ends) | (place == longest - 1)

        still = values + ends * np.float32(_NEVER)
        chosen = _highest(still, n)
        texts, scores = np.take_along_axis(longer, chosen[..., None], 1), np.take_along_axis(still, chosen, 1)
        continued = np.take_along_axis(beams, chosen, 1) + n * np.arange(len(here))[:, None]

        counts = ends & (np.arange(ends.shape[1]) < n)
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
        goes_on = may_improve[:, 0] & ~ends.all(1) & ~(is_there.all(1) & settings.early_stopping)
        if goes_on.mean() < _FEWER:
            answers[here[~goes_on]], n_written[here[~goes_on]] = ended[~goes_on, 0], sizes[~goes_on, 0]
            if not goes_on.any():
                break
            state = here, texts, scores, ended, ended_scores, sizes, is_there, may_improve, continued
            here, texts, scores, ended, ended_scores, sizes, is_there, may_improve, continued = (
                part[goes_on] for part in state
            )
        origins = continued.ravel()
    return answers[:, : 1 + n_written.max()]


def _highest(values: np.ndarray, n: int) -> np.ndarray:
    """The places of the `n` highest values of each row, the highest first."""
    places = np.argpartition(-values, n - 1, axis=1)[:, :n] if n < values.shape[1] else np.argsort(-values, axis=1)
    order = np.argsort(-np.take_along_axis(values, places, 1), axis=1, kind="stable")
    return np.take_along_axis(places, order, 1)


def highest(logits: np.ndarray, wanted: Wanted) -> tuple[np.ndarray, np.ndarray]:
    """See `Highest`; the logits are changed."""
    norms = _log_of_sum(logits) if wanted.are_normed else np.float32(0)
    logits[:, list(wanted.never)] = -np.inf
    if wanted.not_after is not None:
        logits[wanted.not_after] = -np.inf
    if wanted.noise is not None:
        noise = wanted.noise(logits.shape[1])
        logits = (logits.reshape(-1, *noise.shape) / wanted.temperature + noise).reshape(logits.shape)
    tokens = logits.argmax(1, keepdims=True) if wanted.n == 1 else _highest(logits, wanted.n)
    return np.take_along_axis(logits, tokens, 1) - norms, tokens


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities, over the last axis."""
    return logits - _log_of_sum(logits)


def _log_of_sum(logits: np.ndarray) -> np.ndarray:
    most = logits.max(-1, keepdims=True)
    return most + np.log(np.exp(logits - most).sum(-1, keepdims=True))


# ---- texts that are drawn, and the one that the others agree with


def gumbel(n: int, place: int, size: int) -> np.ndarray:
    """Noise of shape (n, size): the greatest of scores that it is added to is a draw from their softmax.

    It depends on the text's number and the token's place alone, and so no text on what else is written with it.
    """
    draw = np.random.default_rng(place).standard_exponential((n, size), np.float32)
    return -np.log(np.maximum(draw, np.finfo(np.float32).tiny))


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
