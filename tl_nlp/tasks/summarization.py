"""A short text written for a long one, by a T5- or BART-style model."""

from typing import Any, ClassVar

import numpy as np
from pydantic import Field, model_validator

from tl_nlp.errors import RecipeError
from tl_nlp.recipe import Task
from tl_nlp.rows import empty_targets
from tl_nlp.types import Metrics, Prediction, Text
from tl_nlp.windows import shorten


class Summarization(Task):
    """Generation: greedy with one beam, else beam search. What of the text exceeds `max_length` is cut and counted."""

    head: ClassVar[str] = "generate"
    main_metric: ClassVar[str] = "rouge1"
    columns: ClassVar[tuple[str, ...]] = ("others",)  # further references, a list of texts

    max_length: int = Field(512, ge=8)  # tokens of the text
    max_new_tokens: int = Field(64, ge=2)  # of the summary, its end mark included; longer targets are cut and counted
    min_new_tokens: int = Field(0, ge=0)
    beams: int = Field(1, ge=1)
    prefix: str = ""  # in front of every text; T5 was pretrained with "summarize: "

    @model_validator(mode="after")
    def _lengths(self) -> "Summarization":
        if self.min_new_tokens > self.max_new_tokens:
            raise RecipeError(f"{self.min_new_tokens} is above max_new_tokens {self.max_new_tokens}", "min_new_tokens")
        return self

    def head_settings(self) -> dict[str, Any]:
        return {
            "max_new_tokens": self.max_new_tokens,
            "min_new_tokens": self.min_new_tokens,
            "beams": self.beams,
        }

    def faults(self, rows: dict[str, list[Any]]) -> dict[int, str]:
        return empty_targets(rows)

    def outputs(self) -> list[str]:
        return []

    def encode(self, rows: dict[str, list[Any]], tokenizer: Any) -> dict[str, list[Any]]:
        texts = [self.prefix + text for text in rows["text"]]
        if rows.get("pair"):
            texts = [f"{self.prefix}{pair} {text}" for pair, text in zip(rows["pair"], rows["text"], strict=True)]
        n_special = tokenizer.num_special_tokens_to_add()
        texts, cut = shorten(texts, tokenizer, self.max_length - n_special)
        encoded = tokenizer(texts, truncation=True, max_length=self.max_length, return_attention_mask=False)
        result: dict[str, list[Any]] = {"input_ids": [[ids] for ids in encoded["input_ids"]], "cut": cut}
        if "target" in rows:
            targets, lost = shorten(self.labels_of(rows), tokenizer, self.max_new_tokens - n_special)
            result["cut"] = [of_text + of_target for of_text, of_target in zip(cut, lost, strict=True)]
            result["labels"] = tokenizer(text_target=targets, return_attention_mask=False)["input_ids"]
        return result

    def labels_of(self, rows: dict[str, list[Any]]) -> list[str]:
        self.refuse_faults(rows)
        return rows["target"]

    def decode(self, outputs: list[np.ndarray], rows: dict[str, list[Any]], tokenizer: Any) -> list[Prediction]:
        texts = tokenizer.batch_decode([ids.tolist() for ids in outputs], skip_special_tokens=True)
        return [Text(text.strip()) for text in texts]

    def score(self, predictions: list[Prediction], rows: dict[str, list[Any]]) -> Metrics:
        from tl_nlp.scoring import TextMetrics, all_references

        texts = [prediction.text for prediction in predictions if isinstance(prediction, Text)]
        return TextMetrics().compute(predictions=texts, references=all_references(rows))
