"""Extractive summaries: a BERT-style model picks sentences of a long text."""

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from tl_nlp.errors import DataError
from tl_nlp.faithfulness import sequences, words_of
from tl_nlp.metrics import rouge_scores
from tl_nlp.recipe import Task
from tl_nlp.rows import all_references, empty_targets
from tl_nlp.types import Metrics, Prediction, Text
from tl_nlp.windows import sentence_windows


class Highlights(Task):
    """The best sentences of a text, in its order; the pair is what they are to be about (an aspect, a question).

    The model learns each sentence's worth: its ROUGE against the summary that is the target, or marks made by people.
    """

    head: ClassVar[str] = "select"
    main_metric: ClassVar[str] = "rouge1"
    columns: ClassVar[tuple[str, ...]] = ("sentences", "sections", "highlights", "others")

    max_length: int = Field(128, ge=32)  # tokens in one window
    max_windows: int = Field(64, ge=1)
    n_sentences: int = Field(2, ge=1)  # that are picked at most
    n_words: int | None = Field(
        None, ge=1
    )  # that these have together at most; the best sentence is picked all the same
    budget: Literal["given", "fitted"] = "given"  # fitted: n_words is found on validation, for ROUGE-1
    repeats: bool = True  # false: a sentence that has three words in a row of a better one is passed over
    learn_from: Literal["target", "highlights"] = "target"  # highlights: a column with 0 or 1 for each sentence
    temperature: float = Field(0.05, gt=0)  # of the worths; lower asks for the best sentence, higher for good ones
    language: str = "en"  # of texts that come without the column sentences, for finding their ends

    def head_settings(self) -> dict[str, Any]:
        return {"temperature": self.temperature}

    def faults(self, rows: dict[str, list[Any]]) -> dict[int, str]:
        return {} if self.learn_from == "highlights" else empty_targets(rows)

    def outputs(self) -> list[str]:
        return ["worth"]

    def sentences(self, text: str) -> list[str]:
        """The sentences of a text."""
        from sentencex import segment

        return [sentence.strip() for sentence in segment(self.language, text) if sentence.strip()]

    def encode(self, rows: dict[str, list[Any]], tokenizer: Any) -> dict[str, list[Any]]:
        sentences = self.sentences_of(rows)
        headings = rows.get("sections") or [None] * len(sentences)
        pairs = rows.get("pair") or [""] * len(sentences)
        encoded = sentence_windows(sentences, pairs, headings, tokenizer, self.max_length, self.max_windows)
        if "target" in rows:
            encoded["labels"] = self.labels_of(rows)
        return encoded

    def labels_of(self, rows: dict[str, list[Any]]) -> list[list[float]]:
        sentences = self.sentences_of(rows)
        if self.learn_from == "target":
            self.refuse_faults(rows)
            return [
                [_worth(sentence, summary) for sentence in theirs]
                for theirs, summary in zip(sentences, rows["target"], strict=True)
            ]
        if "highlights" not in rows:
            raise DataError("task.learn_from=highlights needs the columns sentences and highlights")
        labels = [[float(mark) for mark in marks] for marks in rows["highlights"]]
        for row, theirs, marks in zip(rows["id"], sentences, labels, strict=True):
            if len(theirs) != len(marks):
                raise DataError(f"row {row}: {len(marks)} highlights for {len(theirs)} sentences")
        return labels

    def sentences_of(self, rows: dict[str, list[Any]]) -> list[list[str]]:
        if rows.get("sentences"):
            for row, sentences in zip(rows["id"], rows["sentences"], strict=True):
                if not isinstance(sentences, list) or not sentences:
                    raise DataError(f"row {row}: the column sentences holds {sentences!r}, not a list of sentences")
            return rows["sentences"]
        return [self.sentences(text) for text in rows["text"]]

    def decode(self, outputs: list[np.ndarray], rows: dict[str, list[Any]], tokenizer: Any) -> list[Prediction]:
        predictions: list[Prediction] = []
        for logits, sentences in zip(outputs, self.sentences_of(rows), strict=True):
            order = np.argsort(-logits[: len(sentences)], kind="stable")
            chosen = sorted(self._chosen([int(index) for index in order if np.isfinite(logits[index])], sentences))
            predictions.append(Text(" ".join(sentences[index] for index in chosen), chosen))
        return predictions

    def _chosen(self, ordered: list[int], sentences: list[str]) -> list[int]:
        """Of the sentences at these places, the best first, those that the budget has room for; without repeats by
        trigram blocking (Paulus et al. 2017, https://arxiv.org/abs/1705.04304, section 2.5)."""
        chosen: list[int] = []
        said: set[tuple[str, ...]] = set()
        n_words = 0
        for index in ordered:
            words = words_of(sentences[index])
            theirs = set(sequences(words, 3))
            if chosen and not self.repeats and theirs & said:
                continue
            is_over = self.n_words is not None and n_words + len(words) > self.n_words
            if chosen and (is_over or len(chosen) == self.n_sentences):
                break
            chosen.append(index)
            n_words += len(words)
            said |= theirs
        return chosen

    def calibrated(self, outputs: list[np.ndarray], rows: dict[str, list[Any]]) -> Task:
        if self.budget == "given":
            return self
        references = all_references(rows)

        def reached(task: Highlights) -> float:
            made = [one.text for one in task.decode(outputs, rows, None) if isinstance(one, Text)]
            both = zip(references, made, strict=True)
            return sum(rouge_scores(theirs, ours, ("rouge1",))["rouge1"] for theirs, ours in both)

        return max((self.model_copy(update={"n_words": n_words}) for n_words in _BUDGETS), key=reached)

    def score(self, predictions: list[Prediction], rows: dict[str, list[Any]]) -> Metrics:
        from tl_nlp.scoring import TextMetrics

        texts = [prediction.text for prediction in predictions if isinstance(prediction, Text)]
        return TextMetrics().compute(predictions=texts, references=all_references(rows), sources=rows["text"])


_BUDGETS = (1, *range(15, 125, 5))  # words; 1 leaves room for one sentence


def _worth(sentence: str, summary: str) -> float:
    """The mean of ROUGE-1 and ROUGE-2, as a share."""
    scores = rouge_scores([summary], sentence, ("rouge1", "rouge2"))
    return sum(scores.values()) / 200
