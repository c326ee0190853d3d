"""What in a text moved the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tl_nlp.prediction import Predictor
from tl_nlp.types import Scores

MOST_SENTENCES = 60  # a text is read once without each


@dataclass(frozen=True)
class Part:
    """A stretch of a text, and how much lower each score would be without it; None where that was not asked."""

    text: str
    effect: dict[str, float] | None = None


def sentence_effects(predictor: Predictor, text: str, pair: str | None = None, **columns: Any) -> list[Part]:
    """The text in parts, its sentences and what is between them, in order: their texts joined are the text.

    The effect of a sentence is the text's score less the score without it, in points, for each trait (occlusion,
    Zeiler & Fergus 2014, by sentences). Of more than `MOST_SENTENCES` the later ones are joined to longer parts. A text
    of one sentence has no effects. `columns` go along with the text, as `group="letter"`. Raises DataError for an empty
    text.
    """
    spans = _spans(text, predictor.task.sentences_of({"text": [text]})[0])
    without = [text[:start] + text[end:] for start, end in spans] if len(spans) > 1 else []
    texts = [text, *without]
    given = {name: [value] * len(texts) for name, value in columns.items()}
    answers = predictor(texts, None if pair is None else [pair] * len(texts), **given)
    scores = [answer.scores for answer in answers if isinstance(answer, Scores)]
    parts, at = [], 0
    for (start, end), left in zip(spans, scores[1:], strict=bool(without)):
        if start > at:
            parts.append(Part(text[at:start]))
        parts.append(Part(text[start:end], {trait: scores[0][trait] - score for trait, score in left.items()}))
        at = end
    return [*parts, Part(text[at:])] if at < len(text) else parts


def _spans(text: str, sentences: list[str]) -> list[tuple[int, int]]:
    """Where each sentence begins and ends, those too many for a span of their own joined to the ones beside them."""
    spans, at = [], 0
    for sentence in sentences:
        start = text.find(sentence, at)
        if start >= 0:
            at = start + len(sentence)
            spans.append((start, at))
    n_joined = -(-len(spans) // MOST_SENTENCES)
    return [
        (run[0][0], run[-1][1]) for run in (spans[at : at + n_joined] for at in range(0, len(spans), n_joined or 1))
    ]
