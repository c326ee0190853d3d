"""What it costs to trust a number: the data check on 100,000 rows, and intervals of 10,000 answers.

    python benchmarks/trust.py

Peers in the same run: scipy.stats.bootstrap for the intervals, and datasketch's MinHashLSH for near duplicates where it
is installed (pip install datasketch).
"""

import itertools
import random
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict
from datasets.table import InMemoryTable
from scipy.stats import bootstrap

from tl_nlp import duplicates, metrics, statistics
from tl_nlp.checking import check, doubtful_labels
from tl_nlp.tasks.classification import Classification

N_ROWS = 100_000


def timed(work: Callable[[], Any]) -> float:
    """The median of three runs, in seconds."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))


def rows() -> DatasetDict:
    """Reviews of 10 to 60 words out of 20,000; one in twenty is another with a word changed."""
    draw = random.Random(0)
    words = [f"{a}{b}" for a in ("ba", "ke", "li", "mo", "nu", "pa", "re", "si", "to", "vu") for b in range(2000)]
    texts = []
    for number in range(N_ROWS):
        if number % 20 == 19:
            again = texts[draw.randrange(len(texts))].split()
            again[draw.randrange(len(again))] = "other"
            texts.append(" ".join(again))
        else:
            texts.append(" ".join(draw.choices(words, k=draw.randint(10, 60))))
    table = pa.table(
        {"id": [str(n) for n in range(N_ROWS)], "text": texts, "target": ["ab"[n % 2] for n in range(N_ROWS)]}
    )
    parts = {"train": (0, 70_000), "validation": (70_000, 15_000), "test": (85_000, 15_000)}
    return DatasetDict({name: Dataset(InMemoryTable(table.slice(*part))) for name, part in parts.items()})


def peer_duplicates(texts: list[str]) -> None:
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=duplicates.SIMILARITY, num_perm=128)
    for number, text in enumerate(duplicates.plain(texts).to_pylist()):
        words = text.split()
        signature = MinHash(num_perm=128)
        signature.update_batch([one.encode() for one in (*words, *map(" ".join, itertools.pairwise(words)))])
        index.query(signature)
        index.insert(number, signature)


def main() -> None:
    data = rows()
    task = Classification(labels=("a", "b"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = timed(lambda: check(data, task, []))
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
    print(f"check of {N_ROWS:,} rows              {seconds:6.1f} s  {more:6.0f} MB more than the rows")
    features = np.random.default_rng(0).normal(size=(5000, 384)).astype(np.float32)
    labels = np.random.default_rng(1).integers(0, 2, 5000)
    print(f"doubtful labels among 5,000 rows    {timed(lambda: doubtful_labels(features, labels)):6.1f} s")
    few = data["train"]["text"][:10_000]
    ours = timed(lambda: duplicates.groups(few))
    try:
        theirs = timed(lambda: peer_duplicates(few))
        print(
            f"near duplicates in 10,000 rows      {ours:6.2f} s  datasketch {theirs:.1f} s: {theirs / ours:.0f} times"
        )
    except ImportError:
        print(f"near duplicates in 10,000 rows      {ours:6.2f} s")
    draw = np.random.default_rng(0)
    right = draw.random(10_000) < 0.8
    ours = timed(lambda: statistics.intervals({"accuracy": metrics.mean(right)}, len(right)))
    theirs = timed(lambda: bootstrap((right,), np.mean, n_resamples=1000, method="percentile", rng=0))
    print(f"1,000 resamples of 10,000 rows      {ours:6.2f} s  scipy {theirs:.2f} s: {theirs / ours:.1f} times")
    grades = draw.integers(0, 6, 10_000).astype(float)
    given = np.clip(grades + draw.normal(0, 1, 10_000).round(), 0, 5)
    every = {name: getattr(metrics, name)(grades, given) for name in ("qwk", "pearson", "spearman", "rmse")}
    print(f"  the same for qwk, pearson, spearman, rmse {timed(lambda: statistics.intervals(every, 10_000)):.2f} s")


if __name__ == "__main__":
    main()
