"""A short text written for a long one, by a T5- or BART-style model."""

from itertools import accumulate, chain
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from tl_nlp.errors import RecipeError
from tl_nlp.faithfulness import invented, novel, sequences, words_of
from tl_nlp.metrics import mean
from tl_nlp.recipe import Task
from tl_nlp.rows import all_references, empty_targets
from tl_nlp.textrank import textrank
from tl_nlp.types import IGNORED, Metrics, Prediction, Text
from tl_nlp.windows import fitting, packed, shorten


class Summarization(Task):
    """Generation: greedy; beam search; or many texts drawn, and the one that the others agree with most (`candidates`).

    Of a text that exceeds `max_length` the rest is cut and counted; or the sentences that are most like the others
    (TextRank) stay and the rest is (`extract`); or it is read in chunks that end with sentences, each of which learns
    those sentences of the summary that are most like it (Gidiotis & Tsoumakas 2020, https://arxiv.org/abs/2004.06190)
    and writes a part, less what was written before.
    """

    head: ClassVar[str] = "generate"
    main_metric: ClassVar[str] = "rouge1"
    columns: ClassVar[tuple[str, ...]] = ("others",)  # further references, a list of texts

    max_length: int = Field(512, ge=8)  # tokens of the text, or of each of its chunks
    long_texts: Literal["cut", "extract", "chunks"] = "cut"  # what is done with those of more tokens
    max_chunks: int = Field(8, ge=2)
    max_new_tokens: int = Field(64, ge=2)  # of the summary, its end mark included; longer targets are cut and counted
    min_new_tokens: int = Field(0, ge=0)
    beams: int = Field(1, ge=1)
    length_penalty: float = 1.0  # of beams; above 1 asks for longer texts, below for shorter ones
    no_repeat_ngrams: int = Field(0, ge=0)  # no such number of tokens in a row is written twice; 0: any may be
    candidates: int = Field(1, ge=1)  # texts that are drawn, of which the one most like the others is kept
    temperature: float = Field(1.0, gt=0)  # of what is drawn: below 1 they are likelier, and more alike
    validation_rows: int = Field(500, ge=1)  # of these at most, each evaluation while training writes, greedily
    prefix: str = ""  # in front of every text; T5 was pretrained with "summarize: "

    @model_validator(mode="after")
    def _lengths(self) -> "Summarization":
        if self.min_new_tokens > self.max_new_tokens:
            raise RecipeError(f"{self.min_new_tokens} is above max_new_tokens {self.max_new_tokens}", "min_new_tokens")
        if self.length_penalty != 1 and self.beams == 1:
            raise RecipeError("weighs beams against one another, and there is one; task.beams=4", "length_penalty")
        if self.candidates > 1 and self.beams > 1:
            raise RecipeError("draws texts, and beams search for one; task.beams=1", "candidates")
        if self.temperature != 1 and self.candidates == 1:
            raise RecipeError("is of texts that are drawn, and none is; task.candidates=16", "temperature")
        return self

    def head_settings(self) -> dict[str, Any]:
        return {
            "max_new_tokens": self.max_new_tokens,
            "min_new_tokens": self.min_new_tokens,
            "beams": self.beams,
            "length_penalty": self.length_penalty,
            "no_repeat_ngrams": self.no_repeat_ngrams,
            "candidates": self.candidates,
            "temperature": self.temperature,
        }

    def glance(self) -> tuple[Task, int | None]:
        greedy = {"beams": 1, "length_penalty": 1.0, "candidates": 1, "temperature": 1.0}
        return self.model_copy(update=greedy), self.validation_rows

    def faults(self, rows: dict[str, list[Any]]) -> dict[int, str]:
        return empty_targets(rows)

    def outputs(self) -> list[str]:
        return []

    def encode(self, rows: dict[str, list[Any]], tokenizer: Any) -> dict[str, list[Any]]:
        n_special = tokenizer.num_special_tokens_to_add()
        fronts = [
            f"{self.prefix}{pair} " if pair else self.prefix for pair in rows.get("pair") or [""] * len(rows["text"])
        ]
        parts, left_out = self._parts(rows, fronts, tokenizer, self.max_length - n_special)
        counts = [len(theirs) for theirs in parts]
        texts = [front + part for front, theirs in zip(fronts, parts, strict=True) for part in theirs]
        texts, cut = shorten(texts, tokenizer, self.max_length - n_special)
        ids = tokenizer(texts, truncation=True, max_length=self.max_length, return_attention_mask=False)["input_ids"]
        lost = [left_out, _totals(cut, counts)]
        encoded: dict[str, list[Any]] = {"input_ids": _by_row(ids, counts)}
        if "target" in rows:
            both = zip(self.labels_of(rows), parts, strict=True)
            targets, cut = shorten(
                [part for target, theirs in both for part in self._shared_out(target, theirs)],
                tokenizer,
                self.max_new_tokens - n_special,
            )
            labels = tokenizer(text_target=targets, return_attention_mask=False)["input_ids"]
            learned = [ids if target else [IGNORED] for ids, target in zip(labels, targets, strict=True)]
            encoded["labels"] = _by_row(learned, counts)
            lost.append(_totals(cut, counts))
        return {**encoded, "cut": [sum(of_row) for of_row in zip(*lost, strict=True)]}

    def _parts(
        self, rows: dict[str, list[Any]], fronts: list[str], tokenizer: Any, room: int
    ) -> tuple[list[list[str]], list[int]]:
        """The parts of each text that are read apart, each with what goes in front of it, and how many tokens are in
        none."""
        if self.long_texts == "cut":
            return [[text] for text in rows["text"]], [0] * len(rows["text"])
        parts, left_out = [], []
        for text, front, sentences in zip(rows["text"], fronts, self.sentences_of(rows), strict=True):
            options = {"add_special_tokens": False, "return_attention_mask": False}
            n_front, *n_tokens = map(len, tokenizer([front, *sentences], **options)["input_ids"])
            chosen = [list(range(len(sentences)))]
            if sum(n_tokens) > room - n_front:
                if self.long_texts == "extract":
                    chosen = [fitting(textrank(sentences).tolist(), n_tokens, room - n_front)]
                else:
                    chosen = packed(n_tokens, room - n_front)[: self.max_chunks]
            is_whole = len(chosen) == 1 and len(chosen[0]) == len(sentences)
            parts.append([text] if is_whole else [" ".join(sentences[one] for one in places) for places in chosen])
            left_out.append(sum(n_tokens) - sum(n_tokens[one] for places in chosen for one in places))
        return parts, left_out

    def _shared_out(self, target: str, parts: list[str]) -> list[str]:
        """What each part of a text is to learn of its summary; "" where no sentence of it is most like this part."""
        if len(parts) == 1:
            return [target]
        theirs: list[list[str]] = [[] for _ in parts]
        words = [words_of(part) for part in parts]
        for sentence in self.sentences_of({"text": [target]})[0]:
            unlike = [[novel(words_of(sentence), part, n)[0] for n in (2, 1)] for part in words]
            theirs[unlike.index(min(unlike))].append(sentence)
        return [" ".join(sentences) for sentences in theirs]

    def labels_of(self, rows: dict[str, list[Any]]) -> list[str]:
        self.refuse_faults(rows)
        return rows["target"]

    def decode(self, outputs: list[np.ndarray], rows: dict[str, list[Any]], tokenizer: Any) -> list[Prediction]:
        ends = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
        predictions: list[Prediction] = []
        for ids, source in zip(outputs, rows["text"], strict=True):
            of_parts = np.atleast_2d(ids).tolist()
            text = self._joined([one.strip() for one in tokenizer.batch_decode(of_parts, skip_special_tokens=True)])
            spans = [[fact.start, fact.end] for fact in invented(text, source)]
            # the first token may be what the decoder starts with, which may be an end
            predictions.append(Text(text, None, spans, any(ends.isdisjoint(part[1:]) for part in of_parts)))
        return predictions

    def _joined(self, texts: list[str]) -> str:
        """What the parts of a text were summed up as, without the sentences that say again what one before has said."""
        if len(texts) == 1:
            return texts[0]
        kept: list[str] = []
        said: set[tuple[str, ...]] = set()
        for sentence in chain.from_iterable(self.sentences_of({"text": [text for text in texts if text]})):
            theirs = set(sequences(words_of(sentence), 3))
            if not theirs & said:
                kept.append(sentence)
            said |= theirs
        return " ".join(kept)

    def score(self, predictions: list[Prediction], rows: dict[str, list[Any]]) -> Metrics:
        from tl_nlp.scoring import TextMetrics

        written = [prediction for prediction in predictions if isinstance(prediction, Text)]
        texts = [prediction.text for prediction in written]
        found = TextMetrics().compute(predictions=texts, references=all_references(rows), sources=rows["text"])
        if all(prediction.unfinished is not None for prediction in written):
            found["unfinished"] = mean([prediction.unfinished for prediction in written])
        return found

    def caution(self, metrics: Metrics) -> str | None:
        share = float(metrics.get("unfinished", 0.0))
        if share <= _MANY_UNFINISHED:
            return None
        return (
            f"{share:.0%} of what was written would have gone on at task.max_new_tokens={self.max_new_tokens}; "
            "a higher one lets it end"
        )


_MANY_UNFINISHED = 0.03  # share of the rows


def _by_row(values: list[Any], counts: list[int]) -> list[list[Any]]:
    """Values of parts as lists, one for each row of so many parts."""
    ends = list(accumulate(counts))
    return [values[end - count : end] for end, count in zip(ends, counts, strict=True)]


def _totals(values: list[int], counts: list[int]) -> list[int]:
    return [sum(theirs) for theirs in _by_row(values, counts)]
