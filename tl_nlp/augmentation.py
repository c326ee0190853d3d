"""Training texts changed on the fly: what a row becomes depends on seed, epoch and row alone."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from tl_nlp.recipe import Augmentation, Task
from tl_nlp.rows import columns_of
from tl_nlp.types import COLUMNS

if TYPE_CHECKING:
    from datasets import Dataset

    from tl_nlp.batches import Encoded

_N_NEIGHBOURS = 5
_SHORTEST = 3  # letters; shorter words are mostly function words, whose neighbours change the grammar


@dataclass
class Augmented:
    """The rows of one epoch, encoded when they are asked for; indexed as the encoded rows they come from."""

    rows: Dataset
    encoded: Encoded
    task: Task
    tokenizer: Any
    choices: Augmentation
    seed: int
    epoch: int = 0
    neighbours: dict[str, list[str]] = field(default_factory=dict)

    def __getitem__(self, indices: list[int]) -> dict[str, list[Any]]:
        draws = [random.Random(f"{self.seed} {self.epoch} {index}") for index in indices]
        encoded = self.encoded[indices]
        if self.choices.changes_words:
            columns = columns_of(self.rows.select(indices), (*COLUMNS, *self.task.columns))
            columns["text"] = [self._changed(text, draw) for text, draw in zip(columns["text"], draws, strict=True)]
            encoded = {**encoded, **self.task.encode(columns, self.tokenizer)}  # a teacher's answers stay
        if self.choices.token_cutoff:
            special = set(self.tokenizer.all_special_ids)
            encoded["hidden"] = [
                [
                    [int(token not in special and draw.random() < self.choices.token_cutoff) for token in window]
                    for window in windows
                ]
                for windows, draw in zip(encoded["input_ids"], draws, strict=True)
            ]
        return encoded

    def _changed(self, text: str, draw: random.Random) -> str:
        words = text.split()
        kept = [word for word in words if draw.random() >= self.choices.word_dropout] or [draw.choice(words)]
        for place in range(len(kept) - 1):
            if draw.random() < self.choices.word_swap:
                kept[place], kept[place + 1] = kept[place + 1], kept[place]
        return " ".join(
            self._neighbour(word, draw) if draw.random() < self.choices.word_replacement else word for word in kept
        )

    def _neighbour(self, word: str, draw: random.Random) -> str:
        """A word like this one, with its punctuation and capital; the word itself where none is known."""
        before, core, after = re.fullmatch(r"(\W*)(.*?)(\W*)", word, re.DOTALL).groups()  # type: ignore[union-attr]
        near = self.neighbours.get(core.lower())
        if near is None:
            return word
        other = draw.choice(near)
        return f"{before}{other.capitalize() if core[:1].isupper() else other}{after}"


def neighbours(model: Any, tokenizer: Any, texts: list[str]) -> dict[str, list[str]]:
    """For each word of the texts that is one token: the words nearest to it, by the cosine of the embeddings."""
    of_word = _whole_words(tokenizer)
    used = sorted({core for text in texts for core in re.findall(r"\w+", text.lower())} & of_word.keys())
    words = list(of_word)
    table = model.get_input_embeddings().weight.detach().float().cpu()
    unit = torch.nn.functional.normalize(table[[of_word[word] for word in words]], dim=1)
    place = {word: index for index, word in enumerate(words)}
    found = {}
    for start in range(0, len(used), 512):
        chunk = used[start : start + 512]
        likeness = unit[[place[word] for word in chunk]] @ unit.T
        nearest = likeness.topk(min(_N_NEIGHBOURS + 1, len(words)), dim=1).indices.tolist()
        for word, near in zip(chunk, nearest, strict=True):
            found[word] = [words[index] for index in near if words[index] != word][:_N_NEIGHBOURS]
    return {word: near for word, near in found.items() if near}


def _whole_words(tokenizer: Any) -> dict[str, int]:
    """The tokens that are a whole word in lower case, by that word."""
    tokens = {token: index for token, index in tokenizer.get_vocab().items() if index not in tokenizer.all_special_ids}
    marks = [mark for mark in ("▁", "Ġ") if any(token.startswith(mark) for token in tokens)]
    if marks:  # of a word's beginning, in SentencePiece and byte-level BPE
        tokens = {token[1:]: index for token, index in tokens.items() if token.startswith(marks[0])}
    return {
        word: index for word, index in tokens.items() if word.isalpha() and word.islower() and len(word) >= _SHORTEST
    }
