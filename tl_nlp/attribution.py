"""What in a text moved the answer: words and sentences with their effects, and how far to trust them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tl_nlp import saliency, types
from tl_nlp.batches import collate
from tl_nlp.errors import DataError, RecipeError
from tl_nlp.hardware import inferring
from tl_nlp.prediction import Predictor
from tl_nlp.saliency import Reading, Span
from tl_nlp.types import Label, Labels, Prediction, Scores, Text
from tl_nlp.windows import TEXT, shorten

if TYPE_CHECKING:
    from datasets import Dataset

METHODS = ("integrated_gradients", "occlusion")
MOST_WORDS = {"integrated_gradients": 1000, "occlusion": 200}  # of a text; a longer one is explained by sentences alone
MOST_SENTENCES = 60  # a text is read once without each

_FEWEST_WORDS = 5  # that a deletion test is made of
_DELETED = 0.2  # of the words, in that test
_N_DRAWS = 10  # of as many other words
_LEAST = 1e-7  # of a probability whose logarithm is taken


@dataclass(frozen=True)
class Part:
    """A stretch of a text and its effect; None for what has none: spaces, marks between words, what was not read."""

    text: str
    effect: float | None = None


@dataclass(frozen=True)
class Deletion:
    """How far to trust the effects of words: how much the answer falls without the words that are named to speak for it
    most, and without as many others (comprehensiveness, DeYoung et al. 2020, https://aclanthology.org/2020.acl-main.408,
    equation 1).

    `fall` and `random_fall` are in `unit`; the latter is the mean of `_N_DRAWS` draws among the words not named.
    """

    n_words: int
    fall: float
    random_fall: float
    unit: str  # probability, points or log-probability

    @property
    def told(self) -> str:
        """In one sentence."""
        named, others = (f"{self.n_words} words", f"{self.n_words} others") if self.n_words > 1 else ("word", "another")
        what = "score" if self.unit == "points" else self.unit
        return (
            f"Without the {named} it names the {what} {self._moved(self.fall)}; "
            f"without {others} it {self._moved(self.random_fall)} on average."
        )

    def _moved(self, fall: float) -> str:
        return f"{'falls' if fall >= 0 else 'rises'} by {abs(fall):.2f}{' points' if self.unit == 'points' else ''}"


@dataclass(frozen=True)
class Explanation:
    """Why a model gave its answer: how much each word and each sentence adds to one number of it.

    The number is, by `unit`, the log-odds of a label (the logarithm of its probability over that of all others), a
    trait's score in points, or the log-probability of the text that was written, or of a word in it. `parts` are words,
    with scores not held to the ends of their scale, `sentences` sentences, each with what is between: their texts
    joined are the text. An effect above 0 speaks for the answer. Integrated gradients share out the number less the
    number of the text with all its words unknown; `lacking` is what their sum is off it.
    """

    target: str  # a label, a trait, the text written or the word of it
    answer: Prediction
    method: str
    unit: str  # log-odds, points or log-probability
    parts: list[Part]
    sentences: list[Part]
    deletion: Deletion | None  # None for a text of few words, and where no word speaks for the answer
    lacking: float | None = None
    note: str | None = None  # what is not shown, and why

    def top(self, n: int = 10) -> list[Part]:
        """The words of largest effect in size, at most `n`; one that is repeated, in whatever case, once, with its
        effects added up."""
        sums: dict[str, float] = {}
        first: dict[str, str] = {}
        for part in self.parts:
            if part.effect is not None:
                word = part.text.casefold()
                first.setdefault(word, part.text)
                sums[word] = sums.get(word, 0.0) + part.effect
        ordered = sorted(sums, key=lambda word: -abs(sums[word]))
        return [Part(first[word], sums[word]) for word in ordered[:n]]

    def as_json(self) -> dict[str, Any]:
        """As the one JSON object of `tl-nlp explain`; absent parts are left out."""
        values = {**asdict(self), "answer": types.as_json(self.answer)}
        if self.deletion is not None:
            values["deletion"]["told"] = self.deletion.told
        return {name: value for name, value in values.items() if value is not None}


def explain(
    predictor: Predictor,
    text: str,
    pair: str | None = None,
    *,
    method: str = "integrated_gradients",
    target: str | None = None,
    **columns: Any,
) -> Explanation:
    """Why the model answers so to a text.

    `target` is a label, a trait or a word that was written; else the label that is likeliest, the first trait, all that
    was written. `columns` go along with the text, as `group="letter"`. Texts of more than `MOST_WORDS` words are
    explained by sentences alone. Raises RecipeError for a method or target that is not there, DataError for an empty
    text and for a task that picks sentences, CheckpointError for a model that gradients or words cannot be had of,
    HardwareError where captum is missing.
    """
    if method not in METHODS:
        raise RecipeError(f"no {method!r}; there are: {', '.join(METHODS)}", "method")
    case = _Case(predictor, text, pair, columns, target)
    words = saliency.word_spans(text)
    effects: dict[int, float] = {}
    lacking, deletion, notes = None, None, []
    if len(words) > MOST_WORDS[method]:
        notes.append(f"The text has {len(words):,} words; up to {MOST_WORDS[method]:,} are shown one by one.")
    else:
        reading, tokens = case.reading(), case.token_spans()
        words = saliency.whole(words, tokens)
        groups = saliency.groups_of(words, tokens)
        if method == "occlusion":
            effects = saliency.occlusion(reading, groups)
        else:
            effects, lacking = saliency.integrated_gradients(reading, groups)
        if len(effects) < len(words):
            notes.append(
                f"{len(words) - len(effects):,} of {len(words):,} words are in no window, so nothing read them."
            )
        if case.labels is not None and len(case.labels) > 1:
            notes.append("A text that is read in chunks has no deletion test: without some words they would be others.")
        else:
            deletion = _deletion(case, words, effects)
    parts = _parts(text, words, effects)
    told = " ".join(notes) or None
    return Explanation(case.name, case.answer, method, case.unit, parts, case.sentences(), deletion, lacking, told)


def sentence_effects(
    predictor: Predictor, text: str, pair: str | None = None, *, target: str | None = None, **columns: Any
) -> list[Part]:
    """The text in parts, its sentences and what is between them, in order: their texts joined are the text.

    The effect of a sentence is the text's number less the number without it (occlusion, Zeiler & Fergus 2014, by
    sentences): see `Explanation` for the number, `explain` for `target`, `columns` and what is raised; where a text was
    written, the sentence's tokens are unknown and not gone. Of more than `MOST_SENTENCES` the later ones are joined to
    longer parts. A text of one sentence has no effects.
    """
    return _Case(predictor, text, pair, columns, target).sentences()


def _encoded(predictor: Predictor, values: dict[str, list[Any]]) -> Dataset:
    from datasets import Dataset

    return Dataset.from_dict(predictor.task.encode(values, predictor.tokenizer))


# ---- the answer and its number


class _Case:
    """A text, the answer to it, and the number of the answer that is explained."""

    def __init__(
        self, predictor: Predictor, text: str, pair: str | None, columns: dict[str, Any], target: str | None = None
    ):
        predictor.refuse_export("gradients or states to explain them by")
        if predictor.task.head == "select":
            raise DataError(
                f"task {predictor.task.kind} shows itself what it picked, and its answer is made of nothing else; "
                "tl-nlp predict lists the sentences"
            )
        if not isinstance(text, str) or not text.strip():
            raise DataError("the text is empty; there is nothing to explain")
        self.predictor, self.text = predictor, text
        self._beside = {**columns, **({} if pair is None else {"pair": pair})}
        outputs = predictor.infer(_encoded(predictor, self._rows([text])))
        self.answer = predictor.task.decode(outputs, self._rows([text]), predictor.tokenizer)[0]
        self.labels: torch.Tensor | None = None  # tokens that were written, of shape (windows, tokens)
        if isinstance(self.answer, Text):
            self._explain_text(self.answer, np.atleast_2d(outputs[0]).tolist(), target)
        else:
            self._explain_output(self.answer, target)

    def _rows(self, texts: list[str]) -> dict[str, list[Any]]:
        ids = [str(number) for number in range(len(texts))]
        return {"id": ids, "text": texts, **{name: [value] * len(texts) for name, value in self._beside.items()}}

    def _explain_output(self, answer: Label | Labels | Scores, target: str | None) -> None:
        task, head = self.predictor.task, self.predictor.head
        known = list(answer.scores if isinstance(answer, Scores) else answer.probabilities)
        if target is not None and target not in known:
            what = "traits" if isinstance(answer, Scores) else "labels"
            raise RecipeError(f"{target!r} is none of the {what} {', '.join(known)}", "target")
        if isinstance(answer, Scores):
            self.name, self.unit = target or known[0], "points"
            low, high = task.scales_of(self._rows([self.text]))[0]  # type: ignore[attr-defined]
            place = known.index(self.name)
            self._value: saliency.Value = lambda logits: low + (high - low) * head.shares(logits)[:, place]  # type: ignore[attr-defined]
            return
        likeliest = max(known, key=lambda name: answer.probabilities[name])
        self.name, self.unit = target or likeliest, "log-odds"
        place = known.index(self.name)
        if isinstance(answer, Label):
            self._value = saliency.of_label(place, getattr(task, "temperature", None) or 1.0)
        else:
            self._value = lambda logits: logits[:, place]

    def _explain_text(self, answer: Text, written: list[list[int]], target: str | None) -> None:
        if not answer.text:
            raise DataError("the model wrote nothing for this text, so there is nothing to explain")
        self.name, self.unit = target or answer.text, "log-probability"
        self.labels = saliency.written_labels(written, self.predictor.tokenizer)
        is_counted = self.labels != types.IGNORED
        if target is not None:
            is_counted &= saliency.tokens_of(target, self.labels, self.predictor.tokenizer)
            if not is_counted.any():
                raise RecipeError(f"{target!r} is no word of what was written: {answer.text}", "target")
        device = next(self.predictor.model.parameters()).device
        self.labels = self.labels.to(device)
        self._value = saliency.of_text(self.labels, is_counted.to(device))

    def reading(self, text: str | None = None) -> Reading:
        """This text, or another in its place, as the model reads it."""
        columns = _encoded(self.predictor, self._rows([self.text if text is None else text]))[:]
        device = next(self.predictor.model.parameters()).device
        batch = collate(columns, self.predictor.pad_id, device)
        return Reading(self.predictor, batch if self.labels is None else {**batch, "labels": self.labels}, self._value)

    def token_spans(self) -> list[list[Span | None]]:
        """For each token of each window where in the text it stands, None for one of something else."""
        task, tokenizer = self.predictor.task, self.predictor.tokenizer
        row = _encoded(self.predictor, self._rows([self.text]))[0]
        pair = shorten([self._beside.get("pair") or ""], tokenizer, task.max_length // 2)[0][0]
        sides = [[side == TEXT for side in window] for window in row["sides"]] if "sides" in row else None
        front = getattr(task, "prefix", "") + pair
        return saliency.token_spans(row["input_ids"], self.text, front, tokenizer, sides)

    def numbers(self, texts: list[str]) -> list[float]:
        """The number for other texts in the place of this one."""
        if self.labels is not None:
            with inferring(self.predictor.model, "float32"):
                return [self.reading(text).values(1).item() for text in texts]
        rows = self._rows(texts)
        del rows["id"]
        answers = self.predictor(rows.pop("text"), rows.pop("pair", None), **rows)
        return [_told(answer, self.name) for answer in answers]

    def sentences(self) -> list[Part]:
        spans = _sentence_spans(self.text, self.predictor.task.sentences_of(self._rows([self.text]))[0])
        effects: dict[int, float] = {}
        if len(spans) > 1 and self.labels is not None:  # without some sentences its chunks would be others
            effects = saliency.occlusion(self.reading(), saliency.groups_of(spans, self.token_spans()))
        elif len(spans) > 1:
            whole, *rest = self.numbers([self.text, *(_without(self.text, [span]) for span in spans)])
            effects = {number: whole - without for number, without in enumerate(rest)}
        return _parts(self.text, spans, effects)


def _told(answer: Prediction, name: str) -> float:
    """The number that an answer tells."""
    if isinstance(answer, Scores):
        return answer.scores[name]
    assert isinstance(answer, Label | Labels)
    share = answer.probabilities[name]
    others = 1 - share
    if isinstance(answer, Label):  # exact where the share is nearly 1
        others = sum(one for label, one in answer.probabilities.items() if label != name)
    return math.log(max(share, _LEAST)) - math.log(max(others, _LEAST))


# ---- how far to trust it


def _deletion(case: _Case, words: list[Span], effects: dict[int, float]) -> Deletion | None:
    """The text read again without the words of largest effect, and without as many of the others."""
    if len(effects) < _FEWEST_WORDS:
        return None
    ordered = sorted((number for number in effects if effects[number] > 0), key=lambda number: -effects[number])
    named = ordered[: max(1, round(_DELETED * len(effects)))]
    if not named:
        return None
    others = sorted(set(effects) - set(named))
    draw = np.random.default_rng(0)
    drawn = [draw.choice(others, len(named), replace=False).tolist() for _ in range(_N_DRAWS)]
    spans = [_with_space(case.text, word) for word in words]
    texts = [_without(case.text, [spans[number] for number in sorted(gone)]) for gone in (named, *drawn)]
    is_shared = case.unit == "log-odds"
    whole, without, *at_random = map(_probability if is_shared else float, case.numbers([case.text, *texts]))
    unit = "probability" if is_shared else case.unit
    return Deletion(len(named), whole - without, whole - float(np.mean(at_random)), unit)


def _probability(log_odds: float) -> float:
    return 1 / (1 + math.exp(-log_odds))


def _with_space(text: str, word: Span) -> Span:
    """The word and one of the spaces around it."""
    start, end = word
    is_apart = text[end : end + 1].isspace() and (not start or text[start - 1].isspace())
    return start, end + is_apart


def _without(text: str, spans: list[Span]) -> str:
    """The text without these stretches of it, which are in order."""
    ends = [0, *(end for _, end in spans)]
    starts = [*(start for start, _ in spans), len(text)]
    return "".join(text[end:start] for end, start in zip(ends, starts, strict=True))


# ---- parts of the text


def _sentence_spans(text: str, sentences: list[str]) -> list[Span]:
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


def _parts(text: str, spans: Sequence[Span], effects: dict[int, float]) -> list[Part]:
    """The text in parts: the spans that have an effect, and what is between them."""
    parts, at = [], 0
    for number, effect in sorted(effects.items()):
        start, end = spans[number]
        if start > at:
            parts.append(Part(text[at:start]))
        parts.append(Part(text[start:end], effect))
        at = end
    return [*parts, Part(text[at:])] if at < len(text) else parts
