"""Likeness in meaning, against BERTScore's own definition."""

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from tl_nlp.pretrained import find
from tl_nlp.similarity import READER, similarity


def by_hand(one: str, other: str) -> float:
    folder = find(READER)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    with torch.inference_mode():
        ours, theirs = (
            torch.nn.functional.normalize(
                model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, 1:-1], dim=1
            )
            for text in (one, other)
        )
    cosines = ours @ theirs.T
    precision, recall = cosines.max(1).values.mean(), cosines.max(0).values.mean()
    return float(2 * precision * recall / (precision + recall))


def test_it_is_bertscore_of_the_best_reference() -> None:
    said = ["a dull film", "the cat sat on the mat", ""]
    references = [["a boring movie", "bananas"], ["a cat was sitting there, on a mat"], ["something"]]
    expected = [by_hand(said[0], references[0][0]), by_hand(said[1], references[1][0]), 0.0]
    measured = similarity(references, said)
    assert measured == pytest.approx(np.mean(expected), abs=1e-5)
    assert by_hand(said[0], references[0][0]) > by_hand(said[0], references[0][1])
    assert measured.under(np.array([[1.0, 0.0, 0.0]]))[0] == pytest.approx(expected[0], abs=1e-5)
