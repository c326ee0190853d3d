"""Which texts to ask labels for first. Pure functions of numpy arrays."""

from __future__ import annotations

import numpy as np

from tl_nlp.errors import DataError, RecipeError

STRATEGIES = ("diverse_margin", "margin", "entropy", "k_center", "random")
BY_PROBABILITIES = ("diverse_margin", "margin", "entropy")
BY_EMBEDDINGS = ("diverse_margin", "k_center")
_PREFILTER = 10  # times the batch: the least sure rows among which clusters are made
_CHUNK = 1000  # rows whose distances to all others are in memory at once


def order(
    strategy: str,
    n_rows: int,
    *,
    probabilities: np.ndarray | None = None,
    embeddings: np.ndarray | None = None,
    labelled: np.ndarray | None = None,
    n: int = 100,
    seed: int = 0,
) -> np.ndarray:
    """All row numbers, those to label first in front; `n` are expected to be labelled before the model learns again.

    `probabilities` of shape (rows, labels); `embeddings` of shape (rows, hidden), and those of what is `labelled`
    already (labelled rows, hidden). What a strategy does not read may be None.

    * entropy: the highest entropy of the probabilities first (Settles 2009, section 3.1).
    * margin: the least gap between the two likeliest labels first (Scheffer et al. 2001).
    * k_center: `n` times the row farthest from all that is labelled or chosen (Sener & Savarese 2018, algorithm 1).
    * diverse_margin: of the 10 n rows of least margin, the row nearest to each centre of n clusters, k-means weighted
      by 1 - margin (Zhdanov 2019, https://arxiv.org/abs/1901.05954); the others follow by margin.
    * random: as it comes; the control.

    Raises RecipeError for a strategy that is none, DataError where what it reads is missing.
    """
    if strategy not in STRATEGIES:
        raise RecipeError(f"no strategy {strategy!r}; there are: {', '.join(STRATEGIES)}")
    if not n_rows:
        return np.empty(0, int)
    for name, given, readers in (
        ("probabilities", probabilities, BY_PROBABILITIES),
        ("embeddings", embeddings, BY_EMBEDDINGS),
    ):
        if strategy in readers and (given is None or len(given) != n_rows):
            there = "none" if given is None else f"those of {len(given)}"
            raise DataError(f"strategy {strategy} reads {name} of all {n_rows} rows; there are {there}")
    if strategy == "random":
        return np.random.default_rng(seed).permutation(n_rows)
    n = max(1, min(n, n_rows))
    if strategy == "k_center":
        assert embeddings is not None, "what it reads is there"
        return _k_center(embeddings, labelled, n)
    assert probabilities is not None, "what the others read is there"
    if strategy == "entropy":
        return np.argsort((probabilities * np.log(np.clip(probabilities, 1e-12, 1))).sum(axis=1), kind="stable")
    if strategy == "margin":
        return np.argsort(margins(probabilities), kind="stable")
    assert embeddings is not None, "what the last one reads is there"
    return _diverse(margins(probabilities), embeddings, n, seed)


def margins(probabilities: np.ndarray) -> np.ndarray:
    """How far the likeliest label is ahead of the next, for each row; 0 is the least sure."""
    two = np.partition(probabilities, -2, axis=1)[:, -2:]
    return two[:, 1] - two[:, 0]


def _k_center(embeddings: np.ndarray, labelled: np.ndarray | None, n: int) -> np.ndarray:
    """`n` centres, one after the other, then the rest, the farthest first. Where nothing is labelled the first centre
    is the row nearest to the mean."""
    rows = np.asarray(embeddings, np.float32)
    squares = (rows**2).sum(axis=1)
    distance = np.full(len(rows), np.inf, np.float32)  # squared, to the nearest centre
    for start in range(0, 0 if labelled is None else len(labelled), _CHUNK):
        part = np.asarray(labelled, np.float32)[start : start + _CHUNK]
        between = squares[:, None] + (part**2).sum(axis=1) - 2 * rows @ part.T
        distance = np.minimum(distance, between.min(axis=1))
    first = squares - 2 * rows @ rows.mean(axis=0) if np.isinf(distance).all() else -distance
    chosen = [int(first.argmin())]
    while True:
        last = chosen[-1]
        distance = np.minimum(distance, squares + squares[last] - 2 * rows @ rows[last])
        distance[chosen] = -np.inf  # rounding may leave equal rows below 0
        if len(chosen) == n:
            return np.append(chosen, np.argsort(-distance, kind="stable")[: len(rows) - n])
        chosen.append(int(distance.argmax()))


def _diverse(margin: np.ndarray, embeddings: np.ndarray, n: int, seed: int) -> np.ndarray:
    import warnings

    from sklearn.cluster import KMeans

    by_margin = np.argsort(margin, kind="stable")
    unsure = by_margin[: _PREFILTER * n]
    points = np.asarray(embeddings, np.float32)[unsure]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fewer different texts than clusters
        clusters = KMeans(n, n_init=1, random_state=seed).fit(points, sample_weight=1 - margin[unsure] + 1e-6)
    is_chosen = np.zeros(len(unsure), bool)
    for centre in clusters.cluster_centers_:
        distance = ((points - centre) ** 2).sum(axis=1)
        distance[is_chosen] = np.inf
        is_chosen[distance.argmin()] = True
    rest = np.append(unsure[~is_chosen], by_margin[_PREFILTER * n :])
    return np.append(unsure[is_chosen], rest)
