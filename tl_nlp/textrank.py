"""The sentences of a text that are most like its others (Mihalcea & Tarau 2004), by TF-IDF and PageRank."""

from __future__ import annotations

import numpy as np


def textrank(sentences: list[str]) -> np.ndarray:
    """The PageRank of each sentence among all, linked by the cosine of their TF-IDF vectors."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        vectors = TfidfVectorizer().fit_transform(sentences)
    except ValueError:  # not a word in any
        return np.ones(len(sentences))
    links = (vectors @ vectors.T).toarray()
    np.fill_diagonal(links, 0)
    out = links.sum(axis=1, keepdims=True)
    links = np.divide(links, out, out=np.full_like(links, 1 / len(sentences)), where=out > 0)
    rank = np.full(len(sentences), 1 / len(sentences))
    for _ in range(50):
        rank = 0.15 / len(sentences) + 0.85 * rank @ links
    return rank
